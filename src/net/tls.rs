//! TLS by rustls with *ring*, 1.2 and 1.3: a certificate and its key from files, read again when they
//! change. Must not know what is spoken inside.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ring::digest::{SHA256, digest};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_rustls::rustls::crypto::ring::sign::any_supported_type;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{self, ServerConfig, crypto, version};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};
use tracing::{info, warn};

use crate::config::{self, PRIVATE_KEYS, Secret, SecretError};
use crate::net::background::BackgroundPool;

/// How often the files are looked at. Whoever renews a certificate does so days ahead.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Looks in a row at files that cannot be read before that is said. Between the renewal of one file and
/// that of the other there is nothing to say, and behind a minute there is.
const UNREADABLE_MAX: u32 = 6;

/// A certificate and its key: a cheap handle.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    cert_file: PathBuf,
    key_file: PathBuf,
    current: ArcSwap<Loaded>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    /// Of what was read.
    digest: [u8; 32],
}

/// What was found when the files were looked at.
#[derive(Debug, Default)]
struct Seen {
    /// What could not be used, and was told.
    refused: Option<[u8; 32]>,
    /// Looks in a row that found files which cannot be read.
    unreadable: u32,
}

/// All that a client says first. It was read and nothing was computed for it.
#[derive(Debug)]
pub struct Hello(StartHandshake<TcpStream>);

impl Hello {
    /// Waits until it is whole, or until it cannot be one.
    pub async fn of(stream: TcpStream) -> io::Result<Self> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
        Ok(Self(hello.await?))
    }

    /// Cuts the connection off. A reset is one packet, and leaves the kernel no connection to remember;
    /// to a client it is a network that failed, which is tried again. An alert would be one more write
    /// for each, and none of them says "later" (RFC 8446 section 6.2): clients take `internal_error` for
    /// a server that is broken for good.
    pub fn refuse(self) {
        let Self(StartHandshake { io: stream, .. }) = self;
        // Without the option it ends as any other does.
        let _reset = stream.set_zero_linger();
    }
}

/// Why there is no TLS with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path}")]
    Unreadable {
        /// Its name.
        path: PathBuf,
        /// What is wrong.
        source: SecretError,
    },
    /// A file has nothing in PEM of the kind that it should have.
    #[error("{path}: has no {what} in PEM")]
    NoPem {
        /// Its name.
        path: PathBuf,
        /// What it should have.
        what: &'static str,
        /// What is wrong, where it says so.
        source: Option<pem::Error>,
    },
    /// Certificate and key cannot be used, or not together.
    #[error("{cert_file} and {key_file} cannot be used")]
    Unusable {
        /// The certificate's file.
        cert_file: PathBuf,
        /// The key's file.
        key_file: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

impl Tls {
    /// Loads what the settings name; nothing where they name nothing.
    pub fn load(settings: &config::TlsSettings) -> Result<Option<Self>, TlsError> {
        let (Some(cert_file), Some(key_file)) = (&settings.cert_file, &settings.key_file) else {
            return Ok(None);
        };
        let (cert_file, key_file) = (cert_file.clone(), key_file.clone());
        let read = Read::files(&cert_file, &key_file)?;
        let loaded = read.load(&cert_file, &key_file)?;
        Ok(Some(Self {
            shared: Arc::new(Shared {
                cert_file,
                key_file,
                current: ArcSwap::from_pointee(loaded),
            }),
        }))
    }

    /// Speaks TLS with a client that has said hello. This is what costs: keys are agreed on and a
    /// signature is made, which takes an RSA key more than ten times as long as an ECDSA key. It is done
    /// aside, so that no user waits for it.
    pub async fn accept(
        &self,
        Hello(hello): Hello,
        background: &BackgroundPool,
    ) -> io::Result<TlsStream<TcpStream>> {
        let config = self.shared.current.load().config.clone();
        // The answer is computed before the first poll.
        let answered = background.run(move || hello.into_stream(config)).await?;
        answered.await
    }

    /// Takes a new certificate when the files have one, for ever. What cannot be used leaves the last
    /// that could.
    pub async fn refresh(self) {
        let mut seen = Seen::default();
        loop {
            sleep(LOOK_INTERVAL).await;
            if let Err(error) = self.look(&mut seen) {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "certificate cannot be read again: the last one stays"
                );
            }
        }
    }

    /// Looks at the files; an error is said once.
    fn look(&self, seen: &mut Seen) -> Result<(), TlsError> {
        let Shared {
            cert_file,
            key_file,
            current,
        } = &*self.shared;
        let read = match Read::files(cert_file, key_file) {
            Ok(read) => read,
            Err(error) => {
                seen.unreadable = seen.unreadable.saturating_add(1);
                let is_news = seen.unreadable == UNREADABLE_MAX;
                return if is_news { Err(error) } else { Ok(()) };
            }
        };
        seen.unreadable = 0;
        let digest = read.digest();
        if digest == current.load().digest || seen.refused == Some(digest) {
            return Ok(());
        }
        let loaded = read.load(cert_file, key_file);
        current.store(Arc::new(
            loaded.inspect_err(|_| seen.refused = Some(digest))?,
        ));
        info!(cert_file = %cert_file.display(), "certificate read again");
        Ok(())
    }
}

/// What is in the two files.
struct Read {
    cert: Secret,
    key: Secret,
}

impl Read {
    fn files(cert_file: &PathBuf, key_file: &PathBuf) -> Result<Self, TlsError> {
        let read = |path: &PathBuf| {
            Secret::read(path).map_err(|source| TlsError::Unreadable {
                path: path.clone(),
                source,
            })
        };
        Ok(Self {
            cert: read(cert_file)?,
            key: read(key_file)?,
        })
    }

