//! An RSA key made anew in every test process: no private key lies in the repository.

use std::sync::LazyLock;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use forrest_github::{GitHub, GitHubConfig};

/// The private key (PKCS #8, PEM).
pub static PEM: LazyLock<String> = LazyLock::new(|| {
    let pair = KeyPair::generate(KeySize::Rsa2048).expect("randomness for a key");
    let der: Pkcs8V1Der<'_> = pair.as_der().expect("a key encodes");
    let text = STANDARD.encode(der.as_ref());
    format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
});

/// A client for a server at `url`.
pub fn github(url: &str) -> GitHub {
    GitHub::new(config(url)).expect("a sound configuration")
}

pub fn config(url: &str) -> GitHubConfig {
    GitHubConfig {
        api_url: url.to_owned(),
        app_id: "1234".to_owned(),
        key_pem: PEM.clone().into(),
        user_agent: "forrest-tests".to_owned(),
        changes_per_minute: GitHubConfig::CHANGES_PER_MINUTE,
    }
}
