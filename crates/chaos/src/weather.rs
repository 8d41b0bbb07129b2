//! What is wrong with GitHub at the moment.

use github_sim::Sim;
use github_sim::model::{ApiEffect, ApiFault, Faults, WebhookEffect, WebhookFault, When};

use crate::dice::Dice;

/// The most that GitHub's clock is off, in seconds. Its tokens tolerate a minute.
const SKEW_S_MAX: u64 = 20;

/// Changes the weather, and answers its name.
pub fn change(sim: &Sim, dice: &mut Dice) -> &'static str {
    let (name, mut faults) = match dice.between(0, 4) {
        0 => ("fine", Faults::default()),
        1 => ("webhooks get lost", webhooks()),
        2 => ("the API fails", api()),
        3 => ("GitHub limits", limits()),
        _ => {
            let mut storm = webhooks();
            storm.add(api());
            storm.add(limits());
            ("storm", storm)
        }
    };
    let skew = i64::try_from(dice.between(0, 2 * SKEW_S_MAX)).unwrap_or_default();
    faults.clock_skew_s = skew - i64::try_from(SKEW_S_MAX).unwrap_or_default();
    sim.set_faults(|current| *current = faults);
    if dice.percent(30) {
        sim.expire_tokens();
    }
    if dice.percent(40) {
        remove_a_runner(sim, dice);
    }
    name
}

/// Somebody removes a runner that waits for a job. One with a job GitHub does not let go.
fn remove_a_runner(sim: &Sim, dice: &mut Dice) {
    let idle: Vec<_> = sim.runners().into_iter().filter(|runner| runner.job.is_none()).collect();
    if let Some(runner) = dice.pick(&idle) {
        // It may have a job by now, or be gone.
        let _ = sim.remove_runner(runner.id);
    }
}

fn often(share: f64) -> When {
    When::Probability(share)
}

fn webhooks() -> Faults {
    let fault = |effect, share| WebhookFault::new("*", effect, often(share));
    Faults {
        webhooks: vec![
            fault(WebhookEffect::Forget, 0.15),
            fault(WebhookEffect::Drop, 0.15),
            fault(WebhookEffect::Double, 0.2),
            fault(WebhookEffect::Delay { min_ms: 200, max_ms: 40_000 }, 0.2),
            fault(WebhookEffect::Reorder, 0.2),
        ],
        ..Faults::default()
    }
}

fn api() -> Faults {
    let all = |effect, share| ApiFault::new("*", effect, often(share));
    let register = "actions/generate-runner-jitconfig-for-repo";
    let delete = "actions/delete-self-hosted-runner-from-repo";
    let token = "apps/create-installation-access-token";
    Faults {
        api: vec![
            ApiFault::new(register, ApiEffect::LoseResponse, often(0.2)),
            ApiFault::new(delete, ApiEffect::LoseResponse, often(0.2)),
            ApiFault::new(register, ApiEffect::MalformedJson, often(0.05)),
            ApiFault::new(token, ApiEffect::Status { status: 500 }, often(0.2)),
            all(ApiEffect::Status { status: 502 }, 0.08),
            all(ApiEffect::Status { status: 503 }, 0.04),
            all(ApiEffect::RefuseToken, 0.04),
            all(ApiEffect::Hang, 0.01),
            all(ApiEffect::MalformedJson, 0.02),
            all(ApiEffect::LoseResponse, 0.03),
            all(ApiEffect::Slow { ms: 1_500 }, 0.15),
        ],
        ..Faults::default()
    }
}

fn limits() -> Faults {
    let all = |effect, share| ApiFault::new("*", effect, often(share));
    Faults {
        api: vec![
            all(ApiEffect::PrimaryLimit { reset_s: 8 }, 0.03),
            all(ApiEffect::SecondaryLimit { retry_after_s: Some(5) }, 0.04),
            // Forrest asks nothing at all for a minute then, and nothing can go wrong with it meanwhile.
            all(ApiEffect::SecondaryLimit { retry_after_s: None }, 0.002),
        ],
        ..Faults::default()
    }
}
