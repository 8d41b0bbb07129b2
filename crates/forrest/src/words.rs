//! Numbers for people: sizes, spans, points in time.

use std::time::Duration;

use forrest_core::model::{Bytes, Timestamp};

/// A size: `16.3G`.
pub fn size(size: Bytes) -> String {
    const UNITS: [(u32, char); 4] = [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')];
    for (shift, unit) in UNITS {
        if size.0 >> shift > 0 {
            let value = size.0 as f64 / (1_u64 << shift) as f64;
            let text = format!("{value:.1}");
            return format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text));
        }
    }
    format!("{}B", size.0)
}

/// A span: `0.35s`, `12s`, `4m10s`, `1h05m`, `3d04h`.
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 if span.as_millis() < 10 => "0s".to_owned(),
        0 => format!("{:.2}s", span.as_secs_f64()),
        1..10 => format!("{:.1}s", span.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// How long ago: `12m ago`, with no more precision than anybody wants.
pub fn ago(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.since(then).as_secs();
    match seconds {
        0..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..86_400 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// `1 thing`, `2 things`.
pub fn counted(n: usize, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {many}") }
}

/// Now, by this host's clock.
pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let ms = since.map_or(0, |since| since.as_millis());
    Timestamp(u64::try_from(ms).unwrap_or(u64::MAX))
}

/// A point in time in UTC, to the minute: `2026-11-24 03:10 UTC`.
pub fn date(time: Timestamp) -> String {
    let time = i64::try_from(time.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| "?".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short() {
        let texts = [5, 350, 1200, 12_400, 250_000, 3_900_000, 273_600_000]
            .map(|ms| span(Duration::from_millis(ms)));
        assert_eq!(texts, ["0s", "0.35s", "1.2s", "12s", "4m10s", "1h05m", "3d04h"]);
    }

    #[test]
    fn sizes_are_short() {
        let texts = [Bytes(17), Bytes::mib(1536), Bytes::gib(16), Bytes::gib(10)].map(size);
        assert_eq!(texts, ["17B", "1.5G", "16G", "10G"]);
    }

    #[test]
    fn dates_are_right() {
        for (seconds, text) in
            [(951_782_400, "2000-02-29 00:00 UTC"), (1_795_486_200, "2026-11-24 02:10 UTC")]
        {
            assert_eq!(date(Timestamp(seconds * 1000)), text);
        }
    }
}
