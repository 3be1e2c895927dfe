//! What must not be seen: read from a file, printed as `***`, wiped when it is dropped.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The largest file that a secret is read from, bytes.
const SECRET_BYTES_MAX: usize = 64 * 1024;

/// A password, a key or a token.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

/// Why there is no secret in a file.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot be read")]
    Unreadable(#[from] io::Error),
    /// There is nothing in it.
    #[error("is empty")]
    Empty,
    /// There is more in it than a secret.
    #[error("is over {SECRET_BYTES_MAX} bytes")]
    TooLarge,
}

impl Secret {
    /// Reads a secret from a file, without the line end that editors leave at its end.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        // Room for all of it from the beginning: growing would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 1));
        let file = File::open(path)?;
        file.take(SECRET_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() > SECRET_BYTES_MAX {
            return Err(SecretError::TooLarge);
        }
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if text.is_empty() {
            return Err(SecretError::Empty);
        }
        Ok(Self::new(text))
    }

    /// A secret of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// The secret itself, for whoever has to use it.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether these are the same bytes, in a time that tells only the length.
    pub fn is(&self, bytes: &[u8]) -> bool {
        self.0.ct_eq(bytes).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_without_its_line_end_and_printed_as_nothing() {
        let path = std::env::temp_dir().join(format!("switchboard-secret-{}", std::process::id()));
        let read = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            let secret = Secret::read(&path);
            std::fs::remove_file(&path).unwrap();
            secret
        };
        for (text, expected) in [
            ("hunter2", "hunter2"),
            ("hunter2\n", "hunter2"),
            ("hunter2\r\n", "hunter2"),
            (" hunter2\n\n", " hunter2\n"),
        ] {
            let secret = read(text.as_bytes()).unwrap();
            assert!(secret.is(expected.as_bytes()), "{text:?}");
            assert!(!secret.is(b"hunter1"), "{text:?}");
            assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        }
        assert!(matches!(read(b"\n"), Err(SecretError::Empty)));
        let much = vec![b'x'; SECRET_BYTES_MAX + 1];
        assert!(matches!(read(&much), Err(SecretError::TooLarge)));
        assert!(matches!(
            Secret::read(&path),
            Err(SecretError::Unreadable(_))
        ));
    }
}
