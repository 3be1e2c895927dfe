//! TLS 1.2 and 1.3 by rustls with *ring*. A listener's certificate and key come from files, which are read again when
//! they change. Must not know the protocol inside.

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
use x509_cert::der::Decode;

use crate::config::{self, PRIVATE_KEYS, Secret, SecretError};
use crate::net::background::BackgroundPool;
use crate::net::stream::RecordStream;

/// How often the files are read again. Certificates are renewed days before they expire.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// Failed reads in a row after which the failure is logged. While one file is renewed and the other is not yet,
/// reading may fail; after a minute, that is no explanation.
const FAILED_READS_LOGGED: u32 = 6;

/// The TLS of a listener, with its current certificate: a cheap handle.
#[derive(Clone)]
pub(crate) struct Tls {
    certificate: Arc<ReloadedCertificate>,
}

struct ReloadedCertificate {
    files: CertificateFiles,
    current: ArcSwap<LoadedCertificate>,
}

/// The files of a certificate and its key, in PEM.
#[derive(Clone, Debug)]
struct CertificateFiles {
    cert_file: PathBuf,
    key_file: PathBuf,
}

/// The bytes of the two files.
struct CertificatePem {
    cert: Secret,
    key: Secret,
}

struct LoadedCertificate {
    config: Arc<ServerConfig>,
    /// The time since the Unix epoch at which it expires. Clients refuse it afterwards.
    not_after: Duration,
    /// SHA-256 of the files' bytes.
    digest: [u8; 32],
}

/// What earlier reads of the files found.
#[derive(Debug, Default)]
struct ReloadHistory {
    /// The digest of files that could not be used and that was logged.
    refused: Option<[u8; 32]>,
    /// Failed reads in a row.
    failed_reads: u32,
}

impl ReloadHistory {
    /// Whether the files could be used when they were last read.
    fn is_successful(&self) -> bool {
        self.refused.is_none() && self.failed_reads == 0
    }
}

/// The whole `ClientHello` of a connection. It was read, and nothing was computed for it.
#[derive(Debug)]
pub(crate) struct ClientHello(StartHandshake<RecordStream>);

/// A handshake that has failed. An alert was written that tells the client why (RFC 8446 section 6.2).
#[derive(Debug)]
pub(crate) struct FailedHandshake {
    pub(crate) error: io::Error,
    /// Has to be ended in order, or a reset could overtake the alert. None where the stream itself has failed.
    pub(crate) stream: Option<RecordStream>,
}

impl ClientHello {
    /// Reads until the hello is whole. Fails as soon as the bytes cannot be one.
    pub(crate) async fn read(stream: TcpStream) -> Result<Self, FailedHandshake> {
        let mut hello = LazyConfigAcceptor::new(Acceptor::default(), RecordStream::new(stream));
        match (&mut hello).await {
            Ok(hello) => Ok(Self(hello)),
            Err(error) => Err(FailedHandshake {
                error,
                stream: hello.take_io(),
            }),
        }
    }

    /// Resets the connection. A reset is one packet, and the kernel keeps no state of the connection. The client
    /// takes it for a failed network, and tries again. A TLS alert would cost one more write, and no alert means
    /// "later" (RFC 8446 section 6.2): clients take `internal_error` for a server that stays broken.
    pub(crate) fn refuse(self) {
        let Self(StartHandshake { io: stream, .. }) = self;
        // If the option cannot be set, the connection ends in order.
        let _reset = stream.tcp().set_zero_linger();
    }
}

/// Why the files of a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file cannot be read.
    #[error("{path}")]
    Unreadable { path: PathBuf, source: SecretError },
    /// A file has no PEM section of the expected kind.
    #[error("{path}: has no {what} in PEM")]
    NoPem {
        path: PathBuf,
        what: &'static str,
        source: Option<pem::Error>,
    },
    /// The certificate or the key cannot be used, or they do not belong together.
    #[error("{cert_file} and {key_file} cannot be used")]
    Unusable {
        cert_file: PathBuf,
        key_file: PathBuf,
        source: rustls::Error,
    },
}

impl Tls {
    /// Loads the files that the settings name; none if they name none.
    pub(crate) fn load(settings: &config::TlsSettings) -> Result<Option<Self>, TlsError> {
        let (Some(cert_file), Some(key_file)) = (&settings.cert_file, &settings.key_file) else {
            return Ok(None);
        };
        let files = CertificateFiles {
            cert_file: cert_file.clone(),
            key_file: key_file.clone(),
        };
        let loaded = files.parse(&files.read()?)?;
        Ok(Some(Self {
            certificate: Arc::new(ReloadedCertificate {
                files,
                current: ArcSwap::from_pointee(loaded),
            }),
        }))
    }

