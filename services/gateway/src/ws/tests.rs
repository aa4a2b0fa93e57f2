use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Message, WebSocket};

use super::decode::Violation;
use super::handshake::{self, Unfit};
use super::oracle::{self, OneWay, Reading};
use super::*;
use crate::close::{self, Close};

/// Longest message of these tests.
const LONGEST: usize = 70_000;

/// A frame as a client may build it, well or badly.
#[derive(Clone, Debug)]
struct Frame {
    first: u8,
    mask: Option<[u8; 4]>,
    payload: Vec<u8>,
}

impl Frame {
    fn new(fin: bool, opcode: Opcode, payload: &[u8]) -> Self {
        let first = u8::from(fin) << 7 | opcode as u8;
        Self { first, mask: Some([1, 2, 3, 4]), payload: payload.to_vec() }
    }

    fn bytes(&self) -> Vec<u8> {
        let masked = u8::from(self.mask.is_some()) << 7;
        let mut bytes = vec![self.first];
        match self.payload.len() {
            length @ ..126 => bytes.push(masked | u8::try_from(length).unwrap()),
            length @ ..65_536 => {
                bytes.push(masked | 0x7e);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                bytes.push(masked | 0x7f);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        let mask = self.mask.unwrap_or_default();
        if self.mask.is_some() {
            bytes.extend(mask);
        }
        bytes.extend(self.payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        bytes
    }
}

/// Decodes bytes that arrive in pieces of these lengths, again and again.
fn decode(bytes: &[u8], pieces: &[usize]) -> (Vec<Received>, Option<Close>) {
    said(oracle::ours(bytes, pieces, LONGEST))
}

fn said((received, violation): Reading) -> (Vec<Received>, Option<Close>) {
    (received, violation.map(Violation::close))
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let opcode = prop_oneof![
        4 => Just(0x1_u8), 2 => Just(0x2), 4 => Just(0x0), 1 => Just(0x8), 2 => Just(0x9), 1 => Just(0xa),
    ];
    let payload = prop_oneof![
        4 => "[a-zäöü☃]{0,40}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..130),
        1 => (100_usize..70_100).prop_map(|length| vec![b'x'; length]),
    ];
    (any::<bool>(), opcode, any::<[u8; 4]>(), payload).prop_map(|(fin, opcode, mask, mut payload)| {
        let is_control = opcode & 0x8 != 0;
        if is_control {
            payload.truncate(LONGEST_CONTROL);
        }
        if opcode == 0x8 {
            payload.splice(0..0, 1000_u16.to_be_bytes());
            payload.truncate(40);
        }
        Frame { first: u8::from(fin || is_control) << 7 | opcode, mask: Some(mask), payload }
    })
}

proptest! {
    #[test]
    fn frames_are_read_as_a_library_reads_them(
        frames in vec(any_frame(), 0..8),
        pieces in vec(1_usize..5_000, 1..8),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
        let (ours, mut theirs) = (decode(&bytes, &pieces), said(oracle::by_library(&bytes, LONGEST)));
        // A frame that is too big and out of place besides is refused for either.
        if ours.1 == Some(close::PROTOCOL) && theirs.1 == Some(close::TOO_BIG) {
            theirs.1 = ours.1;
        }
        prop_assert_eq!(ours, theirs);
    }

    #[test]
    fn a_piece_of_any_length_reads_the_same(frames in vec(any_frame(), 0..6), piece in 1_usize..40) {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).take(20_000).collect();
        prop_assert_eq!(decode(&bytes, &[piece]), decode(&bytes, &[usize::MAX]));
    }

    #[test]
    fn any_bytes_are_read_as_a_library_reads_them(
        bytes in vec(any::<u8>(), 0..2_000),
        pieces in vec(1_usize..50, 1..4),
    ) {
        oracle::hold(&bytes, &pieces, 130);
    }

    #[test]
    fn what_is_written_a_library_reads(text in "[a-zäöü☃]{0,200}", length in 0_usize..70_000) {
        for text in [text, "x".repeat(length)] {
            let wire = Wire::text(&text);
            prop_assert_eq!(wire.payload(), text.as_bytes());
            let mut client = WebSocket::from_raw_socket(OneWay(wire.frame()), Role::Client, None);
            prop_assert_eq!(client.read().unwrap(), Message::text(text));
        }
    }
}

#[test]
fn control_frames_are_read_by_a_library_too() {
    let read =
        |wire: &Wire| WebSocket::from_raw_socket(OneWay(wire.frame()), Role::Client, None).read().unwrap();
    assert_eq!(read(&Wire::ping()), Message::Ping("".into()));
    assert_eq!(read(&Wire::pong(b"abc")), Message::Pong("abc".into()));
    let Message::Close(Some(frame)) = read(&Wire::close(close::TOO_SLOW)) else { panic!("no goodbye") };
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (4408, close::TOO_SLOW.reason));
}

#[test]
fn control_frames_may_come_between_fragments_and_nothing_else_may() {
    let fragments = [
        Frame::new(false, Opcode::Text, b"a"),
        Frame::new(true, Opcode::Ping, b"p"),
        Frame::new(true, Opcode::Continuation, b"b"),
    ];
    let bytes: Vec<u8> = fragments.iter().flat_map(Frame::bytes).collect();
    let expected = vec![Received::Ping(b"p".to_vec()), Received::Text("ab".to_owned())];
    assert_eq!(decode(&bytes, &[1]), (expected, None));
    let within = [Frame::new(false, Opcode::Text, b"a"), Frame::new(true, Opcode::Text, b"b")];
    let bytes: Vec<u8> = within.iter().flat_map(Frame::bytes).collect();
    assert_eq!(decode(&bytes, &[usize::MAX]), (Vec::new(), Some(close::PROTOCOL)));
}

#[test]
fn what_the_protocol_forbids_ends_the_connection() {
    let text = Frame::new(true, Opcode::Text, b"x");
    let forbidden = [
        ("not masked", Frame { mask: None, ..text.clone() }.bytes()),
        ("a reserved bit", Frame { first: text.first | 0x40, ..text.clone() }.bytes()),
        ("an unknown kind", Frame { first: 0x83, ..text.clone() }.bytes()),
        ("an unknown control frame", Frame { first: 0x8b, ..text }.bytes()),
        ("a continuation of nothing", Frame::new(true, Opcode::Continuation, b"x").bytes()),
        ("a fragmented ping", Frame::new(false, Opcode::Ping, b"").bytes()),
        ("a long ping", Frame::new(true, Opcode::Ping, &[0; 126]).bytes()),
        ("half a close code", Frame::new(true, Opcode::Close, &[3]).bytes()),
        ("a close code for nobody", Frame::new(true, Opcode::Close, &1005_u16.to_be_bytes()).bytes()),
        ("a length that wastes bytes", vec![0x81, 0xfe, 0, 1, 0, 0, 0, 0, b'x']),
        ("a length of 2^63", vec![0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]),
    ];
    for (what, bytes) in forbidden {
        assert_eq!(decode(&bytes, &[usize::MAX]), (Vec::new(), Some(close::PROTOCOL)), "{what}");
    }
}

#[test]
fn what_is_no_text_is_told_apart() {
    let close = Frame::new(true, Opcode::Close, &[3, 0xe8, 0xff]).bytes();
    assert_eq!(decode(&close, &[1]).1, Some(close::NOT_TEXT));
    let text = Frame::new(true, Opcode::Text, &[0xc3]).bytes();
    assert_eq!(decode(&text, &[1]).1, Some(close::NOT_TEXT));
    // A character may be cut in two by a fragment's end.
    let halves = [Frame::new(false, Opcode::Text, &[0xc3]), Frame::new(true, Opcode::Continuation, &[0xa4])];
    let bytes: Vec<u8> = halves.iter().flat_map(Frame::bytes).collect();
    assert_eq!(decode(&bytes, &[3]), (vec![Received::Text("ä".to_owned())], None));
}

#[test]
fn a_message_too_big_is_refused_by_its_head() {
    let head = Frame::new(true, Opcode::Text, &vec![b'x'; LONGEST + 1]).bytes();
    assert_eq!(decode(&head[..10], &[1]), (Vec::new(), Some(close::TOO_BIG)));
    let half = vec![b'x'; LONGEST / 2 + 1];
    let fragments = [Frame::new(false, Opcode::Text, &half), Frame::new(true, Opcode::Continuation, &half)];
    let bytes: Vec<u8> = fragments.iter().flat_map(Frame::bytes).collect();
    assert_eq!(decode(&bytes, &[1_000]), (Vec::new(), Some(close::TOO_BIG)));
}

#[test]
fn nothing_after_a_goodbye_counts() {
    let frames = [Frame::new(true, Opcode::Close, &[]), Frame::new(true, Opcode::Text, b"late")];
    let bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
    assert_eq!(decode(&bytes, &[usize::MAX]), (vec![Received::Close(None)], None));
}

fn request() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("host", "localhost:8000"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
}

#[test]
fn the_handshake_answers_as_the_rfc_has_it() {
    // The example of RFC 6455 section 1.3.
    let answer = handshake::answer(&Method::GET, Version::HTTP_11, &request()).unwrap();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[test]
fn a_request_that_lacks_something_is_told_what() {
    let answer = |name: &'static str, values: &[&'static str]| {
        let mut headers = request();
        headers.remove(name);
        for value in values {
            headers.append(name, HeaderValue::from_static(value));
        }
        handshake::answer(&Method::GET, Version::HTTP_11, &headers).err()
    };
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    for (name, values, unfit) in [
        ("connection", &["close"][..], Some(Unfit::NotAsked)),
        ("connection", &["close, notupgrade"], Some(Unfit::NotAsked)),
        ("connection", &["keep-alive", "UPGRADE"], None),
        ("upgrade", &[], Some(Unfit::NotAsked)),
        ("upgrade", &["h2c,websocket"], None),
        ("sec-websocket-version", &["8"], Some(Unfit::Version)),
        ("sec-websocket-version", &["13", "8"], Some(Unfit::Version)),
        ("sec-websocket-key", &[], Some(Unfit::Key)),
        ("sec-websocket-key", &["short"], Some(Unfit::Key)),
        ("sec-websocket-key", &["dGhlIHNhbXBsZSBub25jZ!=="], Some(Unfit::Key)),
        ("sec-websocket-key", &[key, key], Some(Unfit::Key)),
        ("host", &[], Some(Unfit::Host)),
        ("host", &["a", "b"], Some(Unfit::Host)),
        ("content-length", &["0"], None),
        ("content-length", &["5"], Some(Unfit::Body)),
        ("transfer-encoding", &["chunked"], Some(Unfit::Body)),
        ("sec-websocket-protocol", &["chat"], None),
        ("sec-websocket-extensions", &["permessage-deflate"], None),
    ] {
        assert_eq!(answer(name, values), unfit, "{name}: {values:?}");
    }
    for (method, version) in [(Method::POST, Version::HTTP_11), (Method::GET, Version::HTTP_10)] {
        assert_eq!(handshake::answer(&method, version, &request()).err(), Some(Unfit::NotAsked));
    }
}

#[test]
fn nothing_is_agreed_to_that_is_not_spoken() {
    let mut headers = request();
    headers.insert("sec-websocket-protocol", HeaderValue::from_static("chat"));
    headers.insert("sec-websocket-extensions", HeaderValue::from_static("permessage-deflate"));
    let answer = handshake::answer(&Method::GET, Version::HTTP_11, &headers).unwrap();
    assert_eq!(answer.headers().len(), 3, "{:?}", answer.headers());
}
