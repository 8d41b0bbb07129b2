//! An RSA key for the tests, made anew in every test process: no private key lies in the repository.

use std::sync::LazyLock;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// One key in the forms that the tests need.
pub(crate) struct TestKey {
    /// PKCS #8.
    pub(crate) private_pem: String,
    /// PKCS #1, as GitHub hands it out.
    pub(crate) private_pem_pkcs1: String,
    /// X.509 SubjectPublicKeyInfo.
    pub(crate) public_pem: String,
}

pub(crate) static TEST_KEY: LazyLock<TestKey> = LazyLock::new(|| {
    let pair = KeyPair::generate(KeySize::Rsa2048).expect("randomness for a key");
    let private: Pkcs8V1Der<'_> = pair.as_der().expect("a key encodes");
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("a key encodes");
    TestKey {
        private_pem: pem("PRIVATE KEY", private.as_ref()),
        // PKCS #8 wraps PKCS #1 in a header of this size for an RSA key of 2048 bits.
        private_pem_pkcs1: pem("RSA PRIVATE KEY", &private.as_ref()[26..]),
        public_pem: pem("PUBLIC KEY", public.as_ref()),
    }
});

fn pem(kind: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {kind}-----\n");
    for line in STANDARD.encode(der).as_bytes().chunks(64) {
        text.extend(line.iter().map(|b| char::from(*b)));
        text.push('\n');
    }
    text + "-----END " + kind + "-----\n"
}
