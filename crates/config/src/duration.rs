//! Time spans as the configuration writes them: `90s`, `15m`, `1h30m`, `1d`.

use std::time::Duration;

/// Why a text is not a time span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DurationError {
    /// Nothing but digits.
    NoUnit,
    /// A unit that may mean minutes or months, or is no fixed span at all.
    Calendar(String),
    /// A unit that does not exist.
    Unit(String),
    /// Not a number followed by a unit.
    Form,
    /// More than fits.
    TooLong,
}

const UNITS: [(&[&str], u64); 5] = [
    (&["s", "sec", "secs", "second", "seconds"], 1),
    (&["m", "min", "mins", "minute", "minutes"], 60),
    (&["h", "hr", "hrs", "hour", "hours"], 60 * 60),
    (&["d", "day", "days"], 24 * 60 * 60),
    (&["w", "week", "weeks"], 7 * 24 * 60 * 60),
];

const CALENDAR: [&str; 7] = ["M", "month", "months", "y", "yr", "year", "years"];

/// Reads numbers with units, added up. White space between the parts is allowed.
pub(crate) fn parse(text: &str) -> Result<Duration, DurationError> {
    let mut rest = text.trim();
    let mut seconds: u64 = 0;
    if rest.is_empty() {
        return Err(DurationError::Form);
    }
    if rest.bytes().all(|b| b.is_ascii_digit()) {
        return Err(DurationError::NoUnit);
    }
    while !rest.is_empty() {
        let (digits, behind) = split(rest, |c| c.is_ascii_digit());
        let (unit, behind) = split(behind.trim_start(), |c| c.is_ascii_alphabetic());
        if digits.is_empty() || unit.is_empty() {
            return Err(DurationError::Form);
        }
        let factor = UNITS.iter().find(|(names, _)| names.contains(&unit)).map(|(_, s)| *s);
        let factor = match factor {
            Some(factor) => factor,
            None if CALENDAR.contains(&unit) => {
                return Err(DurationError::Calendar(unit.to_owned()));
            }
            None => return Err(DurationError::Unit(unit.to_owned())),
        };
        seconds = digits
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(factor))
            .and_then(|n| n.checked_add(seconds))
            .ok_or(DurationError::TooLong)?;
        rest = behind.trim_start();
    }
    Ok(Duration::from_secs(seconds))
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c: char| !belongs(c)).unwrap_or(text.len()))
}

/// The shortest form that [`parse`] reads back, fractions of a second left out.
pub(crate) fn display(duration: Duration) -> String {
    let mut rest = duration.as_secs();
    let mut text = String::new();
    for (unit, seconds) in [("d", 24 * 60 * 60), ("h", 60 * 60), ("m", 60), ("s", 1)] {
        if rest >= seconds {
            text.push_str(&format!("{}{unit}", rest / seconds));
            rest %= seconds;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_add_up() {
        let seconds = |text| parse(text).map(|d| d.as_secs());
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("15m"), Ok(900));
        assert_eq!(seconds("1h30m"), Ok(5400));
        assert_eq!(seconds("1h 30min"), Ok(5400));
        assert_eq!(seconds("1d"), Ok(86_400));
        assert_eq!(seconds("2 weeks"), Ok(1_209_600));
    }

    #[test]
    fn months_are_not_minutes() {
        assert_eq!(parse("15M"), Err(DurationError::Calendar("M".into())));
        assert_eq!(parse("1year"), Err(DurationError::Calendar("year".into())));
    }

    #[test]
    fn what_is_no_time_span_is_refused() {
        assert_eq!(parse("900"), Err(DurationError::NoUnit));
        assert_eq!(parse("5x"), Err(DurationError::Unit("x".into())));
        assert_eq!(parse("100ms"), Err(DurationError::Unit("ms".into())));
        for text in ["", "m", "-5m", "1.5h", "5m3", "five m"] {
            assert_eq!(parse(text), Err(DurationError::Form), "{text:?}");
        }
        assert_eq!(parse("99999999999999999999s"), Err(DurationError::TooLong));
        assert_eq!(parse("9999999999999999w"), Err(DurationError::TooLong));
    }

    proptest! {
        #[test]
        fn printing_and_reading_agree(seconds in 0..u64::MAX) {
            let duration = Duration::from_secs(seconds);
            prop_assert_eq!(parse(&display(duration)), Ok(duration));
        }

        #[test]
        fn nothing_panics(text in ".{0,40}") {
            let _ = parse(&text);
        }
    }
}
