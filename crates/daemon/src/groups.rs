//! Groups of users by their names, as `group(5)` lists them.

use std::io;

/// The largest list that is read, in bytes.
const LIST_LEN_MAX: u64 = 4 << 20;

/// The number of a group, given by its name or as a number.
///
/// Groups that only a directory service knows are not found by their names.
///
/// # Errors
/// Where there is no such group, or the list cannot be read.
pub(crate) fn number(group: &str) -> io::Result<u32> {
    use io::Read;
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let mut list = String::new();
    std::fs::File::open("/etc/group")?.take(LIST_LEN_MAX).read_to_string(&mut list)?;
    in_list(&list, group).ok_or_else(|| {
        let message = format!(
            "host.webhook_group names {group:?}, which /etc/group does not have: create it \
             (`groupadd --system {group}`), or write the group's number"
        );
        io::Error::new(io::ErrorKind::NotFound, message)
    })
}

/// `NAME:PASSWORD:NUMBER:MEMBERS`, a line each.
fn in_list(list: &str, wanted: &str) -> Option<u32> {
    list.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == wanted).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name_and_by_number() {
        let list = "root:x:0:\nbroken\nwww-data:x:33:nginx,me\nnumber:x:many:\n";
        assert_eq!(in_list(list, "www-data"), Some(33));
        assert_eq!(in_list(list, "www"), None);
        assert_eq!(in_list(list, "number"), None);
        assert_eq!(number("4711").ok(), Some(4711));
        assert_eq!(number("root").ok(), Some(0));
        let error = number("no such group").expect_err("none").to_string();
        assert!(error.contains("groupadd"), "{error}");
    }
}
