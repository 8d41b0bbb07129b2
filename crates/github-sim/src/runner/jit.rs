//! JIT configs: what `generate-jitconfig` hands out and the runner reads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::error::SimError;
use crate::model::{Runner, World};

/// A JIT config as GitHub's are: base64 of a JSON map from file names to base64 contents.
///
/// Before that stands, in characters of base64 but not encoded, what GitHub's have not: the simulator's
/// address, `PORT/HOST/` with `+` for each dot, filled up with slashes. The stand-in need not decode anything.
pub(crate) fn jit_config(world: &World, runner: &Runner, work_folder: &str) -> String {
    let text = |text: &str| Value::from(text).to_string();
    let repo = world.repositories.get(&runner.repository);
    let html = format!(
        "{}/{}",
        world.settings.html_url,
        repo.map(crate::model::Repository::full_name).unwrap_or_default()
    );
    let own = format!(
        r#"{{"ServerUrl":{},"Token":{},"AgentId":"{}","AgentName":{},"PoolId":"1","PoolName":"Default","GitHubUrl":{},"WorkFolder":{},"Ephemeral":"True","UseV2Flow":"True"}}"#,
        text(&world.settings.runner_url),
        text(&runner.secret),
        runner.id,
        text(&runner.name),
        text(&html),
        text(work_folder),
    );
    let address = &world.settings.runner_url;
    let address = address.strip_prefix("http://").unwrap_or(address);
    let credentials = json!({
        "scheme": "OAuth",
        "data": {"clientId": runner.id.to_string(), "requireFipsCryptography": "True"},
    });
    // The real one has an RSA key here; the stand-in has its token.
    let parameters = json!({"exponent": "AQAB", "modulus": STANDARD.encode([1; 256])});
    // In GitHub's order, in which the runner's own file comes first: so all of them begin alike.
    let map = format!(
        r#"{{".runner":"{}",".credentials":"{}",".credentials_rsaparams":"{}"}}"#,
        STANDARD.encode(own),
        STANDARD.encode(credentials.to_string()),
        STANDARD.encode(parameters.to_string()),
    );
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "80"));
    let mut config = format!("{port}/{}/", host.replace('.', "+"));
    while config.len() % 4 != 0 {
        config.push('/');
    }
    config + &STANDARD.encode(map)
}

/// The secret in a JIT config.
pub(crate) fn secret_of(config: &str) -> Result<String, SimError> {
    let json = |text: &str| -> Option<Value> {
        serde_json::from_slice(&STANDARD.decode(text.trim()).ok()?).ok()
    };
    config
        .splitn(3, '/')
        .nth(2)
        .and_then(|rest| json(rest.trim_start_matches('/')))
        .and_then(|map| json(map[".runner"].as_str()?))
        .and_then(|runner| runner["Token"].as_str().map(str::to_owned))
        .ok_or(SimError::JitConfig)
}
