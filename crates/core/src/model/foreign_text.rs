//! Text that somebody else has chosen: guests, QEMU, whoever names jobs and branches.

/// Whether a character controls a terminal, or is invisible and reorders or hides others.
pub fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// The first `len_max` characters, with U+FFFD for each that is harmful.
pub fn harmless(text: &str, len_max: usize) -> String {
    let seen = |c| if is_harmful(c) { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().take(len_max).map(seen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_controls_hides_or_reorders_is_replaced_and_the_rest_is_kept() {
        let hostile = "a\u{1b}[31m\u{202e}b\u{200b}\u{feff}\u{e0041}\u{9b}é 語";
        assert_eq!(
            harmless(hostile, 100),
            "a\u{fffd}[31m\u{fffd}b\u{fffd}\u{fffd}\u{fffd}\u{fffd}é 語"
        );
        assert_eq!(harmless(hostile, 2), "a\u{fffd}");
    }
}
