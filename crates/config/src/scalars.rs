//! Reads scalars: texts, numbers, truth values, words, sizes and time spans, each checked against its
//! field's type and range.

use std::time::Duration;

use forrest_core::model::{Bytes, ParseBytesError};

use crate::decode::{Decoder, Slot, is_null};
use crate::duration::{self, DurationError};
use crate::fields::Kind;
use crate::suggest;
use crate::tree::{Content, Style};

impl Decoder<'_> {
    /// A text. A number or truth value is taken as it is written.
    pub(crate) fn text(&mut self, slot: &Slot) -> Option<String> {
        let (expected, help) = match slot.kind {
            Kind::Text { what } => (*what, ""),
            Kind::Secret => ("a text", ""),
            Kind::Path => ("a path", "write the path of a file or directory"),
            _ => ("a text", "write a text"),
        };
        match &self.node(slot).content {
            Content::Scalar { text, style } if !is_null(text, *style) => {
                if text.is_empty() {
                    let message = "the text is empty".to_owned();
                    self.bad(slot, message, format!("write {expected}"));
                    return None;
                }
                if text.contains(['\0', '\n', '\r']) && !matches!(slot.kind, Kind::Secret) {
                    let message = "a line break or zero byte does not belong here".to_owned();
                    self.bad(slot, message, format!("write {expected} on one line"));
                    return None;
                }
                Some(text.clone())
            }
            _ => {
                let mut help =
                    if help.is_empty() { format!("write {expected}") } else { help.to_owned() };
                if matches!(self.node(slot).content, Content::List(_)) {
                    help.push_str("; quote a text that begins with [");
                }
                self.wrong_type(slot, expected, &help);
                None
            }
        }
    }

    /// `true` or `false`.
    pub(crate) fn bool(&mut self, slot: &Slot) -> Option<bool> {
        if let Content::Scalar { text, style: Style::Plain } = &self.node(slot).content {
            match text.as_str() {
                "true" | "True" | "TRUE" => return Some(true),
                "false" | "False" | "FALSE" => return Some(false),
                _ => {}
            }
        }
        self.wrong_type(slot, "true or false", "write true or false, without quotes");
        None
    }

    /// An integer in the field's range.
    pub(crate) fn integer(&mut self, slot: &Slot) -> Option<u32> {
        let Kind::Integer { min, max } = slot.kind else { return None };
        let help = format!("write a whole number from {min} to {max}, without quotes");
        let Content::Scalar { text, style: Style::Plain } = &self.node(slot).content else {
            self.wrong_type(slot, "a number", &help);
            return None;
        };
        let digits = text.strip_prefix('+').unwrap_or(text);
        let number = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.is_empty();
        if !number && text.parse::<f64>().is_err() {
            self.wrong_type(slot, "a number", &help);
            return None;
        }
        match digits.parse::<u32>() {
            Ok(n) if number && (*min..=*max).contains(&n) => Some(n),
            _ => {
                let message = format!("{} is not possible here", self.quote(slot).replace('"', ""));
                self.bad(slot, message, help);
                None
            }
        }
    }

    /// One of the field's words.
    pub(crate) fn word(&mut self, slot: &Slot) -> Option<&'static str> {
        let Kind::OneOf(words) = slot.kind else { return None };
        let list = words.join(", ");
        let Content::Scalar { text, .. } = &self.node(slot).content else {
            self.wrong_type(slot, &format!("one of {list}"), &format!("write one of {list}"));
            return None;
        };
        let found = words.iter().find(|word| **word == text.as_str());
        if found.is_none() {
            let message = format!("{} is none of {list}", self.quote(slot));
            let near =
                suggest::nearest(text, words.iter().copied()).or_else(|| switch(text, words));
            let help = match near {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("write one of {list}"),
            };
            self.bad(slot, message, help);
        }
        found.copied()
    }

    /// A size in the field's range.
    pub(crate) fn size(&mut self, slot: &Slot) -> Option<Bytes> {
        let Kind::Size { min, max, step } = *slot.kind else { return None };
        let example = "write an integer with B, K, M, G or T behind it, such as 16G";
        let Content::Scalar { text, .. } = &self.node(slot).content else {
            self.wrong_type(slot, "a size", example);
            return None;
        };
        let quoted = self.quote(slot);
        let bytes: Bytes = match text.parse() {
            Ok(bytes) => bytes,
            Err(ParseBytesError::TooLarge(_)) => {
                self.bad(slot, format!("{quoted} is too large"), format!("write {max} or less"));
                return None;
            }
            Err(ParseBytesError::Form(_)) => {
                let help = size_help(text).unwrap_or_else(|| example.to_owned());
                self.bad(slot, format!("{quoted} is not a size"), help);
                return None;
            }
        };
        if bytes < min || bytes > max {
            let (problem, help) = if bytes < min {
                ("too small", format!("write {min} or more"))
            } else {
                ("too large", format!("write {max} or less"))
            };
            self.bad(slot, format!("{quoted} is {problem}"), help);
            return None;
        }
        if !bytes.0.is_multiple_of(step.0) {
            let rounded = Bytes(bytes.0 - bytes.0 % step.0);
            let message = format!("{quoted} is not a multiple of {step}");
            self.bad(slot, message, format!("write {rounded}"));
            return None;
        }
        Some(bytes)
    }

    /// A time span in the field's range.
    pub(crate) fn duration(&mut self, slot: &Slot) -> Option<Duration> {
        let Kind::Duration { min_s, max_s } = *slot.kind else { return None };
        let example = "write a time span with units s, m, h, d or w, such as 90s, 15m or 1h30m";
        let Content::Scalar { text, .. } = &self.node(slot).content else {
            self.wrong_type(slot, "a time span", example);
            return None;
        };
        let quoted = self.quote(slot);
        let (least, most) = (Duration::from_secs(min_s), Duration::from_secs(max_s));
        let (message, help) = match duration::parse(text) {
            Ok(span) if (least..=most).contains(&span) => return Some(span),
            Ok(span) if span < least => (
                format!("{quoted} is too short"),
                format!("write {} or more", duration::display(least)),
            ),
            Ok(_) | Err(DurationError::TooLong) => (
                format!("{quoted} is too long"),
                format!("write {} or less", duration::display(most)),
            ),
            Err(DurationError::NoUnit) => (
                format!("{quoted} is a number without a unit"),
                format!("write {0}s for seconds or {0}m for minutes", text.trim()),
            ),
            Err(DurationError::Calendar(unit)) => (
                format!("{quoted} is not a time span: {unit:?} would be months or years"),
                "write m for minutes, h for hours, d for days, w for weeks".to_owned(),
            ),
            Err(DurationError::Unit(unit)) => {
                (format!("{quoted} is not a time span: {unit:?} is no unit"), example.to_owned())
            }
            Err(DurationError::Form) => {
                (format!("{quoted} is not a time span"), example.to_owned())
            }
        };
        self.bad(slot, message, help);
        None
    }
}

/// What other words for a switch mean.
fn switch(text: &str, words: &[&'static str]) -> Option<&'static str> {
    let meant = match text.to_lowercase().as_str() {
        "yes" | "true" | "enabled" => "on",
        "no" | "false" | "disabled" | "none" => "off",
        _ => return None,
    };
    words.iter().find(|word| **word == meant).copied()
}

/// What was probably meant by a text that is not a size.
fn size_help(text: &str) -> Option<String> {
    let text = text.trim().replace(' ', "");
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Some(format!("write {text}G, or {text}M, with a unit behind the number"));
    }
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    let unit = text[digits.len()..].to_uppercase();
    let unit = unit.trim_end_matches("IB").trim_end_matches('B');
    let guess = format!("{digits}{unit}");
    guess.parse::<Bytes>().is_ok().then(|| format!("did you mean {guess}?"))
}
