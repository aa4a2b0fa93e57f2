//! What a NATS server says to a subscriber, read in place.
//!
//! The client protocol is a line per operation, with a payload behind those that carry one
//! (docs.nats.io, "Client Protocol"). Nothing is copied.

/// Longest line that is waited for. The server's own bound for a control line is 4 KiB; `INFO` names every server of a
/// cluster and may be longer.
const LONGEST_LINE: usize = 64 * 1024;
/// Longest message that is waited for: the most that a server can be set to take.
const LONGEST_MESSAGE: usize = 64 * 1024 * 1024;

/// One operation of the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// A message that matched a subscription.
    Message {
        /// Where it was published.
        subject: &'a [u8],
        /// Its headers, from `NATS/1.0` to the empty line; empty if it has none.
        headers: &'a [u8],
        /// Its body.
        payload: &'a [u8],
    },
    /// The server tells of itself, in JSON.
    Info(&'a [u8]),
    /// The server wants a `PONG`.
    Ping,
    /// The answer to a `PING` of ours: all that we sent before it has been read.
    Pong,
    /// Everything is well.
    Ok,
    /// Something is not, in words.
    Error(&'a [u8]),
}

/// What came is not the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server's words are not NATS: {0}")]
pub struct Malformed(&'static str);

/// Reads the first operation of `input`, and how many bytes it has; `None` if it is incomplete.
pub fn parse(input: &[u8]) -> Result<Option<(Op<'_>, usize)>, Malformed> {
    // Looked for no further than it is waited for: how much has been read already makes no difference.
    let Some(end) = memchr::memchr(b'\n', &input[..input.len().min(LONGEST_LINE)]) else {
        return if input.len() < LONGEST_LINE { Ok(None) } else { Err(Malformed("a line without end")) };
    };
    let line = input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]);
    let body = &input[end + 1..];
    let (verb, arguments) = match memchr::memchr2(b' ', b'\t', line) {
        Some(space) => (&line[..space], &line[space + 1..]),
        None => (line, &b""[..]),
    };
    let op = match verb {
        b"MSG" | b"HMSG" => {
            let Some((message, length)) = message(verb.len() == 4, arguments, body)? else { return Ok(None) };
            return Ok(Some((message, end + 1 + length)));
        }
        b"PING" => Op::Ping,
        b"PONG" => Op::Pong,
        b"+OK" => Op::Ok,
        b"-ERR" => Op::Error(arguments),
        b"INFO" => Op::Info(arguments),
        _ => return Err(Malformed("an unknown operation")),
    };
    Ok(Some((op, end + 1)))
}

/// `MSG <subject> <sid> [reply] <bytes>` or `HMSG <subject> <sid> [reply] <header bytes> <all bytes>`.
fn message<'a>(
    with_headers: bool,
    arguments: &'a [u8],
    body: &'a [u8],
) -> Result<Option<(Op<'a>, usize)>, Malformed> {
    let mut words = arguments.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let subject = words.next().ok_or(Malformed("a message without a subject"))?;
    let total = number(words.next_back())?;
    let header_length = if with_headers { number(words.next_back())? } else { 0 };
    if words.next().is_none() {
        return Err(Malformed("a message without a subscription"));
    }
    if header_length > total || total > LONGEST_MESSAGE {
        return Err(Malformed("a message of an impossible length"));
    }
    // The payload ends with a line break that its length does not count.
    let Some(bytes) = body.get(..total + 2) else { return Ok(None) };
    if !bytes.ends_with(b"\r\n") {
        return Err(Malformed("a message that does not end where it should"));
    }
    let (headers, payload) = bytes[..total].split_at(header_length);
    Ok(Some((Op::Message { subject, headers, payload }, total + 2)))
}

fn number(word: Option<&[u8]>) -> Result<usize, Malformed> {
    word.and_then(|word| std::str::from_utf8(word).ok())
        .and_then(|word| word.parse().ok())
        .ok_or(Malformed("a message without a length"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(mut input: &[u8]) -> Vec<Op<'_>> {
        let mut ops = Vec::new();
        while let Some((op, length)) = parse(input).unwrap() {
            ops.push(op);
            input = &input[length..];
        }
        assert!(input.is_empty(), "left over: {input:?}");
        ops
    }

    #[test]
    fn every_operation_is_read_in_place() {
        let said = b"INFO {\"a\": 1}\r\nPING\r\nPONG\r\n+OK\r\n-ERR 'Slow Consumer'\r\n\
            MSG a.b 7 5\r\nhello\r\nMSG a.b 7 reply.to 0\r\n\r\n\
            HMSG a.b 7 12 17\r\nNATS/1.0\r\n\r\nhello\r\nHMSG a.b 7 reply.to 12 12\r\nNATS/1.0\r\n\r\n\r\n";
        let message = |headers: &'static [u8], payload: &'static [u8]| Op::Message {
            subject: b"a.b",
            headers,
            payload,
        };
        assert_eq!(
            all(said),
            [
                Op::Info(b"{\"a\": 1}"),
                Op::Ping,
                Op::Pong,
                Op::Ok,
                Op::Error(b"'Slow Consumer'"),
                message(b"", b"hello"),
                message(b"", b""),
                message(b"NATS/1.0\r\n\r\n", b"hello"),
                message(b"NATS/1.0\r\n\r\n", b""),
            ]
        );
    }

    #[test]
    fn a_beginning_is_waited_on() {
        let whole = b"HMSG a.b 7 12 17\r\nNATS/1.0\r\n\r\nhello\r\n";
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), Ok(None), "the first {length} bytes");
        }
        assert!(parse(whole).unwrap().is_some());
    }

    #[test]
    fn what_is_not_nats_is_refused() {
        let wrong: [&[u8]; 9] = [
            b"HTTP/1.1 400 Bad Request\r\n",
            b"MSG\r\n",
            b"MSG a.b 7 x\r\n",
            b"MSG a.b 5\r\nhello\r\n",
            b"MSG a.b 7 5\r\nhello, world\r\n",
            b"HMSG a.b 7 18 17\r\n",
            b"HMSG a.b 12 17\r\n",
            b"MSG a.b 7 99999999999999999999\r\n",
            b"MSG a.b 7 67108865\r\n",
        ];
        for said in wrong {
            assert!(parse(said).is_err(), "{}", String::from_utf8_lossy(said));
        }
        assert!(parse(&vec![b'x'; LONGEST_LINE]).is_err());
    }

    proptest! {
        #[test]
        fn nothing_that_is_said_makes_it_panic(said in any::<Vec<u8>>()) {
            let _ = parse(&said);
        }

        #[test]
        fn nothing_like_a_message_makes_it_panic(said in "H?MSG [a-z.> ]{0,8} [0-9 ]{0,12}\r\n[a-z\r\n]{0,32}") {
            let _ = parse(said.as_bytes());
        }

        #[test]
        fn a_message_comes_out_as_it_went_in(
            subject in "[a-z0-9.]{1,40}",
            headers in proptest::collection::vec(any::<u8>(), 0..64),
            payload in proptest::collection::vec(any::<u8>(), 0..256),
        ) {
            let mut said = format!("HMSG {subject} 1 {} {}\r\n", headers.len(), headers.len() + payload.len()).into_bytes();
            said.extend(headers.iter().chain(&payload).chain(b"\r\n"));
            let length = said.len();
            said.extend(b"PING\r\n");
            let message = Op::Message { subject: subject.as_bytes(), headers: &headers, payload: &payload };
            prop_assert_eq!(parse(&said), Ok(Some((message, length))));
        }
    }
}
