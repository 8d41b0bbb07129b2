//! Where the daemon's log goes and what it looks like there.
//!
//! | standard error is | form |
//! |---|---|
//! | a terminal | time, level, text; in colour unless `NO_COLOR` is set |
//! | systemd's journal | syslog's level as `<6>`, text; the journal knows the time |
//! | anything else | time, level, text |
//!
//! Jobs, labels and error messages are other people's words: characters in them that a terminal would act on, or
//! that hide or reorder others, are replaced. `journalctl` and `less` show them as they are.
//!
//! The journal gets lines, not fields: `journalctl -u forrest` then shows the run and the job that a
//! line is about, which it leaves out when they are fields of their own.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::failure::Failure;
use crate::terminal::neutral;
use crate::terminal::paint::Paint;

/// Begins to log, panics included.
///
/// # Errors
/// For a filter that makes no sense.
pub fn start(filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Failure::usage(format!("{filter:?} is no filter for the log: {error}")))?;
    let stderr = std::io::stderr();
    let harmless = || Harmless(io::stderr());
    // Where a line cannot be written, as on a full disk, telling that on the same way would end the daemon.
    let log = tracing_subscriber::fmt().log_internal_errors(false);
    let log = log.with_env_filter(filter).with_writer(harmless);
    if !stderr.is_terminal() && is_journal() {
        log.event_format(ForJournal).init();
    } else {
        log.with_ansi(Paint::for_stream(&stderr).is_on()).with_target(false).init();
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("without a message");
        tracing::error!("this is a bug in Forrest: panic at {place}: {text}");
    }));
    Ok(())
}

/// Whether systemd says that standard error is its journal (see systemd.exec(5), `JOURNAL_STREAM`).
fn is_journal() -> bool {
    let stated = std::env::var("JOURNAL_STREAM").ok();
    let found = std::fs::metadata("/proc/self/fd/2");
    matches!((stated, found), (Some(stated), Ok(found))
        if stated == format!("{}:{}", found.dev(), found.ino()))
}

/// Replaces what is harmful in lines of the log. Escape sequences are the log's own colours here: in
/// other people's words they are spelled out before they get this far.
struct Harmless<W>(W);

impl<W: Write> Write for Harmless<W> {
    /// Takes whole lines, as they are logged.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let kept = |c| matches!(c, '\n' | '\t' | '\x1b') || !neutral::is_harmful(c);
        let text = String::from_utf8_lossy(lines);
        let text: String =
            text.chars().map(|c| if kept(c) { c } else { char::REPLACEMENT_CHARACTER }).collect();
        self.0.write_all(text.as_bytes())?;
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Lines for the journal: level as in sd-daemon(3), text, fields.
struct ForJournal;

impl<S, N> FormatEvent<S, N> for ForJournal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = priority(*event.metadata().level());
        let mut line = String::new();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                && !fields.is_empty()
            {
                line.push_str(&format!("{}{{{fields}}}: ", span.name()));
            }
        }
        context.field_format().format_fields(Writer::new(&mut line), event)?;
        // Each line of its own level: the journal would file the rest under another one.
        for line in line.lines() {
            writeln!(writer, "<{level}>{line}")?;
        }
        Ok(())
    }
}

fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What the log holds after a job of a hostile name, in both forms.
    fn logged() -> [String; 2] {
        let hostile = "a\x1b[2Jb\u{202e}c\rd\u{9b}31me\u{200b}f\x07";
        let kept = [Kept::default(), Kept::default()];
        let writer = |kept: &Kept| {
            let kept = kept.clone();
            move || Harmless(kept.clone())
        };
        let log = || tracing_subscriber::fmt().with_ansi(false);
        let plain = log().with_writer(writer(&kept[0])).finish();
        let journal = log().with_writer(writer(&kept[1])).event_format(ForJournal).finish();
        let say = || tracing::info!(job = hostile, "job {hostile:?} of {hostile} runs");
        tracing::subscriber::with_default(plain, say);
        tracing::subscriber::with_default(journal, say);
        kept.map(|kept| String::from_utf8(kept.0.lock().expect("no panic").clone()).expect("UTF-8"))
    }

    #[test]
    fn other_peoples_words_are_harmless_in_the_log() {
        for line in logged() {
            assert!(line.contains("runs"), "{line:?}");
            assert!(!line.trim_end().chars().any(neutral::is_harmful), "{line:?}");
            assert_eq!(line.lines().count(), 1, "{line:?}");
        }
    }
}
