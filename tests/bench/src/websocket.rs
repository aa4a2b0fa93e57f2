//! As much of RFC 6455 as a client needs that only listens: frame headers in a read buffer, and small frames to send.

/// Opcode of a text frame.
pub const TEXT: u8 = 0x1;
/// Opcode of a binary frame.
pub const BINARY: u8 = 0x2;
/// Opcode of a close frame.
pub const CLOSE: u8 = 0x8;
/// Opcode of a ping.
pub const PING: u8 = 0x9;
/// Opcode of a pong.
pub const PONG: u8 = 0xA;

/// Says that a length of two bytes follows.
const MEDIUM: u8 = 126;
/// Says that a length of eight bytes follows.
const LONG: u8 = 127;

/// Any value will do: the mask protects proxies, and there are none here.
const MASK: [u8; 4] = [0x5a, 0x17, 0xc3, 0x88];

/// A whole frame of a server, found in a buffer.
#[derive(Debug, PartialEq)]
pub struct Frame<'a> {
    /// What it is.
    pub opcode: u8,
    /// What it carries.
    pub payload: &'a [u8],
}

/// The whole frames at the start of a buffer, one after another.
#[derive(Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// Frames of what was read so far.
    pub fn of(buffer: &'a [u8]) -> Self {
        Self { rest: buffer }
    }

    /// What has not made a whole frame yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        let [first, second, after @ ..] = self.rest else { return None };
        let (length, body) = match second & 0x7f {
            MEDIUM => {
                let (length, body) = after.split_first_chunk()?;
                (usize::from(u16::from_be_bytes(*length)), body)
            }
            LONG => {
                let (length, body) = after.split_first_chunk()?;
                // No buffer holds a frame that cannot be counted: it stays incomplete.
                (usize::try_from(u64::from_be_bytes(*length)).ok()?, body)
            }
            short => (usize::from(short), after),
        };
        let (payload, rest) = body.split_at_checked(length)?;
        self.rest = rest;
        Some(Frame { opcode: first & 0x0f, payload })
    }
}

/// A frame as a server sends it.
pub fn server_frame(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    header(opcode, payload.len(), 0, out);
    out.extend_from_slice(payload);
}

/// A frame as a client sends it, masked.
pub fn client_frame(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    header(opcode, payload.len(), 0x80, out);
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// The request that opens a WebSocket.
pub fn handshake(host: &str, path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}

/// Length of the answer to [`handshake`] at the start of a buffer; `None` until it is whole.
///
/// Errors with the status line if it is not 101.
pub fn accepted(buffer: &[u8]) -> Result<Option<usize>, String> {
    let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let line = buffer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    if line.starts_with(b"HTTP/1.1 101") {
        return Ok(Some(end + 4));
    }
    Err(String::from_utf8_lossy(line).into_owned())
}

fn header(opcode: u8, length: usize, mask: u8, out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    if let Ok(short @ 0..MEDIUM) = u8::try_from(length) {
        out.push(mask | short);
    } else if let Ok(medium) = u16::try_from(length) {
        out.push(mask | MEDIUM);
        out.extend_from_slice(&medium.to_be_bytes());
    } else {
        out.push(mask | LONG);
        out.extend_from_slice(&(length as u64).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_of_every_length_form_are_found() {
        for length in [0, 1, 125, 126, 400, 65_535, 65_536, 200_000] {
            let payload = vec![b'x'; length];
            let mut buffer = Vec::new();
            server_frame(TEXT, &payload, &mut buffer);
            let mut frames = Frames::of(&buffer);
            assert_eq!(frames.next(), Some(Frame { opcode: TEXT, payload: &payload }));
            assert_eq!((frames.next(), frames.rest()), (None, &[][..]));
        }
    }

    #[test]
    fn a_client_frame_is_masked() {
        let mut frame = Vec::new();
        client_frame(TEXT, b"hello", &mut frame);
        assert_eq!(frame[..2], [0x81, 0x85]);
        let unmasked: Vec<u8> = frame[6..].iter().zip(MASK.iter().cycle()).map(|(b, m)| b ^ m).collect();
        assert_eq!(unmasked, b"hello");
    }

    #[test]
    fn an_answer_is_taken_whole_and_only_if_it_is_101() {
        assert_eq!(accepted(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade"), Ok(None));
        assert_eq!(accepted(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81"), Ok(Some(36)));
        assert_eq!(
            accepted(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"),
            Err("HTTP/1.1 503 Service Unavailable".into())
        );
    }

    proptest! {
        #[test]
        fn cut_anywhere_the_same_frames_are_found(
            lengths in prop::collection::vec(0_usize..300, 1..8),
            cut in 0_usize..2_000,
        ) {
            let mut buffer = Vec::new();
            for (number, length) in (0_u8..).zip(&lengths) {
                server_frame(TEXT, &vec![number; *length], &mut buffer);
            }
            let cut = cut.min(buffer.len());
            let mut first = Frames::of(&buffer[..cut]);
            let mut found: Vec<usize> = first.by_ref().map(|frame| frame.payload.len()).collect();
            let rest = [first.rest(), &buffer[cut..]].concat();
            found.extend(Frames::of(&rest).map(|frame| frame.payload.len()));
            prop_assert_eq!(found, lengths);
        }
    }
}
