//! Figures by name, with their goals.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

/// A figure's goal.
#[derive(Debug, Clone, Copy)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// The goals, in the order of the table. Figures without a goal come after them.
const GOALS: [(&str, Goal); 16] = [
    ("fork_reflink_10g_ms", Goal::AtMost(20.0)),
    ("fork_qcow2_10g_ms", Goal::AtMost(100.0)),
    ("webhook_to_qemu_ms_p50", Goal::AtMost(50.0)),
    ("webhooks_per_s", Goal::AtLeast(2_000.0)),
    ("webhook_answer_ms_p99", Goal::AtMost(50.0)),
    ("core_events_per_s", Goal::AtLeast(200_000.0)),
    ("schedule_10k_ms", Goal::AtMost(5.0)),
    ("daemon_rss_mib", Goal::AtMost(25.0)),
    ("shim_rss_mib", Goal::AtMost(8.0)),
    ("queued_to_step_restored_s_p50", Goal::AtMost(0.7)),
    ("queued_to_step_cold_over_restored", Goal::AtLeast(35.0)),
    ("restore20_s", Goal::AtMost(10.0)),
    ("clone_pss_mib", Goal::AtMost(60.0)),
    ("snapshot_adds_s", Goal::AtMost(2.0)),
    ("snapshot_ram_file_mib", Goal::AtMost(512.0)),
    ("restored_vs_cold_compile_ratio", Goal::AtMost(1.05)),
];

/// Figures by name.
#[derive(Debug, Default)]
pub struct Figures(BTreeMap<String, f64>);

impl Figures {
    /// Adds one.
    pub fn add(&mut self, name: &str, value: f64) {
        println!("    {name}: {}", shown(value));
        self.0.insert(name.to_owned(), value);
    }

    /// Adds others.
    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Writes them as one flat JSON object.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.0)? + "\n";
        std::fs::write(path, text).with_context(|| format!("could not write {}", path.display()))
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!("{:<36} {:>14}  {:<18} \n", "figure", "measured", "goal");
        let goal = |name: &str| GOALS.iter().find(|(goal, _)| *goal == name).map(|(_, goal)| *goal);
        let with_goal =
            GOALS.iter().map(|(name, _)| *name).filter(|name| self.0.contains_key(*name));
        let without = self.0.keys().map(String::as_str).filter(|name| goal(name).is_none());
        for name in with_goal.chain(without) {
            let value = self.0[name];
            let (goal, missed) = match goal(name) {
                Some(Goal::AtMost(most)) => (format!("at most {}", shown(most)), value > most),
                Some(Goal::AtLeast(least)) => (format!("at least {}", shown(least)), value < least),
                None => (String::new(), false),
            };
            let mark = if missed { "missed" } else { "" };
            // Writing into a text does not fail.
            let _ = writeln!(text, "{name:<36} {:>14}  {goal:<18} {mark}", shown(value));
        }
        text
    }
}

fn shown(value: f64) -> String {
    if value >= 1_000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// The value below which this share of the samples lies; 0 without samples.
pub fn percentile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let last = samples.len().saturating_sub(1);
    // A share of at most 1 of an index stays an index.
    let index = (last as f64 * share).round() as usize;
    samples.get(index).copied().unwrap_or_default()
}
