//! As much of NATS's protocol as a client needs that only listens, over the frames of a WebSocket.

/// One thing that the server said.
#[derive(Debug, PartialEq)]
pub enum Said<'a> {
    /// A message's payload.
    Message(&'a [u8]),
    /// It wants a pong.
    Ping,
    /// All that we said before our ping has been handled.
    Pong,
    /// A complaint.
    Error(&'a [u8]),
    /// What needs no answer.
    Other,
}

/// What a server said, one after another, at the start of a buffer.
#[derive(Debug)]
pub struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Lines<'a> {
    /// All that was said whole in what was read so far.
    pub fn of(buffer: &'a [u8]) -> Self {
        Self { rest: buffer }
    }

    /// What has not been said whole yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

const END: &[u8] = b"\r\n";

impl<'a> Iterator for Lines<'a> {
    type Item = Said<'a>;

    fn next(&mut self) -> Option<Said<'a>> {
        let end = self.rest.windows(END.len()).position(|two| two == END)?;
        let (line, after) = (&self.rest[..end], &self.rest[end + END.len()..]);
        let (said, rest) = match line.split(|byte| *byte == b' ').next().unwrap_or_default() {
            b"MSG" => {
                let length = line.rsplit(|byte| *byte == b' ').next().and_then(number)?;
                let (payload, rest) = after.split_at_checked(length)?;
                (Said::Message(payload), rest.strip_prefix(END)?)
            }
            b"PING" => (Said::Ping, after),
            b"PONG" => (Said::Pong, after),
            b"-ERR" => (Said::Error(line), after),
            _ => (Said::Other, after),
        };
        self.rest = rest;
        Some(said)
    }
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_that_a_server_says_is_understood() {
        let said =
            b"INFO {\"a\": 1}\r\nPONG\r\nMSG a.b 1 4\r\n\r\nOK\r\nPING\r\n-ERR 'no'\r\nMSG a 1 9\r\nhal";
        let mut lines = Lines::of(said);
        let all: Vec<Said> = lines.by_ref().collect();
        assert_eq!(
            all,
            [Said::Other, Said::Pong, Said::Message(b"\r\nOK"), Said::Ping, Said::Error(b"-ERR 'no'")]
        );
        assert_eq!(lines.rest(), b"MSG a 1 9\r\nhal");
    }

    proptest! {
        #[test]
        fn cut_anywhere_the_same_messages_are_found(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..8),
            cut in 0_usize..400,
        ) {
            let mut all = Vec::new();
            for payload in &payloads {
                all.extend_from_slice(format!("MSG a.b 7 {}\r\n", payload.len()).as_bytes());
                all.extend_from_slice(payload);
                all.extend_from_slice(END);
            }
            let cut = cut.min(all.len());
            let mut first = Lines::of(&all[..cut]);
            let mut found: Vec<Vec<u8>> = Vec::new();
            let mut note = |said: Said| {
                if let Said::Message(payload) = said {
                    found.push(payload.to_vec());
                }
            };
            first.by_ref().for_each(&mut note);
            Lines::of(&[first.rest(), &all[cut..]].concat()).for_each(&mut note);
            prop_assert_eq!(found, payloads);
        }
    }
}
