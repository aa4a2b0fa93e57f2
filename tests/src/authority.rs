//! An authority whose certificates a test uses, and nobody else trusts.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// An authority that keeps its certificates in a folder.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
    name: String,
}

impl Authority {
    /// Makes one.
    pub fn new(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key)?;
        let authority =
            Self { issuer: Issuer::new(params, key), folder: folder.to_owned(), name: name.to_owned() };
        std::fs::write(authority.certificate(), certificate.pem())?;
        Ok(authority)
    }

    /// Its own certificate, which is to be trusted.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join(format!("{}.pem", self.name))
    }

    /// Makes a certificate for a server with these names or addresses, or for a client: its file, and that of its key.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> anyhow::Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate()?;
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let path = |ending: &str| self.folder.join(format!("{}-{name}.{ending}", self.name));
        std::fs::write(path("pem"), certificate.pem())?;
        std::fs::write(path("key"), key.serialize_pem())?;
        Ok((path("pem"), path("key")))
    }
}