    /// Completes the handshake of a client. Runs in the background, because it agrees on keys and makes a signature,
    /// and must not delay users. An RSA key takes more than ten times as long as an ECDSA key.
    pub(crate) async fn accept(
        &self,
        ClientHello(hello): ClientHello,
        background: &BackgroundPool,
    ) -> Result<TlsStream<RecordStream>, FailedHandshake> {
        let config = self.certificate.current.load().config.clone();
        // rustls computes the server's answer in this call, before the first poll of the returned future.
        let answered = background.run(move || hello.into_stream(config)).await;
        let answered = answered.map_err(|error| FailedHandshake {
            error,
            stream: None,
        })?;
        let completed = answered.into_fallible().await;
        completed.map_err(|(error, stream)| FailedHandshake {
            error,
            stream: Some(stream),
        })
    }

    /// Takes a new certificate when the files have one. Runs until it is dropped. Files that cannot be used leave
    /// the last good certificate in place. Reports of each reading whether it worked, and when the certificate in use
    /// expires, as a time since the Unix epoch.
    pub(crate) async fn refresh(self, on_read: impl Fn(bool, Duration)) {
        let mut history = ReloadHistory::default();
        loop {
            let not_after = self.certificate.current.load().not_after;
            on_read(history.is_successful(), not_after);
            sleep(RELOAD_INTERVAL).await;
            if let Err(error) = self.reload_if_changed(&mut history) {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot reload the certificate: the last one stays in use"
                );
            }
        }
    }

    /// Reads the files again. Returns an error only when it is new, so that each failure is logged once.
    fn reload_if_changed(&self, history: &mut ReloadHistory) -> Result<(), TlsError> {
        let ReloadedCertificate { files, current } = &*self.certificate;
        let pem = match files.read() {
            Ok(pem) => pem,
            Err(error) => {
                history.failed_reads = history.failed_reads.saturating_add(1);
                let is_logged = history.failed_reads == FAILED_READS_LOGGED;
                return if is_logged { Err(error) } else { Ok(()) };
            }
        };
        history.failed_reads = 0;
        let digest = pem.digest();
        if history.refused == Some(digest) {
            return Ok(());
        }
        history.refused = None;
        if digest == current.load().digest {
            return Ok(());
        }
        let loaded = files.parse(&pem);
        current.store(Arc::new(
            loaded.inspect_err(|_| history.refused = Some(digest))?,
        ));
        info!(cert_file = %files.cert_file.display(), "certificate reloaded");
        Ok(())
    }
}

impl CertificateFiles {
    fn read(&self) -> Result<CertificatePem, TlsError> {
        let read = |path: &PathBuf| {
            Secret::read(path).map_err(|source| TlsError::Unreadable {
                path: path.clone(),
                source,
            })
        };
        Ok(CertificatePem {
            cert: read(&self.cert_file)?,
            key: read(&self.key_file)?,
        })
    }

    fn parse(&self, pem: &CertificatePem) -> Result<LoadedCertificate, TlsError> {
        let no_pem = |path: &PathBuf, what, source| {
            let path = path.clone();
            TlsError::NoPem { path, what, source }
        };
        let unusable = |source| TlsError::Unusable {
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            source,
        };
        let chain = CertificateDer::pem_slice_iter(pem.cert.expose())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| no_pem(&self.cert_file, "certificate", Some(error)))?;
        // Not parsed by the library, which would leave copies of the key in memory.
        let (label, key) = pem
            .key
            .pem(&PRIVATE_KEYS)
            .ok_or_else(|| no_pem(&self.key_file, "private key", None))?;
        let key = match label {
            "PRIVATE KEY" => PrivateKeyDer::Pkcs8(key.expose().into()),
            "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(key.expose().into()),
            _ => PrivateKeyDer::Sec1(key.expose().into()),
        };
        let not_after = expiry(chain.first().map_or(&[], AsRef::as_ref))
            .map_err(|_| rustls::CertificateError::BadEncoding.into())
            .map_err(unusable)?;
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
        Ok(LoadedCertificate {
            config: Arc::new(config),
            not_after,
            digest: pem.digest(),
        })
    }
}

