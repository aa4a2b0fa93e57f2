//! TLS to NATS: whom we trust, and with what we show who we are.
//!
//! The files are read for every connection, so that a certificate which was renewed is used from the next one on.

use std::error::Error as StdError;
use std::io;
use std::path::Path;

use anyhow::{Context as _, ensure};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, ClientConfig, Error as TlsError, RootCertStore};

use crate::config::NatsConfig;

/// What a connection with TLS is made with.
///
/// Trusts the authority of `--nats-ca` alone; whom this machine trusts, if none is named. Errors name the file.
pub fn client_config(config: &NatsConfig) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &config.nats_ca {
        for certificate in certificates(path)? {
            roots.add(certificate).with_context(|| format!("{} cannot be trusted", path.display()))?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        ensure!(
            !roots.is_empty(),
            "this machine trusts nobody, as it has no root certificates: name an authority with --nats-ca"
        );
    }
    // An error only says that one is installed already; without any, the builder panics.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = ClientConfig::builder().with_root_certificates(roots);
    match (&config.nats_cert, &config.nats_key) {
        (Some(cert), Some(key)) => {
            let shown = PrivateKeyDer::from_pem_file(key)
                .with_context(|| format!("{} holds no key", key.display()))?;
            builder.with_client_auth_cert(certificates(cert)?, shown).with_context(|| {
                format!("the certificate {} and the key {} do not fit", cert.display(), key.display())
            })
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let certificates = read().with_context(|| format!("{} cannot be read", path.display()))?;
    ensure!(!certificates.is_empty(), "{} holds no certificate", path.display());
    Ok(certificates)
}

/// What is wrong for good with TLS, and what to do; `None` if the error is of another kind.
///
/// A server that is starting, or stopping, breaks a handshake off without a reason: that is not meant.
pub fn refusal(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(refusal) = error.downcast_ref::<TlsError>() {
            return told(refusal);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(refusal) = inner.and_then(|inner| inner.downcast_ref::<TlsError>()) {
            return told(refusal);
        }
        cause = error.source();
    }
    None
}

fn told(error: &TlsError) -> Option<String> {
    match error {
        TlsError::InvalidCertificate(why) => Some(format!(
            "its certificate is not trusted ({why}): name the authority that signed it with --nats-ca, and the server \
             as its certificate does"
        )),
        TlsError::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied,
        ) => Some(
            "it does not accept our certificate, or the lack of one: check --nats-cert and --nats-key"
                .to_owned(),
        ),
        // What a server without TLS says is no part of a handshake.
        TlsError::InvalidMessage(_) => Some(
            "it does not speak TLS: set that up there, or leave out --nats-ca, --nats-cert and tls://"
                .to_owned(),
        ),
        _ => None,
    }
}
