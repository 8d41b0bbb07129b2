//! Which parts of a source line must not be shown, because they are or may be secrets.
//!
//! Two nets. The tree knows which values belong to a field that holds a secret, through anchors and
//! merges ([`crate::tree`] hands those spans in). Where there is no tree, as after a syntax error,
//! or where the field's name is misspelt, the text itself is judged: everything behind a word that
//! looks like a secret's name is covered, and so are the lines that continue it. The second net
//! covers too much rather than too little.

use crate::source::Lines;

/// Parts of names that say "this is a secret".
const TELLTALES: [&str; 7] =
    ["secret", "token", "passw", "passphrase", "credential", "api_key", "apikey"];

/// The fields that hold a secret; a misspelt one is covered as well.
const SECRET_FIELDS: [&str; 2] = ["webhook_secret", "persistence_token"];

/// How many typing mistakes in a secret's name are seen through.
const TYPOS_MAX: usize = 3;

/// How sure it is that a key's value is a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suspicion {
    /// The key has a telltale part. It may still be the name of a repository with a mapping below.
    Telltale,
    /// The key is a field that holds a secret, or is a few typing mistakes away from one.
    Field,
}

/// Whether a key's value is to be treated as a secret.
pub(crate) fn suspicion(key: &str) -> Option<Suspicion> {
    // Without what a slip may have put into it.
    let key: String = key.chars().filter(|c| is_word(*c)).collect();
    let key = key.to_lowercase().replace('-', "_");
    if key.ends_with("_file") || key.ends_with("_snippets") {
        return None;
    }
    let is_field = SECRET_FIELDS.iter().any(|field| {
        key.contains(field)
            || field.len().abs_diff(key.len()) <= TYPOS_MAX
                && strsim::osa_distance(field, &key) <= TYPOS_MAX
    });
    if is_field {
        return Some(Suspicion::Field);
    }
    TELLTALES.iter().any(|telltale| key.contains(telltale)).then_some(Suspicion::Telltale)
}

/// The longest key that a message repeats, in characters.
const KEY_MAX: usize = 60;

/// A key as a message may repeat it: not where it may have swallowed a secret, as in
/// `webhook_secret hunter2: x`.
pub(crate) fn shown_key(key: &str) -> Option<&str> {
    let is_name = |c: char| is_word(c) || c == '.';
    let plain = key.chars().all(is_name) && key.chars().count() <= KEY_MAX && !key.is_empty();
    (plain && (suspicion(key).is_none() || behind_telltale(key) == 0)).then_some(key)
}

/// For each character of a line whether it must be covered.
pub(crate) struct Cover {
    hidden: Vec<bool>,
}

impl Cover {
    /// Judges line `index` of `lines` by its text alone.
    pub(crate) fn of_line(lines: &Lines<'_>, index: usize) -> Self {
        let line = lines.get(index);
        let mut hidden = vec![false; line.chars().count()];
        let from = if continues_a_secret(lines, index) || defines_a_secret(lines, line) {
            Some(0)
        } else {
            behind_secret_word(line).map(|(from, _)| from)
        };
        if let Some(from) = from {
            for (at, hide) in hidden.iter_mut().enumerate() {
                *hide |= at >= from;
            }
        }
        Self { hidden }
    }

    /// Covers the characters `from..to`.
    pub(crate) fn hide(&mut self, from: usize, to: usize) {
        let to = to.min(self.hidden.len());
        if let Some(range) = self.hidden.get_mut(from.min(to)..to) {
            range.fill(true);
        }
    }

