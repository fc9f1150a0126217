//! Certificates (spec 05 section 2.3).

use crate::config::{StoreConfig, Tls};
use crate::server::StartError;
use pilot_disk::Disk;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

fn fail(path: &Path, reason: impl ToString) -> StartError {
    StartError::Tls { path: path.to_owned(), reason: reason.to_string() }
}

/// Names of the kept certificate and key.
fn kept(store: &Path) -> (PathBuf, PathBuf) {
    let with = |suffix: &str| {
        let mut name = store.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    (with(".cert.pem"), with(".key.pem"))
}

/// A certificate for localhost, which clients pin by its fingerprint; and its key, both PEM.
fn make(path: &Path) -> Result<(String, String), StartError> {
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut params = rcgen::CertificateParams::new(names).map_err(|e| fail(path, e))?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "Pilot Protocol");
    params.key_usages =
        vec![rcgen::KeyUsagePurpose::DigitalSignature, rcgen::KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    // The fingerprint is what clients check; it must not change because a date passed.
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2124, 1, 1);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|e| fail(path, e))?;
    let cert = params.self_signed(&key).map_err(|e| fail(path, e))?;
    Ok((cert.pem(), key.serialize_pem()))
}

/// Writes a file that only this user can read, durably.
fn write_private(path: &Path, text: &str) -> Result<(), StartError> {
    Disk::new().replace(path, text.as_bytes()).map_err(|e| fail(path, e))
}

fn read(path: &Path) -> Result<String, StartError> {
    std::fs::read_to_string(path).map_err(|e| fail(path, e))
}

/// The acceptor and the fingerprint of its leaf certificate; `None` if TLS is off.
pub(crate) fn acceptor(tls: &Tls, store: &StoreConfig) -> Result<Option<(TlsAcceptor, String)>, StartError> {
    let (cert_path, key_path, cert, key) = match (tls, store) {
        (Tls::Off, _) => return Ok(None),
        (Tls::Files { cert, key }, _) => (cert.clone(), key.clone(), read(cert)?, read(key)?),
        (Tls::SelfSigned, StoreConfig::Memory) => {
            let path = PathBuf::from("(self-signed)");
            let (cert, key) = make(&path)?;
            (path.clone(), path, cert, key)
        }
        (Tls::SelfSigned, StoreConfig::File(store)) => {
            let (cert_path, key_path) = kept(store);
            if !(cert_path.exists() && key_path.exists()) {
                let (cert, key) = make(&cert_path)?;
                write_private(&key_path, &key)?;
                write_private(&cert_path, &cert)?;
            }
            let (cert, key) = (read(&cert_path)?, read(&key_path)?);
            (cert_path, key_path, cert, key)
        }
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(cert.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| fail(&cert_path, format!("no PEM certificate: {e}")))?;
    let leaf = chain.first().ok_or_else(|| fail(&cert_path, "holds no certificate"))?;
    let digest = pilot_proto::crypto::sha256(leaf);
    let fingerprint: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|e| fail(&key_path, format!("no PEM private key: {e}")))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| fail(&cert_path, e))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| fail(&cert_path, e))?;
    Ok(Some((TlsAcceptor::from(Arc::new(config)), fingerprint)))
}
