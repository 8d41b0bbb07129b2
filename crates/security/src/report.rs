//! What was tried and what came of it.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The widest evidence in the table, in characters; the report has all of it.
const EVIDENCE_LEN_MAX: usize = 110;

/// One attack that was really made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attack {
    /// What it was.
    pub name: String,
    /// Whether it did no harm.
    pub contained: bool,
    /// What was seen.
    pub evidence: String,
}

/// All of them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// In the order in which they were made.
    pub attacks: Vec<Attack>,
}

impl Report {
    /// Takes what came of an attack, and says so.
    pub fn add(&mut self, name: impl Into<String>, contained: bool, evidence: impl Into<String>) {
        let attack = Attack { name: name.into(), contained, evidence: evidence.into() };
        let verdict = if attack.contained { "contained" } else { "NOT CONTAINED" };
        eprintln!("    {verdict}: {}: {}", attack.name, attack.evidence);
        self.attacks.push(attack);
    }

    /// Takes the outcome of something that may fail: then nothing was contained.
    pub fn add_result(&mut self, name: &str, result: Result<(bool, String)>) {
        match result {
            Ok((contained, evidence)) => self.add(name, contained, evidence),
            Err(error) => self.add(name, false, format!("it could not be judged: {error:#}")),
        }
    }

    /// Takes the rows of a report that another process wrote.
    ///
    /// # Errors
    /// Where there is none, or it is not complete.
    pub fn take(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read(path).with_context(|| format!("no {}", path.display()))?;
        let report: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is no report", path.display()))?;
        self.attacks.extend(report.attacks);
        Ok(())
    }

    /// How many did harm.
    pub fn harm(&self) -> usize {
        self.attacks.iter().filter(|attack| !attack.contained).count()
    }

    /// A line each.
    pub fn table(&self) -> String {
        let width = self.attacks.iter().map(|attack| attack.name.chars().count()).max();
        let width = width.unwrap_or_default();
        let mut text = format!("{:<width$}  contained  evidence\n", "attack");
        for attack in &self.attacks {
            let verdict = if attack.contained { "yes" } else { "NO" };
            let mut evidence: String = attack.evidence.chars().take(EVIDENCE_LEN_MAX).collect();
            if attack.evidence.chars().count() > EVIDENCE_LEN_MAX {
                evidence.push('…');
            }
            // Writing into a text does not fail.
            let _ = writeln!(text, "{:<width$}  {verdict:<9}  {evidence}", attack.name);
        }
        text
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("could not create {}", dir.display()))?;
        }
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n")
            .with_context(|| format!("could not write {}", path.display()))
    }
}
