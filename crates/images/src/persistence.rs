//! Whether a job left the right persistence token behind.

use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

/// Whether the content of the guest's `persist` file is the configured token.
///
/// White space (ASCII) at the end of the content is ignored, since `echo` adds a line break; everything
/// else must be the same, and the token counts as it is configured. An empty token matches nothing. The
/// time that the comparison takes depends on the lengths only.
pub fn persistence_token_matches(token: &SecretString, content: &[u8]) -> bool {
    let token = token.expose_secret().as_bytes();
    !token.is_empty() && bool::from(content.trim_ascii_end().ct_eq(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_white_space_at_the_end_is_ignored() {
        let token = SecretString::from("s3cret token");
        for sound in ["s3cret token", "s3cret token\n", "s3cret token \t\r\n\n"] {
            assert!(persistence_token_matches(&token, sound.as_bytes()), "{sound:?}");
        }
        for wrong in ["", "\n", " s3cret token", "s3cret  token", "s3cret toke", "s3cret tokenx"] {
            assert!(!persistence_token_matches(&token, wrong.as_bytes()), "{wrong:?}");
        }
        assert!(!persistence_token_matches(&token, b"s3cret token\0"));
    }

    #[test]
    fn an_empty_token_matches_nothing() {
        assert!(!persistence_token_matches(&SecretString::from(""), b""));
        assert!(!persistence_token_matches(&SecretString::from(""), b"\n"));
    }

    #[test]
    fn the_configured_token_is_taken_as_it_is() {
        assert!(!persistence_token_matches(&SecretString::from("token\n"), b"token\n"));
    }
}
