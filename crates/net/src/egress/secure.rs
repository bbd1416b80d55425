//! TLS to the servers that a deployment stands on: its database and its Redis.
//!
//! **Forces.** Operators say how far to trust with the words of `sslmode`, which the drivers of
//! databases coined; a word that is taken and not honoured is worse than one that is refused.
//! **Choice.** Each word is one [`Trust`], and whoever presents a certificate that does not satisfy
//! it is not talked to.

use std::io;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls::{TlsError, provider, roots};

/// What a server must prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Nothing: who listens learns nothing, who stands in between learns all (`prefer`, and
    /// `require` without a root of its own).
    Anybody,
    /// That a root we trust vouches for it (`verify-ca`).
    Chain,
    /// That, and that it has the name we dialled (`verify-full`).
    Name,
}

/// Makes streams secure.
#[derive(Clone)]
pub struct Secure(TlsConnector);

impl std::fmt::Debug for Secure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secure(..)")
    }
}

impl Secure {
    /// Trusts the roots of the operating system and those of `extra_ca`, this far.
    ///
    /// # Errors
    /// [`TlsError`] when the roots cannot be read.
    pub fn new(trust: Trust, extra_ca: Option<&Path>) -> Result<Self, TlsError> {
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let algorithms = provider.signature_verification_algorithms;
        let config = match trust {
            Trust::Name => builder.with_root_certificates(roots(extra_ca)?),
            Trust::Anybody => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Lenient {
                    chain: None,
                    algorithms,
                })),
            Trust::Chain => {
                let roots = Arc::new(roots(extra_ca)?);
                let chain = WebPkiServerVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|error| rustls::Error::General(error.to_string()))?;
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(Lenient {
                        chain: Some(chain),
                        algorithms,
                    }))
            }
        };
        let config = Arc::new(config.with_no_client_auth());
        Ok(Self(TlsConnector::from(config)))
    }

    /// Speaks TLS with `host` over this stream.
    ///
    /// # Errors
    /// When the server does not, or does not prove what it must.
    pub async fn connect<S>(&self, host: &str, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not the name of a host"))?;
        self.0.connect(name, stream).await
    }
}

/// The roots of the operating system and those of `extra_ca`, as PEM, for a client that takes them
/// so.
///
/// # Errors
/// [`TlsError`] when they cannot be read.
pub fn trusted_pem(extra_ca: Option<&Path>) -> Result<Vec<u8>, TlsError> {
    let mut pem = Vec::new();
    for certificate in super::tls::trusted(extra_ca)? {
        pem.extend_from_slice(b"-----BEGIN CERTIFICATE-----\n");
        pem.extend_from_slice(STANDARD.encode(certificate).as_bytes());
        pem.extend_from_slice(b"\n-----END CERTIFICATE-----\n");
    }
    Ok(pem)
}

/// Checks less than everything, and what it checks as strictly as ever.
#[derive(Debug)]
struct Lenient {
    /// Who vouches; nobody has to when there is none.
    chain: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified =
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is looked at last, when everything else was in order.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::server_config;
    use crate::testing::authority;
    use tokio_rustls::TlsAcceptor;

    #[tokio::test]
    async fn a_server_is_talked_to_when_it_proves_what_it_must() {
        let dir = tempfile::tempdir().unwrap();
        authority(dir.path(), "ours");
        authority(dir.path(), "theirs");
        let file = |name: &str| dir.path().join(name);
        let (ours, theirs) = (file("ours-ca.pem"), file("theirs-ca.pem"));
        let server = server_config(&file("ours.pem"), &file("ours.key")).unwrap();
        for (trust, ca, host, talks) in [
            (Trust::Name, &ours, "localhost", true),
            (Trust::Name, &ours, "db.example", false),
            (Trust::Name, &theirs, "localhost", false),
            (Trust::Chain, &ours, "localhost", true),
            (Trust::Chain, &ours, "db.example", true),
            (Trust::Chain, &theirs, "localhost", false),
            (Trust::Anybody, &theirs, "db.example", true),
        ] {
            let (near, far) = tokio::io::duplex(16 * 1024);
            let acceptor = TlsAcceptor::from(server.clone());
            let secure = Secure::new(trust, Some(ca)).unwrap();
            let (connected, _) = tokio::join!(secure.connect(host, near), acceptor.accept(far));
            assert_eq!(connected.is_ok(), talks, "{trust:?} {host}: {connected:?}");
        }
    }

    #[test]
    fn the_roots_are_handed_on_whole() {
        let dir = tempfile::tempdir().unwrap();
        authority(dir.path(), "ours");
        let ca = dir.path().join("ours-ca.pem");
        let pem = trusted_pem(Some(&ca)).unwrap();
        let more = trusted_pem(None).unwrap();
        assert!(pem.len() > more.len());
    }
}
