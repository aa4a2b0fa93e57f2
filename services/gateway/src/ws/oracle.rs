//! The same bytes read by a library, to hold our decoder against: for tests and for fuzzing.

use std::io::{self, Read, Write};

use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket};

use super::decode::Violation;
use super::{Decoder, LONGEST_CONTROL, Received};

/// What was read, and what ended it other than the end of the bytes or a goodbye.
pub type Reading = (Vec<Received>, Option<Violation>);

/// Decodes bytes that arrive in pieces of these lengths, again and again. Panics if too much memory is held meanwhile.
pub fn ours(bytes: &[u8], pieces: &[usize], longest: usize) -> Reading {
    let mut decoder = Decoder::new(longest);
    let mut received = Vec::new();
    let mut rest = bytes;
    for piece in pieces.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at((*piece).min(rest.len()));
        if let Err(violation) = decoder.decode(now, &mut received) {
            return (received, Some(violation));
        }
        if matches!(received.last(), Some(Received::Close(_))) {
            break;
        }
        // A list grows to up to twice what it holds; beside a message there may be a control frame, and its head.
        let held = decoder.held();
        assert!(held <= 2 * (longest + LONGEST_CONTROL + 14), "{held} bytes are held");
        rest = later;
    }
    (received, None)
}

/// The same by a library.
pub fn by_library(bytes: &[u8], longest: usize) -> Reading {
    let config = WebSocketConfig::default().max_message_size(Some(longest)).max_frame_size(Some(longest));
    // Its own 128 KiB would be all that takes time.
    let config = config.read_buffer_size(4 * 1024);
    let mut socket = WebSocket::from_raw_socket(OneWay(bytes), Role::Server, Some(config));
    let mut received = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => received.push(Received::Text(text.to_string())),
            Ok(Message::Binary(_)) => received.push(Received::Binary),
            Ok(Message::Ping(payload)) => received.push(Received::Ping(payload.to_vec())),
            Ok(Message::Pong(_)) => received.push(Received::Pong),
            Ok(Message::Close(close)) => {
                received.push(Received::Close(close.map(|close| close.code.into())));
                return (received, None);
            }
            Ok(Message::Frame(_)) => unreachable!("only read when asked for"),
            Err(Error::Capacity(_)) => return (received, Some(Violation::TooBig)),
            Err(Error::Utf8(_)) => return (received, Some(Violation::NotText)),
            Err(Error::Protocol(_)) if socket_has_ended(&socket) => return (received, None),
            Err(Error::Protocol(_)) => return (received, Some(BY_LIBRARY)),
            Err(_) => return (received, None),
        }
    }
}

/// The library tells what it found in other words.
const BY_LIBRARY: Violation = Violation::Protocol("so a library says");

/// The library calls it a protocol error that the bytes end without a goodbye.
fn socket_has_ended(socket: &WebSocket<OneWay<'_>>) -> bool {
    socket.get_ref().0.is_empty() && !socket.can_read()
}

/// Holds our decoder against itself and against the library, over bytes of which nothing is known. Panics where they
/// differ and should not.
///
/// `longest` is at least what a control frame may have: the library's bound of a frame is one for control frames too.
pub fn hold(bytes: &[u8], pieces: &[usize], longest: usize) {
    assert!(longest >= LONGEST_CONTROL, "the library would refuse control frames");
    // The library refuses a frame once it is whole, ours by its head: so each gets its end.
    let bytes = [bytes, &vec![0; longest + 14]].concat();
    let whole = ours(&bytes, &[bytes.len()], longest);
    assert_eq!(ours(&bytes, pieces, longest), whole, "in pieces of {pieces:?}");
    let theirs = by_library(&bytes, longest);
    assert!(agree(&whole, &theirs), "ours: {whole:?}\nthe library's: {theirs:?}");
}

/// Whether two readings are the same, as far as the library is as strict.
fn agree((ours, our_end): &Reading, (theirs, their_end): &Reading) -> bool {
    match our_end {
        // The library reads on.
        Some(Violation::WASTEFUL) => theirs.starts_with(ours),
        // The library looks at some things in another order, and answers a code that may not be sent by itself.
        Some(Violation::Protocol(_)) => match theirs.split_last() {
            Some((Received::Close(Some(1002)), before)) if their_end.is_none() => ours == before,
            _ => ours == theirs && their_end.is_some(),
        },
        Some(violation) => ours == theirs && their_end.as_ref() == Some(violation),
        None => match (ours.split_last(), theirs.split_last()) {
            // It does not know this code yet.
            (Some((Received::Close(Some(1014)), ours)), Some((Received::Close(Some(1002)), theirs))) => {
                ours == theirs && their_end.is_none()
            }
            _ => ours == theirs && their_end.is_none(),
        },
    }
}

/// What comes in is what was given; what goes out is nobody's business.
pub struct OneWay<'a>(pub &'a [u8]);

impl Read for OneWay<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for OneWay<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
