//! Which servers a client of this process trusts, as settings of TLS by rustls with *ring*, 1.2 and 1.3.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::WebPkiSupportedAlgorithms;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    self, ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme,
    WantsVerifier, crypto,
};

/// Which servers a client of this process trusts.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// Servers with a certificate that the system's authorities signed.
    System,
    /// Servers with a certificate that an authority in this file signed.
    Authorities(&'a Path),
    /// The server that has the certificate in this file. The names in the certificate do not matter,
    /// because the server is asked by an address that they need not include.
    Certificate(&'a Path),
}

/// Why a client cannot check servers.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The certificate's file has none.
    #[error("{path}: has no certificate in PEM")]
    Certificate {
        /// The file's name.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// The system has no certificates of authorities.
    #[error("the system has no certificates to check a server by")]
    NoRoots(#[source] io::Error),
}

impl Trust<'_> {
    /// The TLS settings of a client that trusts these servers.
    pub(crate) fn client_config(self) -> Result<ClientConfig, TrustError> {
        let config = client_config();
        let algorithms = config.crypto_provider().signature_verification_algorithms;
        let config = match self {
            Self::Authorities(path) => config.with_root_certificates(authorities(path)?),
            Self::System => config.with_native_roots().map_err(TrustError::NoRoots)?,
            Self::Certificate(path) => {
                let certificate = CertificateDer::from_pem_file(path);
                let certificate = certificate.map_err(|error| unusable(path, error))?;
                let pinned = Arc::new(PinnedCertificate {
                    certificate,
                    algorithms,
                });
                config.dangerous().with_custom_certificate_verifier(pinned)
            }
        };
        Ok(config.with_no_client_auth())
    }
}

/// The certificates in a file; at least one.
fn authorities(path: &Path) -> Result<RootCertStore, TrustError> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates: Vec<_> = certificates.map_err(|error| unusable(path, error))?;
    let mut authorities = RootCertStore::empty();
    // Like the system's, a file may have certificates that cannot sign others.
    let (added, _ignored) = authorities.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(unusable(path, pem::Error::NoItemsFound));
    }
    Ok(authorities)
}

fn unusable(path: &Path, source: pem::Error) -> TrustError {
    let path = path.to_owned();
    TrustError::Certificate { path, source }
}

/// The TLS settings of a client that trusts no server.
pub(crate) fn no_server() -> ClientConfig {
    client_config()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

fn client_config() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has suites for TLS 1.2 and 1.3")
}

/// Accepts one certificate and no other.
#[derive(Debug)]
struct PinnedCertificate {
    certificate: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinnedCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::CertificateError::UnknownIssuer.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