/// The time since the Unix epoch at which the certificate expires.
fn expiry(certificate: &[u8]) -> x509_cert::der::Result<Duration> {
    let certificate = x509_cert::Certificate::from_der(certificate)?;
    let not_after = certificate.tbs_certificate.validity.not_after;
    Ok(not_after.to_unix_duration())
}

impl CertificatePem {
    fn digest(&self) -> [u8; 32] {
        let both = [&self.cert, &self.key].map(|secret| digest(&SHA256, secret.expose()));
        let both = both.each_ref().map(AsRef::as_ref).concat();
        let digest = digest(&SHA256, &both);
        digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("files", &self.certificate.files)
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

    use tokio::sync::mpsc::channel;

    use super::*;

    struct TestFiles(PathBuf, config::TlsSettings);

    impl TestFiles {
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

    impl Drop for TestFiles {
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
    fn a_new_certificate_replaces_the_last_and_a_broken_one_does_not() {
        let files = TestFiles::new("switchboard-tls");
        let ((old, old_key), (new, new_key)) = (pair(), pair());
        files.write(&old, &old_key);
        let tls = Tls::load(&files.1).unwrap().unwrap();
        let digest = || tls.certificate.current.load().digest;
        let first = digest();
        let mut history = ReloadHistory::default();
        let mut reload = || {
            tls.reload_if_changed(&mut history)
                .map_err(|error| error.to_string())
        };
        assert_eq!((reload(), digest()), (Ok(()), first));

        files.write(&new, &old_key);
        assert!(reload().unwrap_err().ends_with("cannot be used"));
        assert_eq!((reload(), digest()), (Ok(()), first), "it is logged once");
        files.write(&new, &new_key);
        assert_eq!(reload(), Ok(()));
        let second = digest();
        assert_ne!(second, first);

        let key = files.0.join("key.pem");
        fs::remove_file(&key).unwrap();
        let mut errors: Vec<_> = (0..20).filter_map(|_| reload().err()).collect();
        assert_eq!(
            (errors.pop(), errors.len()),
            (Some(key.display().to_string()), 0)
        );
        assert_eq!(digest(), second);
        // After a successful read, the next failure is new again.
        fs::write(&key, &new_key).unwrap();
        assert_eq!(reload(), Ok(()));
        fs::remove_file(&key).unwrap();
        assert_eq!((0..20).filter_map(|_| reload().err()).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn each_read_reports_its_success_and_the_expiry() {
        let files = TestFiles::new("switchboard-tls-reports");
        let key = KeyPair::generate().unwrap();
        let write = |year| {
            let mut cert = CertificateParams::new(["localhost".to_owned()]).unwrap();
            cert.not_after = rcgen::date_time_ymd(year, 1, 1);
            files.write(&cert.self_signed(&key).unwrap().pem(), &key.serialize_pem());
        };
        write(2031);
        let tls = Tls::load(&files.1).unwrap().unwrap();
        let (reports, mut reported) = channel(1);
        let refresh = tls.refresh(|successful, expiry| {
            reports.try_send((successful, expiry.as_secs())).unwrap();
        });
        let (in_2031, in_2032) = (1_924_992_000, 1_956_528_000);
        let checks = async {
            assert_eq!(reported.recv().await, Some((true, in_2031)));
            let begin = tokio::time::Instant::now();
            write(2032);
            assert_eq!(reported.recv().await, Some((true, in_2032)));
            assert_eq!(begin.elapsed().as_secs(), 10);
            fs::write(files.0.join("key.pem"), "x").unwrap();
            assert_eq!(reported.recv().await, Some((false, in_2032)));
            fs::remove_file(files.0.join("key.pem")).unwrap();
            assert_eq!(reported.recv().await, Some((false, in_2032)));
            write(2032);
            assert_eq!(reported.recv().await, Some((true, in_2032)));
        };
        tokio::select! {
            () = checks => {}
            () = refresh => unreachable!("it runs until it is dropped"),
        }
    }

    #[test]
    fn a_key_is_read_in_each_of_its_three_pem_forms() {
        let files = TestFiles::new("switchboard-tls-forms");
        let rsa = include_str!("../../tests/keys/rsa.pem");
        let rsa = KeyPair::from_pkcs8_pem_and_sign_algo(rsa, &PKCS_RSA_SHA256).unwrap();
        let ec = KeyPair::generate().unwrap();
        // PKCS #8 contains the other form behind this number of bytes.
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
    fn an_error_names_the_files_that_cannot_be_used() {
        let files = TestFiles::new("switchboard-tls-refused");
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
