//! The App's own identity: its id, its private key, and the short-lived JWTs signed with it.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use forrest_core::model::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use crate::GitHubError;

/// A JWT is dated back by this much, so that a clock slightly ahead does no harm.
const ISSUED_BEFORE: Duration = Duration::from_secs(60);

/// A JWT is good for this long from now; GitHub accepts at most 10 minutes.
const GOOD_FOR: Duration = Duration::from_secs(9 * 60);

/// A JWT is used again for this long.
const REUSED_FOR: Duration = Duration::from_secs(7 * 60);

/// Signs as the App.
pub(crate) struct AppKey {
    issuer: Issuer,
    key: EncodingKey,
    last: Mutex<Option<Signed>>,
}

struct Signed {
    jwt: SecretString,
    made_at: Timestamp,
}

/// An App's id is a number; a client id is a text. GitHub takes both.
#[derive(Serialize)]
#[serde(untagged)]
enum Issuer {
    AppId(u64),
    ClientId(String),
}

#[derive(Serialize)]
struct Claims<'a> {
    iat: u64,
    exp: u64,
    iss: &'a Issuer,
}

impl AppKey {
    /// Reads the key (PEM, PKCS #1 as GitHub hands it out, or PKCS #8).
    ///
    /// # Errors
    /// [`GitHubError::Config`] where the id is empty or the key is no RSA key in PEM form, without
    /// any of its content.
    pub(crate) fn new(app_id: &str, pem: &SecretString) -> Result<Self, GitHubError> {
        let app_id = app_id.trim();
        if app_id.is_empty() {
            return Err(GitHubError::Config("the App's id is empty".to_owned()));
        }
        let issuer = match app_id.parse() {
            Ok(number) => Issuer::AppId(number),
            Err(_) => Issuer::ClientId(app_id.to_owned()),
        };
        // The library's own words could quote the input: say it without them.
        let key =
            EncodingKey::from_rsa_pem(pem.expose_secret().as_bytes()).map_err(|_| no_key())?;
        let app_key = Self { issuer, key, last: Mutex::new(None) };
        // A key can be well-formed and still useless: find out now, not at the first job.
        app_key.sign(Timestamp(0))?;
        Ok(app_key)
    }

    /// A JWT that is good at `now` and for some minutes more.
    ///
    /// # Errors
    /// [`GitHubError::Config`] where the key cannot sign.
    pub(crate) fn jwt(&self, now: Timestamp) -> Result<SecretString, GitHubError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signed) = &*last
            && now >= signed.made_at
            && now.since(signed.made_at) < REUSED_FOR
        {
            return Ok(signed.jwt.clone());
        }
        let jwt = self.sign(now)?;
        *last = Some(Signed { jwt: jwt.clone(), made_at: now });
        Ok(jwt)
    }

    fn sign(&self, now: Timestamp) -> Result<SecretString, GitHubError> {
        let now_s = now.0 / 1000;
        let claims = Claims {
            iat: now_s.saturating_sub(ISSUED_BEFORE.as_secs()),
            exp: now_s + GOOD_FOR.as_secs(),
            iss: &self.issuer,
        };
        jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &self.key)
            .map(SecretString::from)
            .map_err(|_| no_key())
    }
}

fn no_key() -> GitHubError {
    GitHubError::Config(
        "the App's key is not a usable RSA private key in PEM form; generate a new one in the \
         App's settings under \"Private keys\" and point github.jwt_key_file at it"
            .to_owned(),
    )
}

/// Shows whose key it is and nothing of the key.
impl fmt::Debug for AppKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("AppKey");
        match &self.issuer {
            Issuer::AppId(id) => debug.field("issuer", id),
            Issuer::ClientId(id) => debug.field("issuer", id),
        };
        debug.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};
    use serde_json::Value;

    use super::*;
    use crate::test_key::TEST_KEY;

    fn claims(jwt: &SecretString) -> Value {
        let key =
            DecodingKey::from_rsa_pem(TEST_KEY.public_pem.as_bytes()).expect("a sound public key");
        let mut validation = Validation::new(Algorithm::RS256);
        validation.validate_exp = false;
        jsonwebtoken::decode::<Value>(jwt.expose_secret(), &key, &validation)
            .expect("a JWT that the public key accepts")
            .claims
    }

    #[test]
    fn a_jwt_is_dated_back_and_short_lived() {
        let key = AppKey::new("1234", &TEST_KEY.private_pem.clone().into()).expect("a sound key");
        let claims = claims(&key.jwt(Timestamp(1_000_000_999)).expect("a JWT"));
        assert_eq!(claims["iat"], 1_000_000 - 60);
        assert_eq!(claims["exp"], 1_000_000 + 540);
        assert_eq!(claims["iss"], 1234, "an App id goes out as a number");
    }

    #[test]
    fn a_client_id_goes_out_as_text() {
        let key = AppKey::new("Iv1.ab1112223334445c", &TEST_KEY.private_pem.clone().into())
            .expect("a sound key");
        assert_eq!(claims(&key.jwt(Timestamp(0)).expect("a JWT"))["iss"], "Iv1.ab1112223334445c");
    }

    #[test]
    fn both_pem_forms_are_taken() {
        for pem in [&TEST_KEY.private_pem, &TEST_KEY.private_pem_pkcs1] {
            let key = AppKey::new("7", &pem.clone().into()).expect("a sound key");
            assert_eq!(claims(&key.jwt(Timestamp(0)).expect("a JWT"))["iss"], 7);
        }
    }

    #[test]
    fn a_jwt_is_used_again_while_it_is_young() {
        let key = AppKey::new("1", &TEST_KEY.private_pem.clone().into()).expect("a sound key");
        let at = |ms| claims(&key.jwt(Timestamp(ms)).expect("a JWT"))["iat"].clone();
        let first = at(10_000_000);
        assert_eq!(at(10_100_000), first);
        assert_ne!(at(10_000_000 + 420_000), first, "too old");
        assert_eq!(at(9_000_000), 9_000 - 60, "the clock went back: sign again");
    }

    #[test]
    fn a_broken_key_is_refused_without_showing_it() {
        for pem in [
            "",
            "TOPSECRET",
            "-----BEGIN RSA PRIVATE KEY-----\nVE9QU0VDUkVU\n-----END RSA PRIVATE KEY-----\n",
        ] {
            let error = AppKey::new("1", &pem.into()).expect_err("no key").to_string();
            assert!(error.contains("jwt_key_file") && !error.contains("SECRET"), "{error}");
        }
        let key = AppKey::new("1", &TEST_KEY.private_pem.clone().into()).expect("a sound key");
        assert_eq!(format!("{key:?}"), "AppKey { issuer: 1, .. }");
    }
}
