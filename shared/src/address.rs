//! Addresses as people may see them: without what logs somebody in.

/// An address, or a list of them, without users, passwords and parameters.
///
/// Made for text that may be wrong, as that is what gets printed: rather too much goes than too little. Text that holds
/// no address stays as it is, but for what stands before an `@`.
pub fn without_credentials(text: &str) -> String {
    let starts: Vec<usize> = text.match_indices("://").filter_map(|(at, _)| scheme_start(text, at)).collect();
    let first = starts.first().copied().unwrap_or(text.len());
    let mut shown = after_user(&text[..first]).to_owned();
    for (index, start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(text.len());
        let (scheme, rest) = text[*start..end].split_once("://").expect("an address starts with its scheme");
        // A path may hold an `@` of its own.
        let is_path = rest.starts_with('/') && matches!(scheme, "file" | "sqlite");
        let rest = if is_path { rest } else { after_user(rest) };
        let (rest, comma) = rest.strip_suffix(',').map_or((rest, ""), |rest| (rest, ","));
        let without_parameters = rest.split(['?', '#']).next().unwrap_or_default();
        shown.extend([scheme, "://", without_parameters, comma]);
    }
    shown
}

/// Where the scheme begins that ends at `at`, if an address may begin there: it may be part of a password.
fn scheme_start(text: &str, at: usize) -> Option<usize> {
    let before = text[..at].trim_end_matches(|c: char| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let is_start = match before.chars().next_back() {
        None | Some(',') => true,
        Some('=') => {
            // `ID=URL`
            let id = before[..before.len() - 1].rsplit(',').next().unwrap_or_default();
            id.trim().chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
        }
        Some(other) => other.is_whitespace(),
    };
    is_start.then_some(before.len())
}

fn after_user(text: &str) -> &str {
    text.rsplit_once('@').map_or(text, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_keeps_what_says_where() {
        for (text, shown) in [
            ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
            ("nats://bob:secret@127.0.0.1:4222", "nats://127.0.0.1:4222"),
            ("nats://token@a:1,nats://token@b:2", "nats://a:1,nats://b:2"),
            ("nats://a:1, nats://bob:secret@b:2", "nats://a:1, nats://b:2"),
            ("bob:secret@127.0.0.1:4222", "127.0.0.1:4222"),
            ("postgres://bob:secret@db/jobs?sslmode=require", "postgres://db/jobs"),
            ("postgres://db/jobs?user=bob&password=secret", "postgres://db/jobs"),
            ("gpu-0=http://bob:secret@a:1,gpu-1=http://b:2", "gpu-0=http://a:1,gpu-1=http://b:2"),
            ("http://a?key=secret,http://b", "http://a,http://b"),
            ("s3://key:secret@bucket/prefix", "s3://bucket/prefix"),
            ("sqlite:///data/stepcast.db", "sqlite:///data/stepcast.db"),
            ("file:///home/bob@work/images", "file:///home/bob@work/images"),
            ("--listen <LISTEN>", "--listen <LISTEN>"),
            ("", ""),
        ] {
            assert_eq!(without_credentials(text), shown, "{text}");
        }
    }

    #[test]
    fn a_password_that_was_not_encoded_goes_too() {
        for password in
            ["se@cret", "se/cret", "se?cret", "se#cret", "se,cret", "se://cret", "se=x://cret", "se cret"]
        {
            let shown = without_credentials(&format!("nats://bob:{password}@host:1"));
            assert!(!shown.contains("se") && !shown.contains("cret"), "{password}: {shown}");
            assert!(shown.ends_with("host:1"), "{password}: {shown}");
        }
    }

    proptest! {
        #[test]
        fn no_password_is_shown_whatever_stands_around_it(
            password in "[ -~]{0,12}",
            hosts in prop::collection::vec("[a-z]{1,8}", 1..4),
            id in "([a-z]{1,4}=)?",
        ) {
            // A comma and a whole scheme inside a password cannot be told from a list.
            prop_assume!(!password.contains("://"));
            let marked = format!("SECRET{password}SECRET");
            let list: Vec<String> = hosts.iter().map(|host| format!("{id}nats://bob:{marked}@{host}:1")).collect();
            let shown = without_credentials(&list.join(","));
            prop_assert!(!shown.contains("SECRET"), "{}", shown);
        }
    }
}
