//! TLS towards the registry: a pinned certificate or the system's roots (spec 05 section 2.3).

use crate::config::RegistryTls;
use pilot_proto::crypto::sha256;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::sync::Arc;

/// The client configuration for `trust`. Errors are mistakes of the configuration.
pub(crate) fn config(trust: &RegistryTls) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("registry TLS: {e}"))?;
    let config = match trust {
        RegistryTls::Pinned(fingerprint) | RegistryTls::PinnedOrSystem(fingerprint) => {
            if fingerprint.is_empty() {
                return Err("registry TLS with -registry-trust=pinned requires RegistryFingerprint".into());
            }
            let valid = fingerprint.len() == 64
                && fingerprint.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            if !valid {
                return Err(format!(
                    "registry fingerprint {fingerprint:?} is not 64 lower-case hex digits; take the SHA-256 of \
                     the certificate's DER form"
                ));
            }
            let or = match trust {
                RegistryTls::PinnedOrSystem(_) => roots().ok().and_then(|roots| {
                    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                        .build()
                        .ok()
                }),
                _ => None,
            };
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Pin { want: fingerprint.clone(), or, provider }))
                .with_no_client_auth()
        }
        RegistryTls::System => builder.with_root_certificates(roots()?).with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// The system's roots, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
fn roots() -> Result<rustls::RootCertStore, String> {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    match roots.is_empty() {
        false => Ok(roots),
        true => {
            Err("registry TLS: this system has no root certificates; install them or pin the registry's \
                     certificate"
                .into())
        }
    }
}

/// Trusts the leaf certificate whose SHA-256 is `want`, for which names, dates and chain do not count.
#[derive(Debug)]
struct Pin {
    want: String,
    /// Trusts others, too.
    or: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug, thiserror::Error)]
#[error("certificate fingerprint mismatch: got {got}, want {want}")]
struct Mismatch {
    got: String,
    want: String,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let got: String = sha256(leaf).iter().map(|b| format!("{b:02x}")).collect();
        if got == self.want {
            return Ok(ServerCertVerified::assertion());
        }
        if let Some(or) = &self.or
            && let Ok(verified) = or.verify_server_cert(leaf, intermediates, name, ocsp, now)
        {
            return Ok(verified);
        }
        let mismatch = Mismatch { got, want: self.want.clone() };
        Err(Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(mismatch)))))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The text of a failed TLS connect, without the wrapping of the layers between.
pub(crate) fn cause(error: &std::io::Error) -> String {
    if let Some(Error::InvalidCertificate(CertificateError::Other(other))) =
        error.get_ref().and_then(|e| e.downcast_ref::<Error>())
        && let Some(mismatch) = other.0.downcast_ref::<Mismatch>()
    {
        return mismatch.to_string();
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_malformed_fingerprint_is_refused() {
        let refuse = |f: &str| config(&RegistryTls::Pinned(f.into())).unwrap_err();
        assert_eq!(refuse(""), "registry TLS with -registry-trust=pinned requires RegistryFingerprint");
        assert!(refuse(&"AB".repeat(32)).contains("is not 64 lower-case hex digits"));
        assert!(config(&RegistryTls::Pinned("ab".repeat(32))).is_ok());
    }
}
