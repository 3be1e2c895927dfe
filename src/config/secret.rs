//! Secrets: read from a file, printed as `***`, wiped from memory on drop.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use data_encoding::BASE64;
use memchr::memmem;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The largest file that a secret is read from, bytes.
const SECRET_BYTES_MAX: usize = 64 * 1024;

/// The PEM labels of private keys without encryption: PKCS #8, PKCS #1 and SEC 1.
pub const PRIVATE_KEYS: [&str; 3] = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"];

/// A password, a key or a token.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

/// Why a secret cannot be read from a file.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot be read")]
    Unreadable(#[from] io::Error),
    /// The file is empty.
    #[error("is empty")]
    Empty,
    /// The file is larger than a secret can be.
    #[error("is larger than {SECRET_BYTES_MAX} bytes")]
    TooLarge,
    /// It cannot be a token in a header.
    #[error("is more than one line of visible ASCII")]
    NotVisibleAscii,
    /// It is too short to be a key.
    #[error("has less than {bytes_min} bytes")]
    TooShort {
        /// The least bytes that it may have.
        bytes_min: usize,
    },
}

impl Secret {
    /// Reads a secret from a file, without a line end at its end.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        // Allocated at full size, because growing would leave copies in memory.
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

    /// The label and the content of the first PEM section with one of these labels (RFC 7468).
    pub fn pem(&self, labels: &[&'static str]) -> Option<(&'static str, Self)> {
        const BEGIN: &[u8] = b"-----BEGIN ";
        let mut rest = self.expose();
        loop {
            let begin = memmem::find(rest, BEGIN)? + BEGIN.len();
            let (_, section) = rest.split_at_checked(begin)?;
            let (found, body) = section.split_at_checked(memmem::find(section, b"-----")?)?;
            rest = body;
            let label = labels.iter().find(|label| label.as_bytes() == found);
            let Some(label) = label else { continue };
            let body = body.strip_prefix(b"-----")?;
            let (body, _) = body.split_at_checked(memmem::find(body, b"-----END ")?)?;
            // Allocated at full size, because growing would leave copies in memory.
            let mut digits = Zeroizing::new(Vec::with_capacity(body.len()));
            digits.extend(body.iter().filter(|byte| !byte.is_ascii_whitespace()));
            let mut bytes = Zeroizing::new(vec![0; BASE64.decode_len(digits.len()).ok()?]);
            let length = BASE64.decode_mut(&digits, &mut bytes).ok()?;
            return Some((label, Self::new(bytes.get(..length)?)));
        }
    }

    /// The bytes of the secret.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether the secret equals these bytes. The time it takes depends on their number only.
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
    fn a_secret_is_read_without_its_line_end_and_printed_masked() {
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

    #[test]
    fn pem_finds_the_first_private_key() {
        let section = |label: &str, body: &str| {
            format!("what else\n-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        let (parameters, key) = (
            section("EC PARAMETERS", "AAAA"),
            section("EC PRIVATE KEY", "aHVu\r\ndGVy"),
        );
        for (text, expected) in [
            (key.clone(), Some("EC PRIVATE KEY")),
            (parameters.clone() + &key, Some("EC PRIVATE KEY")),
            (section("PRIVATE KEY", "aHVudGVy"), Some("PRIVATE KEY")),
            (
                section("RSA PRIVATE KEY", " aHVu dGVy"),
                Some("RSA PRIVATE KEY"),
            ),
            (
                format!("{}{key}", section("ENCRYPTED PRIVATE KEY", "AAAA")),
                Some("EC PRIVATE KEY"),
            ),
            (parameters, None),
            (section("PUBLIC KEY", "AAAA"), None),
            (section("PRIVATE KEY", "?"), None),
            (
                section("PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\n\nAAAA"),
                None,
            ),
            ("-----BEGIN PRIVATE KEY-----\nAAAA".to_owned(), None),
            ("-----BEGIN PRIVATE KEY".to_owned(), None),
            ("-----BEGIN ".to_owned(), None),
            (String::new(), None),
        ] {
            let found = Secret::new(text.as_bytes()).pem(&PRIVATE_KEYS);
            let (label, key) = found.unzip();
            assert_eq!(label, expected, "{text}");
            assert!(key.is_none_or(|key| key.is(b"hunter")), "{text}");
        }
    }
}
