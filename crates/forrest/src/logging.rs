//! Where the daemon's log goes and what it looks like there.
//!
//! | standard error is | form |
//! |---|---|
//! | a terminal | time, level, text; in colour unless `NO_COLOR` is set |
//! | systemd's journal | syslog's level as `<6>`, text; the journal knows the time |
//! | anything else | time, level, text |
//!
//! The journal gets lines, not fields: `journalctl -u forrest` then shows the run and the job that a
//! line is about, which it leaves out when they are fields of their own.

use std::fmt;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::failure::Failure;
use crate::terminal::paint::Paint;

/// Begins to log, panics included.
///
/// # Errors
/// For a filter that makes no sense.
pub fn start(filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Failure::usage(format!("{filter:?} is no filter for the log: {error}")))?;
    let stderr = std::io::stderr();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
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
