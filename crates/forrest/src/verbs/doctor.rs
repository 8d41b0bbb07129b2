//! `forrest doctor`: is this host fit, and what to do if not?

use forrest_daemon::doctor::{self, Area, Finding, Level};
use serde::Serialize;

use super::{block_on, print, print_json};
use crate::cli::ConfigFile;
use crate::failure::{Failure, Status};
use crate::terminal::layout::{output_width, wrap};
use crate::terminal::neutral::one_line;
use crate::terminal::paint::Paint;
use crate::words::counted;

/// What a program gets.
#[derive(Serialize)]
struct Report<'a> {
    /// Whether there is no problem.
    fit: bool,
    findings: &'a [Finding],
}

/// Examines and shows.
pub fn run(config: &ConfigFile, offline: bool, json: bool) -> Result<Status, Failure> {
    let findings =
        block_on(async { Ok(doctor::examine(&config.config, doctor::Options { offline }).await) })?;
    let fit = !findings.iter().any(|finding| finding.level == Level::Problem);
    if json {
        print_json(&Report { fit, findings: &findings })?;
    } else {
        let paint = Paint::for_stream(&std::io::stdout());
        print(&render(&findings, output_width(), paint))?;
    }
    Ok(if fit { Status::Ok } else { Status::Failed })
}

fn render(findings: &[Finding], width: usize, paint: Paint) -> String {
    let mut text = String::new();
    let mut area = None;
    for finding in findings {
        if area != Some(finding.area) {
            if area.is_some() {
                text.push('\n');
            }
            text.push_str(&paint.bold(heading(finding.area)));
            text.push('\n');
            area = Some(finding.area);
        }
        let mark = match finding.level {
            Level::Ok => paint.green("  ok       "),
            Level::Warning => paint.yellow("  warning  "),
            Level::Problem => paint.red("  PROBLEM  "),
        };
        const INDENT: &str = "           ";
        let room = width.saturating_sub(INDENT.len());
        let advice = finding.advice.as_ref().map(|advice| format!("-> {}", one_line(advice)));
        let what = wrap(&one_line(&finding.what), room).into_iter();
        let advice =
            advice.iter().flat_map(|advice| wrap(advice, room)).map(|line| paint.dim(&line));
        for (n, line) in what.chain(advice).enumerate() {
            text.push_str(if n == 0 { &mark } else { INDENT });
            text.push_str(&line);
            text.push('\n');
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
    text.push('\n');
    text.push_str(&match (problems, warnings) {
        (0, 0) => paint.green("All is well."),
        (0, n) => {
            format!("Nothing keeps Forrest from working; {}.", counted(n, "warning", "warnings"))
        }
        (n, m) => paint.red(&format!(
            "{} and {}.",
            counted(n, "problem", "problems"),
            counted(m, "warning", "warnings")
        )),
    });
    text.push('\n');
    text
}

fn heading(area: Area) -> &'static str {
    match area {
        Area::Configuration => "Configuration",
        Area::Host => "Host",
        Area::Storage => "Storage",
        Area::Daemon => "Daemon",
        Area::GitHub => "GitHub",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_grouped_and_fit() {
        let finding = |area, level, what: &str, advice: Option<&str>| Finding {
            area,
            level,
            what: what.to_owned(),
            advice: advice.map(str::to_owned),
        };
        let findings = [
            finding(Area::Host, Level::Ok, "QEMU 10.0.2 has what Forrest needs", None),
            finding(
                Area::Host,
                Level::Problem,
                "hardware virtualisation cannot be used: /dev/kvm cannot be opened (No such file or directory)",
                Some(
                    "load the kvm module, and see that virtualisation is switched on in the firmware",
                ),
            ),
            finding(Area::GitHub, Level::Warning, "quoted \x1b[31mfrom\nelsewhere", Some("look")),
        ];
        let text = render(&findings, 80, Paint::PLAIN);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        insta::assert_snapshot!(text);
    }
}
