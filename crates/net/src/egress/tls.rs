//! TLS configurations. One provider (aws-lc-rs), TLS 1.2 or later, HTTP/1.1.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use caracal_model::Timestamp;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

/// The year 9999: no certificate is valid for longer.
const END_OF_TIME: Duration = Duration::from_secs(253_402_300_799);

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: is not a PEM bundle of {what}", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The library refuses the configuration.
    #[error("tls: {0}")]
    Config(#[from] rustls::Error),
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Trusts the roots of the operating system, and those of `extra_ca`
/// (`CARACAL_TLS_EXTRA_CA_FILE`): an absent file changes nothing, a bad one is an error, because a
/// half-read bundle would fail later and elsewhere.
///
/// # Errors
/// [`TlsError`].
pub fn client_config(extra_ca: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(extra_ca)?)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// What [`client_config`] trusts.
pub(super) fn roots(extra_ca: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let native = native();
    let (_, ignored) = roots.add_parsable_certificates(native);
    if ignored > 0 {
        tracing::warn!(ignored, "some system roots are unusable");
    }
    for certificate in extra(extra_ca)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// The certificates of [`roots`].
pub(super) fn trusted(extra_ca: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let mut usable = RootCertStore::empty();
    let mut trusted = native();
    // Whoever takes them may refuse them all for one that is odd.
    trusted.retain(|certificate| usable.add(certificate.clone()).is_ok());
    trusted.extend(extra(extra_ca)?);
    Ok(trusted)
}

fn native() -> Vec<CertificateDer<'static>> {
    let native = rustls_native_certs::load_native_certs();
    if !native.errors.is_empty() {
        let errors = native.errors.len();
        tracing::warn!(errors, "some system roots are unreadable");
    }
    native.certs
}

fn extra(path: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    match path.map(certificates) {
        None => Ok(Vec::new()),
        Some(Err(TlsError::File { source, .. })) if source.kind() == io::ErrorKind::NotFound => {
            Ok(Vec::new())
        }
        Some(extra) => extra,
    }
}

/// Serves with the certificate chain and the key of two PEM files.
///
/// # Errors
/// [`TlsError`].
pub fn server_config(chain: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(chain)?;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| TlsError::Pem {
        path: key.to_owned(),
        what: "a private key",
    })?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// When the certificate of a chain, the first in the PEM file, ceases to be valid.
///
/// # Errors
/// [`TlsError`].
pub fn expiry(chain: &Path) -> Result<Timestamp, TlsError> {
    let unreadable = || TlsError::Pem {
        path: chain.to_owned(),
        what: "certificates",
    };
    let chained = certificates(chain)?;
    let first = chained.first().ok_or_else(unreadable)?;
    let parsed = ParsedCertificate::try_from(first)?;
    // Asked whether it holds at the end of time, the library says until when it does; it looks at
    // that before it looks for whom to trust.
    let judged = verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &RootCertStore::empty(),
        &[],
        UnixTime::since_unix_epoch(END_OF_TIME),
        provider().signature_verification_algorithms.all,
    );
    match judged {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            not_after,
            ..
        })) => {
            let seconds = i64::try_from(not_after.as_secs()).unwrap_or(i64::MAX);
            Ok(Timestamp::from_unix_seconds(seconds))
        }
        Err(error) => Err(error.into()),
        Ok(()) => Err(unreadable()),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let bundle: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match bundle {
        Ok(bundle) if !bundle.is_empty() => Ok(bundle),
        _ => Err(TlsError::Pem {
            path: path.to_owned(),
            what: "certificates",
        }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "openssl made it by the real clock"
    )]
    fn a_certificate_says_until_when_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        crate::testing::authority(dir.path(), "own");
        let path = dir.path().join("own.pem");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = i64::try_from(now.unwrap().as_secs()).unwrap();
        let left = expiry(&path).unwrap().unix_seconds() - now;
        // Made for two days.
        assert!((86_400..=2 * 86_400).contains(&left), "{left}");
        std::fs::write(&path, "nothing").unwrap();
        assert!(matches!(expiry(&path), Err(TlsError::Pem { .. })));
    }

    #[test]
    fn an_absent_extra_bundle_changes_nothing_and_a_bad_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("extra.pem");
        assert!(client_config(Some(&path)).is_ok());
        std::fs::write(&path, "not a certificate").unwrap();
        assert!(matches!(
            client_config(Some(&path)),
            Err(TlsError::Pem { .. })
        ));
    }
}
