//! Whom a client believes: roots from a file, and what is wrong with a server's certificate, in
//! words that say what to do.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::{CertificateError, InvalidMessage};
use ureq::tls::{Certificate, PemItem, parse_pem};

use crate::error::{Context, Error, Result};
use crate::files::read_small_file;

/// Certificates trusted for https.
pub type Roots = Arc<Vec<Certificate<'static>>>;

/// A file with all public roots there are is a tenth of this.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Reads the roots to trust from a PEM file.
pub fn read_roots(path: &Path) -> Result<Roots> {
    let what = || format!("cannot read the certificates in {}", path.display());
    let (text, _) = read_small_file(path, FILE_BYTES_MAX).context(what)?;
    let mut roots = Vec::new();
    for item in parse_pem(&text) {
        // The library's words quote the file, and somebody's key may be in it.
        let item = item.map_err(|_| Error::usage("it is damaged")).context(what)?;
        if let PemItem::Certificate(root) = item {
            roots.push(root);
        }
    }
    if roots.is_empty() {
        return Err(Error::usage(format!("{} holds no PEM certificate", path.display())));
    }
    Ok(Arc::new(roots))
}

/// What TLS has to complain of, if it is that what an error is about.
pub fn complaint(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidCertificate(why) => of_certificate(why),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "it does not speak TLS there: does the URL begin with http://?".to_owned()
        }
        other => format!("TLS failed: {other}"),
    })
}

/// Whether trying again will not mend it: the other side has no certificate that can be trusted, or
/// does not speak TLS.
pub fn is_lasting(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(
        error,
        Some(
            rustls::Error::InvalidCertificate(_)
                | rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)
        )
    )
}

fn of_certificate(why: &CertificateError) -> String {
    match why {
        // The signature does not fit when another authority has the same name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "nobody trusted here has signed its certificate: name the PEM file of who has, or of \
             the certificate if it signed itself, in the option \"ca\""
                .to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired: renew it there, or set this machine's clock".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet: set this machine's clock, or that of who made it"
                .to_owned()
        }
        CertificateError::NotValidForName => {
            "its certificate is for another name than the URL's".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let presented: Vec<&str> = presented.iter().take(4).map(String::as_str).collect();
            let names = presented.join(", ");
            let names: String = names.chars().filter(|c| !c.is_control()).take(200).collect();
            let names = if names.is_empty() { "no name at all".to_owned() } else { names };
            format!(
                "its certificate is for {names}, not for {}: use its name in the URL, or have one \
                 made for this one",
                expected.to_str()
            )
        }
        // A certificate made with openssl req -x509 and nothing more.
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "its certificate is that of an authority, not of a server: make it with \
             basicConstraints=CA:FALSE"
                .to_owned()
        }
        other => format!("its certificate is not accepted: {other}"),
    }
}
