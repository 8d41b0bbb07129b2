//! The RSA key pair of a GitHub App: generating, reading and writing it as PEM, checking signatures.

use std::sync::OnceLock;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::SimError;

/// An App's key pair.
#[derive(Clone)]
pub struct AppKey {
    pem: String,
    public: Vec<u8>,
}

/// Shows nothing of the key.
impl std::fmt::Debug for AppKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AppKey(…)")
    }
}

impl AppKey {
    /// Makes a new pair of 2048 bits, as GitHub does.
    ///
    /// # Errors
    /// [`SimError::Key`] when the system has no random numbers.
    pub fn generate() -> Result<Self, SimError> {
        let failed = |_| SimError::Key("generating a key pair failed");
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(failed)?;
        let pkcs8: Pkcs8V1Der<'_> = pair.as_der().map_err(failed)?;
        let pkcs1 = pkcs1_of(pkcs8.as_ref()).ok_or(SimError::Key("its DER form is unknown"))?;
        Ok(Self { pem: to_pem(pkcs1), public: pair.public_key().as_ref().to_vec() })
    }

    /// A pair that is made once per process: generating one takes long enough to be felt.
    ///
    /// # Errors
    /// As [`AppKey::generate`].
    pub fn shared() -> Result<Self, SimError> {
        static SHARED: OnceLock<AppKey> = OnceLock::new();
        if let Some(key) = SHARED.get() {
            return Ok(key.clone());
        }
        let key = Self::generate()?;
        Ok(SHARED.get_or_init(|| key).clone())
    }

    /// Reads a private key: PEM, PKCS#1 (what GitHub hands out) or PKCS#8.
    ///
    /// # Errors
    /// [`SimError::Key`] when it is neither.
    pub fn from_pem(pem: &str) -> Result<Self, SimError> {
        let text: String = pem.lines().map(str::trim).filter(|l| !l.starts_with("-----")).collect();
        let der = STANDARD.decode(text).map_err(|_| SimError::Key("it is not PEM"))?;
        let pair = KeyPair::from_der(&der)
            .or_else(|_| KeyPair::from_pkcs8(&der))
            .map_err(|_| SimError::Key("it is no RSA key of 2048 bits or more"))?;
        Ok(Self { pem: pem.to_owned(), public: pair.public_key().as_ref().to_vec() })
    }

    /// The private key as GitHub hands it out: PEM, PKCS#1.
    pub fn private_pem(&self) -> &str {
        &self.pem
    }

    /// Whether this key signed the message with RS256.
    pub(crate) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.public)
            .verify(message, signature)
            .is_ok()
    }
}

fn to_pem(pkcs1: &[u8]) -> String {
    let text = STANDARD.encode(pkcs1);
    let mut pem = String::from("-----BEGIN RSA PRIVATE KEY-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|b| char::from(*b)));
        pem.push('\n');
    }
    pem.push_str("-----END RSA PRIVATE KEY-----\n");
    pem
}

/// The RSA key inside a PKCS#8 envelope (RFC 5208): SEQUENCE { version, algorithm, OCTET STRING }.
fn pkcs1_of(pkcs8: &[u8]) -> Option<&[u8]> {
    let (0x30, inside, _) = element(pkcs8)? else { return None };
    let (0x02, _, rest) = element(inside)? else { return None };
    let (0x30, _, rest) = element(rest)? else { return None };
    let (0x04, key, _) = element(rest)? else { return None };
    Some(key)
}

/// The first DER element of `der`: tag, content, what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (len, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.len() > 4 {
            return None;
        }
        (digits.iter().fold(0, |len, digit| (len << 8) | usize::from(*digit)), rest)
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_pem() {
        let key = AppKey::shared().expect("a key");
        let again = AppKey::from_pem(key.private_pem()).expect("its own PEM");
        assert_eq!(key.public, again.public);
        assert!(key.private_pem().starts_with("-----BEGIN RSA PRIVATE KEY-----\nMII"));
        assert!(AppKey::from_pem("-----BEGIN X-----\nAAAA\n-----END X-----").is_err());
        assert!(!format!("{key:?}").contains("MII"));
    }
}
