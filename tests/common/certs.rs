//! Certificates made for a test: an authority of its own, and what it signs.
#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use litestream::serve::TlsFiles;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Somebody whose signature a client may trust.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub pem: String,
}

/// A certificate and its key, in PEM.
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "tests");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for these names and addresses.
    pub fn sign(&self, names: &[&str]) -> Pair {
        self.sign_until(names, 2100)
    }

    /// The same, good until the begin of a year.
    pub fn sign_until(&self, names: &[&str], year: i32) -> Pair {
        let (params, key) = leaf(names, year);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }

    /// Its own certificate and key, as if it were a server.
    pub fn itself(&self) -> Pair {
        Pair { cert: self.pem.clone(), key: self.issuer.key().serialize_pem() }
    }

    /// What trusts it and nobody else.
    pub fn client(&self) -> Arc<rustls::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

/// A certificate that vouches for itself.
pub fn self_signed(names: &[&str]) -> Pair {
    let (params, key) = leaf(names, 2100);
    Pair { cert: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

fn leaf(names: &[&str], year: i32) -> (CertificateParams, KeyPair) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(year, 1, 1);
    (params, KeyPair::generate().unwrap())
}

impl Pair {
    /// Writes both into a folder, as an editor or a renewal would: over what is there.
    pub fn write(&self, folder: &Path) -> TlsFiles {
        let (cert, key) = paths(folder);
        std::fs::write(&cert, &self.cert).unwrap();
        std::fs::write(&key, &self.key).unwrap();
        TlsFiles { cert, key }
    }
}

fn paths(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join("cert.pem"), folder.join("key.pem"))
}