    /// The line with everything that is covered as asterisks, and nothing that a terminal would
    /// act on. As many characters as before.
    pub(crate) fn apply(&self, line: &str) -> String {
        line.chars()
            .zip(&self.hidden)
            .map(|(c, hide)| match c {
                c if c.is_control() => ' ',
                c if *hide && !c.is_whitespace() => '*',
                c => c,
            })
            .collect()
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-')
}

/// From which character on a line is covered: behind the first word that names a secret.
///
/// Where that word is no key, it may be one that lost its separator, so what follows the telltale
/// part of it is covered as well.
fn behind_secret_word(line: &str) -> Option<(usize, Suspicion)> {
    let mut word = String::new();
    for (at, c) in line.chars().chain([' ']).enumerate() {
        if is_word(c) {
            word.push(c);
            continue;
        }
        if let Some(suspicion) = suspicion(&word) {
            let rest: Vec<char> = line.chars().skip(at).collect();
            let colon = rest.iter().position(|c| !matches!(c, '"' | '\'' | ' '));
            let from = match colon {
                Some(colon) if rest[colon] == ':' => at + colon + 1,
                _ => at - behind_telltale(&word),
            };
            return Some((from, suspicion));
        }
        word.clear();
    }
    None
}

/// How many characters of a word follow its telltale part; none where it has no such part.
fn behind_telltale(word: &str) -> usize {
    let plain: Vec<char> =
        word.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect();
    let ends = TELLTALES.iter().flat_map(|telltale| {
        let telltale: Vec<char> = telltale.chars().collect();
        let length = telltale.len();
        plain.windows(length).position(|w| w == telltale.as_slice()).map(|at| at + length)
    });
    ends.min().map_or(0, |end| plain.len() - end)
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// How far back the beginning of a value is looked for.
const LOOK_BACK_LINES: usize = 200;

/// Whether the line is part of a value that began on an earlier line behind a secret's name.
fn continues_a_secret(lines: &Lines<'_>, index: usize) -> bool {
    let line = lines.get(index);
    let earlier = (0..index).rev().take(LOOK_BACK_LINES).map(|at| lines.get(at));
    let before = earlier.filter(|l| !l.trim().is_empty());
    let mut depth = indent(line);
    let keyless = !line.contains(':');
    for (distance, earlier) in before.enumerate() {
        let parent = indent(earlier) < depth || (distance == 0 && keyless);
        if parent {
            match behind_secret_word(earlier) {
                Some((_, Suspicion::Field)) => return true,
                Some((_, Suspicion::Telltale)) if !is_entry(line) => return true,
                _ => {}
            }
            depth = depth.min(indent(earlier));
        }
        if depth == 0 && !keyless {
            break;
        }
        if distance > 0 && depth == 0 {
            break;
        }
    }
    false
}

/// How many lines behind a secret's name are covered where the file's structure is unknown.
const NEAR_LINES: usize = 3;

/// Whether the line may hold a secret in a file that is not YAML: a slip may have cut or joined
/// anything, so the lines behind whatever resembles a secret's name are all suspect.
pub(crate) fn is_near_a_secret(lines: &Lines<'_>, index: usize) -> bool {
    let line = lines.get(index);
    let earlier = (0..index).rev().map(|at| lines.get(at)).filter(|l| !l.trim().is_empty());
    let earlier: Vec<&str> = earlier.take(NEAR_LINES).collect();
    let joined = format!("{}{line}", earlier.first().copied().unwrap_or_default());
    let own = behind_secret_word(line).is_none() && resembles_a_secret(line);
    own || resembles_a_secret(&joined) && !resembles_a_secret(line)
        || earlier.iter().any(|line| resembles_a_secret(line))
}

fn resembles_a_secret(line: &str) -> bool {
    line.split(':').any(|part| suspicion(part).is_some())
}

/// Whether the line looks like a field with its value, not like a part of a text.
fn is_entry(line: &str) -> bool {
    let line = line.trim();
    line.ends_with(':') || line.contains(": ")
}

/// Whether the line defines an anchor that is used as a secret's value somewhere.
fn defines_a_secret(lines: &Lines<'_>, line: &str) -> bool {
    line.match_indices('&').any(|(at, _)| {
        let name: String = line[at + 1..]
            .chars()
            .take_while(|c| !c.is_whitespace() && !",]}".contains(*c))
            .collect();
        let alias = format!("*{name}");
        !name.is_empty()
            && lines.iter().any(|l| l.contains(&alias) && behind_secret_word(l).is_some())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, index: usize) -> String {
        let starts = crate::source::line_starts(text);
        let lines = Lines { text, starts: &starts };
        Cover::of_line(&lines, index).apply(lines.get(index))
    }

    #[test]
    fn values_of_secrets_are_covered() {
        assert_eq!(shown("  webhook_secret: hunter2 # x", 0), "  webhook_secret: ******* * *");
        assert_eq!(shown("  webhook_sceret: hunter2", 0), "  webhook_sceret: *******");
        assert_eq!(shown("  webhook_secrethunter2", 0), "  webhook_secret*******");
        assert_eq!(shown("a: {api-token: x, b: y}", 0), "a: {api-token: ** ** **");
    }

    #[test]
    fn other_values_are_shown() {
        for line in ["  ram: 4G", "webhook_secret_file: /run/secret", "token_snippets:"] {
            let end = line.find("/run").unwrap_or(line.len());
            assert_eq!(&shown(line, 0)[..end], &line[..end]);
        }
    }

    #[test]
    fn continued_values_are_covered() {
        assert_eq!(shown("webhook_secret:\n  hunter2", 1), "  *******");
        assert_eq!(shown("webhook_secret: |\n\n  a\n  hunter2", 3), "  *******");
        assert_eq!(shown("webhook_secret:\nhunter2", 1), "*******");
        assert_eq!(shown("webhook_secret: x\nram: 4G", 1), "ram: 4G");
        assert_eq!(shown("a: &t hunter2\nwebhook_secret: *t", 0), "** ** *******");
    }

    #[test]
    fn names_of_repositories_are_no_secrets() {
        let text = "repositories:\n  o:\n    secret-santa:\n      machines:\n        m: x";
        for index in 0..5 {
            assert_eq!(shown(text, index), text.lines().nth(index).expect("a line"));
        }
        assert_eq!(shown("api_token:\n  hunter2", 1), "  *******");
        assert_eq!(shown("webhook_secret:\n  hunter2: x", 1), "  ******** *");
    }

    #[test]
    fn keys_that_swallowed_a_secret_are_not_repeated() {
        for key in ["ram", "persistance_token", "webhook_secret", "a.b-c"] {
            assert_eq!(shown_key(key), Some(key));
        }
        for key in ["webhook_secret hunter2", "webhook_secrethunter2", "", "a\u{1b}"] {
            assert_eq!(shown_key(key), None);
        }
    }

    #[test]
    fn near_a_secret_nothing_is_shown_of_a_file_that_is_no_yaml() {
        let near = |text: &str, index| {
            let starts = crate::source::line_starts(text);
            is_near_a_secret(&Lines { text, starts: &starts }, index)
        };
        assert!(near("webhook_s\"ecret: hunter2", 0));
        assert!(near("webhook_s\necret: hunter2", 1));
        assert!(near("webhook_secret:\n\n :  hunter2", 2));
        assert!(!near("ram: 1G\nwebhook_secret: hunter2", 1));
        assert!(!near("webhook_secret: x\na: 1\nb: 2\nc: 3\nd: 4", 4));
    }

    #[test]
    fn nothing_reaches_the_terminal() {
        assert_eq!(shown("ram:\t\x1b[31m4G", 0), "ram:  [31m4G");
    }
}
