//! Who asks: App tokens (JWT) and installation tokens.
//!
//! App tokens are checked by hand on purpose: the client under test uses a library, and one mistake
//! of that library must not be made here too.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::reply::Reply;
use crate::model::{AppId, InstallationId, Moment, Payer, Permissions, Selection, World, grants};

/// The farthest that a token's `exp` may lie ahead, in seconds.
const MAX_JWT_LIFETIME_S: u64 = 600;

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) enum Principal {
    /// Nobody in particular.
    Anonymous,
    /// The App itself.
    App(AppId),
    /// An installation.
    Installation {
        id: InstallationId,
        token: String,
        selection: Selection,
        permissions: Permissions,
    },
}

impl Principal {
    /// Whose budget pays for the request.
    pub(crate) const fn payer(&self) -> Payer {
        match self {
            Self::Anonymous => Payer::Anonymous,
            Self::App(id) => Payer::App(*id),
            Self::Installation { id, .. } => Payer::Installation(*id),
        }
    }

    /// The App, when it asks as itself.
    pub(crate) fn app(&self) -> Result<AppId, Reply> {
        match self {
            Self::App(id) => Ok(*id),
            Self::Anonymous | Self::Installation { .. } => {
                Err(Reply::unauthorized("A JSON web token could not be decoded"))
            }
        }
    }

    /// Refuses who does not hold the permission.
    pub(crate) fn require(&self, permission: &str, access: &str) -> Result<(), Reply> {
        match self {
            Self::Installation { permissions, .. } if grants(permissions, permission, access) => {
                Ok(())
            }
            Self::Installation { .. } => {
                Err(Reply::forbidden("Resource not accessible by integration"))
            }
            Self::Anonymous => Err(Reply::unauthorized("Requires authentication")),
            Self::App(_) => Err(Reply::unauthorized("Bad credentials")),
        }
    }
}

/// Reads the `Authorization` header. `now` is the time by the API's clock.
pub(crate) fn principal(
    world: &World,
    header: Option<&str>,
    now: Moment,
) -> Result<Principal, Reply> {
    let Some(header) = header else {
        return Ok(Principal::Anonymous);
    };
    let bad = || Reply::unauthorized("Bad credentials");
    let (scheme, token) = header.split_once(' ').ok_or_else(bad)?;
    if !["bearer", "token"].contains(&scheme.to_lowercase().as_str()) {
        return Err(bad());
    }
    if token.split('.').count() == 3 {
        return app_of(world, token, now).map(Principal::App);
    }
    let known = world.tokens.get(token).ok_or_else(bad)?;
    if now < known.valid_from || now >= known.expires_at {
        return Err(bad());
    }
    let installation = world.installations.get(&known.installation).ok_or_else(bad)?;
    if installation.suspended_at.is_some() {
        return Err(Reply::forbidden("This installation has been suspended"));
    }
    Ok(Principal::Installation {
        id: installation.id,
        token: token.to_owned(),
        selection: known.selection.clone(),
        permissions: known.permissions.clone(),
    })
}

/// The App that signed the token, if everything about it is right.
fn app_of(world: &World, token: &str, now: Moment) -> Result<AppId, Reply> {
    let undecodable = || Reply::unauthorized("A JSON web token could not be decoded");
    let (signed, signature) = token.rsplit_once('.').ok_or_else(undecodable)?;
    let (header, claims) = signed.split_once('.').ok_or_else(undecodable)?;
    let part = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| undecodable());
    let object = |text: &str| -> Result<Value, Reply> {
        serde_json::from_slice(&part(text)?).map_err(|_| undecodable())
    };
    if object(header)?["alg"] != "RS256" {
        return Err(undecodable());
    }
    let claims = object(claims)?;
    let issuer = match &claims["iss"] {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return Err(Reply::unauthorized("'Issuer' claim ('iss') must be present")),
    };
    let app = world
        .apps
        .values()
        .find(|app| app.client_id == issuer || app.id.to_string() == issuer)
        .ok_or_else(Reply::not_found_integration)?;
    if !app.key.signed(signed.as_bytes(), &part(signature)?) {
        return Err(undecodable());
    }
    check_times(&claims, now)?;
    Ok(app.id)
}

fn check_times(claims: &Value, now: Moment) -> Result<(), Reply> {
    let expires = claims["exp"].as_u64().ok_or_else(|| {
        Reply::unauthorized(
            "'Expiration time' claim ('exp') must be a numeric value representing the future time \
             at which the assertion expires",
        )
    })?;
    if expires <= now.secs() {
        return Err(Reply::unauthorized(
            "'Expiration time' claim ('exp') must be a numeric value representing the future time \
             at which the assertion expires",
        ));
    }
    if expires > now.secs() + MAX_JWT_LIFETIME_S {
        return Err(Reply::unauthorized(
            "'Expiration time' claim ('exp') is too far in the future",
        ));
    }
    if claims["iat"].as_u64().is_none_or(|issued| issued > now.secs()) {
        return Err(Reply::unauthorized(
            "'Issued at' claim ('iat') must be an Integer representing the time that the assertion \
             was issued",
        ));
    }
    Ok(())
}

impl Reply {
    fn not_found_integration() -> Self {
        Self::error(hyper::StatusCode::NOT_FOUND, "Integration not found")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_clock_decides_on_a_token() {
        let now = Moment(1_700_000_000_000_000);
        let at = |iat: i64, exp: i64| {
            let secs = 1_700_000_000_i64;
            check_times(&json!({"iat": secs + iat, "exp": secs + exp}), now)
        };
        assert!(at(-60, 540).is_ok());
        assert!(at(0, 600).is_ok());
        for (iat, exp) in [(1, 540), (-60, 0), (-60, 601), (-900, -300)] {
            assert!(at(iat, exp).is_err(), "iat {iat}, exp {exp} was accepted");
        }
        assert!(check_times(&json!({"exp": 1_700_000_100}), now).is_err());
    }
}
