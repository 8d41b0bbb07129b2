//! The nearest valid name to one that is not.

/// The candidate that was most likely meant, if any is near enough.
///
/// Case, and `-` for `_`, do not count as differences; about one mistake in three letters does not
/// hide a name.
pub(crate) fn nearest<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // The cost of comparing grows with the length, and nothing so long is near any name.
    if written.len() > 200 {
        return None;
    }
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let written = plain(written);
    candidates
        .into_iter()
        .map(|candidate| {
            let other = plain(candidate);
            let length = written.chars().count().max(other.chars().count());
            (strsim::osa_distance(&written, &other), length, candidate)
        })
        .filter(|(distance, length, _)| *distance <= (length / 3).max(1) && distance < length)
        .min_by_key(|(distance, _, _)| *distance)
        .map(|(_, _, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn typing_mistakes_are_seen_through() {
        let names = ["base_image", "base_machine", "ram", "cpus", "disk"];
        assert_eq!(nearest("base_imag", names), Some("base_image"));
        assert_eq!(nearest("base-image", names), Some("base_image"));
        assert_eq!(nearest("rma", names), Some("ram"));
        assert_eq!(nearest("CPU", names), Some("cpus"));
        assert_eq!(nearest("colour", names), None);
        assert_eq!(nearest("x", names), None);
        assert_eq!(nearest("", names), None);
    }
}