    fn digest(&self) -> [u8; 32] {
        let both = [&self.cert, &self.key].map(|secret| digest(&SHA256, secret.expose()));
        let both = both.each_ref().map(AsRef::as_ref).concat();
        let digest = digest(&SHA256, &both);
        digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    fn load(&self, cert_file: &PathBuf, key_file: &PathBuf) -> Result<Loaded, TlsError> {
        let no_pem = |path: &PathBuf, what, source| {
            let path = path.clone();
            TlsError::NoPem { path, what, source }
        };
        let unusable = |source| TlsError::Unusable {
            cert_file: cert_file.clone(),
            key_file: key_file.clone(),
            source,
        };
        let chain = CertificateDer::pem_slice_iter(self.cert.expose())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| no_pem(cert_file, "certificate", Some(error)))?;
        // Not by the library, which would leave copies of it behind.
        let (label, key) = self
            .key
            .pem(&PRIVATE_KEYS)
            .ok_or_else(|| no_pem(key_file, "private key", None))?;
        let key = match label {
            "PRIVATE KEY" => PrivateKeyDer::Pkcs8(key.expose().into()),
            "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(key.expose().into()),
            _ => PrivateKeyDer::Sec1(key.expose().into()),
        };
        let certified = any_supported_type(&key).map(|key| CertifiedKey::new(chain, key));
        let certified = certified.map_err(unusable)?;
        certified.keys_match().map_err(unusable)?;
        let provider = Arc::new(crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .map_err(unusable)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Loaded {
            config: Arc::new(config),
            digest: self.digest(),
        })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("cert_file", &self.shared.cert_file)
            .field("key_file", &self.shared.key_file)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use data_encoding::BASE64;
    use rcgen::{
        CertificateParams, CertifiedKey, KeyPair, PKCS_RSA_SHA256, generate_simple_self_signed,
    };

    use super::*;

    struct Files(PathBuf, config::TlsSettings);

    impl Files {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let settings = config::TlsSettings {
                cert_file: Some(folder.join("cert.pem")),
                key_file: Some(folder.join("key.pem")),
            };
            Self(folder, settings)
        }

        fn write(&self, cert: &str, key: &str) {
            fs::write(self.0.join("cert.pem"), cert).unwrap();
            fs::write(self.0.join("key.pem"), key).unwrap();
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn pair() -> (String, String) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    }

    #[test]
    fn a_new_certificate_is_taken_and_a_broken_one_is_not() {
        let files = Files::new("switchboard-tls");
        let ((old, old_key), (new, new_key)) = (pair(), pair());
        files.write(&old, &old_key);
        let tls = Tls::load(&files.1).unwrap().unwrap();
        let digest = || tls.shared.current.load().digest;
        let first = digest();
        let mut seen = Seen::default();
        let mut look = || tls.look(&mut seen).map_err(|error| error.to_string());
        assert_eq!((look(), digest()), (Ok(()), first));

        files.write(&new, &old_key);
        assert!(look().unwrap_err().ends_with("cannot be used"));
        assert_eq!((look(), digest()), (Ok(()), first), "it is said once");
        files.write(&new, &new_key);
        assert_eq!(look(), Ok(()));
        let second = digest();
        assert_ne!(second, first);

        let key = files.0.join("key.pem");
        fs::remove_file(&key).unwrap();
        let mut said: Vec<_> = (0..20).filter_map(|_| look().err()).collect();
        assert_eq!(
            (said.pop(), said.len()),
            (Some(key.display().to_string()), 0)
        );
        assert_eq!(digest(), second);
        // Once they were there again, it is news again.
        fs::write(&key, &new_key).unwrap();
        assert_eq!(look(), Ok(()));
        fs::remove_file(&key).unwrap();
        assert_eq!((0..20).filter_map(|_| look().err()).count(), 1);
    }

    #[test]
    fn a_key_may_stand_in_pem_in_any_of_its_three_forms() {
        let files = Files::new("switchboard-tls-forms");
        let rsa = include_str!("../../tests/keys/rsa.pem");
        let rsa = KeyPair::from_pkcs8_pem_and_sign_algo(rsa, &PKCS_RSA_SHA256).unwrap();
        let ec = KeyPair::generate().unwrap();
        // Behind as many bytes PKCS #8 has the other form.
        for (pair, label, behind) in [
            (&rsa, "PRIVATE KEY", 0),
            (&rsa, "RSA PRIVATE KEY", 26),
            (&ec, "PRIVATE KEY", 0),
            (&ec, "EC PRIVATE KEY", 29),
        ] {
            let cert = CertificateParams::new(["localhost".to_owned()]).unwrap();
            let cert = cert.self_signed(pair).unwrap().pem();
            let key = BASE64.encode(&pair.serialize_der()[behind..]);
            let key = format!("-----BEGIN {label}-----\n{key}\n-----END {label}-----\n");
            files.write(&cert, &key);
            assert!(Tls::load(&files.1).unwrap().is_some(), "{label}");
        }
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let files = Files::new("switchboard-tls-refused");
        let ((cert, key), (_, other)) = (pair(), pair());
        let refusal = |cert: &str, key: &str| {
            files.write(cert, key);
            let error = Tls::load(&files.1).unwrap_err().to_string();
            error.replace(&files.0.display().to_string(), "DIR")
        };
        assert_eq!(refusal("", &key), "DIR/cert.pem");
        assert_eq!(
            refusal(&cert, "x"),
            "DIR/key.pem: has no private key in PEM"
        );
        let both = "DIR/cert.pem and DIR/key.pem cannot be used";
        assert_eq!(refusal(&cert, &other), both);
        assert_eq!(refusal(&key, &key), both);
        assert!(
            Tls::load(&config::TlsSettings::default())
                .unwrap()
                .is_none()
        );
    }
}
