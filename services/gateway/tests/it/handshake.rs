//! The bytes themselves: the opening handshake and what is refused of it, frames in odd shapes, and how a connection
//! ends. What any server of RFC 6455 must do is in `autobahn.rs`.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::WsClient;
use crate::stage::{PATIENCE, Stage};

const UPGRADE: &[&str] = &[
    "Host: localhost",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

/// Sends a request with these lines in place of those of the same name, and returns the head of the answer.
async fn answer(address: SocketAddr, first: &str, lines: &[&str]) -> String {
    let name = |line: &str| line.split_once(':').map(|(name, _)| name.to_ascii_lowercase());
    let kept = UPGRADE.iter().filter(|line| lines.iter().all(|other| name(other) != name(line)));
    // A line without a value stands for none.
    let lines: Vec<&str> = kept.chain(lines).copied().filter(|line| !line.ends_with(':')).collect();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{first}\r\n{}\r\n\r\n", lines.join("\r\n")).as_bytes()).await.unwrap();
    head(&mut stream).await.to_ascii_lowercase()
}

/// Reads up to the end of an HTTP head.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, stream.read_u8()).await.expect("a timely answer").unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn a_request_that_is_no_handshake_is_told_why() {
    const GET: &str = "GET /ws/progress HTTP/1.1";
    let stage = Stage::new().await;
    for (first, lines, status) in [
        (GET, &[][..], 101),
        (GET, &["Connection: keep-alive, uPGRADE", "Upgrade: h2c, WebSocket"], 101),
        (GET, &["Connection: keep-alive", "Connection: Upgrade"], 101),
        (GET, &["Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Extensions: permessage-deflate"], 101),
        (GET, &["Connection: keep-alive"], 426),
        (GET, &["Upgrade: h2c"], 426),
        (GET, &["Sec-WebSocket-Version: 8"], 426),
        (GET, &["Sec-WebSocket-Version:"], 426),
        ("GET /ws/progress HTTP/1.0", &[], 426),
        (GET, &["Sec-WebSocket-Key:"], 400),
        (GET, &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ"], 400),
        (GET, &["Host:"], 400),
        (GET, &["Content-Length: 6"], 400),
        (GET, &["Transfer-Encoding: chunked"], 400),
        (GET, &["Origin: https://evil.example"], 403),
        ("POST /ws/progress HTTP/1.1", &[], 405),
    ] {
        let head = answer(stage.address, first, lines).await;
        let said: u16 = head[9..12].parse().unwrap();
        assert_eq!(said, status, "{first} {lines:?}: {head}");
        if status == 426 {
            for line in ["upgrade: websocket", "connection: upgrade", "sec-websocket-version: 13"] {
                assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} is missing: {head}");
            }
        }
        assert!(
            !head.contains("\r\nsec-websocket-protocol") && !head.contains("\r\nsec-websocket-ext"),
            "{head}"
        );
    }
}

/// A client's frame, masked.
fn frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first, 0x80 | u8::try_from(payload.len()).expect("it is short")];
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// The next frame of the server: its first byte and its payload.
async fn next(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let reading = async {
        let (first, length) = (stream.read_u8().await?, stream.read_u8().await?);
        let length = if length == 126 { stream.read_u16().await? } else { length.into() };
        let mut payload = vec![0; length.into()];
        stream.read_exact(&mut payload).await?;
        std::io::Result::Ok((first, payload))
    };
    timeout(PATIENCE, reading).await.expect("a timely frame").expect("a whole frame")
}

async fn next_message(stream: &mut TcpStream) -> Value {
    let (first, payload) = next(stream).await;
    assert_eq!(first, 0x81, "not a text frame");
    serde_json::from_slice(&payload).unwrap()
}

/// A connection that has read its greeting.
async fn connect(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /ws/progress HTTP/1.1\r\n{}\r\n\r\n", UPGRADE.join("\r\n"));
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 101"));
    assert_eq!(next_message(&mut stream).await["type"], "connected");
    stream
}

/// Reads a goodbye with this code and then the end of the connection, which must be an orderly one.
async fn expect_end(stream: &mut TcpStream, code: u16) {
    let (first, payload) = next(stream).await;
    assert_eq!((first, payload.get(..2)), (0x88, Some(&code.to_be_bytes()[..])), "not the goodbye");
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("a timely end").expect("no reset");
    assert!(rest.is_empty(), "something follows a goodbye: {rest:?}");
}

#[tokio::test]
async fn what_comes_together_with_the_request_is_read() {
    let stage = Stage::new().await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    let mut request = format!("GET /ws/progress HTTP/1.1\r\n{}\r\n\r\n", UPGRADE.join("\r\n")).into_bytes();
    request.extend(frame(0x81, [1, 2, 3, 4], br#"{"type":"ping","request_id":"early"}"#));
    stream.write_all(&request).await.unwrap();
    head(&mut stream).await;
    assert_eq!(next_message(&mut stream).await["type"], "connected");
    assert_eq!(next_message(&mut stream).await["data"]["request_id"], "early");
}

#[tokio::test]
async fn a_message_arrives_as_it_was_sent_however_it_is_cut() {
    let stage = Stage::new().await;
    let mut stream = connect(stage.address).await;
    stream.set_nodelay(true).unwrap();
    let mark = "κόσμε, ☃ and 🎨";
    let message = json!({"type": "ping", "request_id": mark}).to_string();
    // Fragments of a few bytes, each with a mask of its own, a ping behind each, and every byte by itself.
    let mut bytes = Vec::new();
    let fragments = message.as_bytes().chunks(5);
    let last = fragments.len() - 1;
    for (number, fragment) in fragments.enumerate() {
        let first = u8::from(number == last) << 7 | u8::from(number == 0);
        let key = u8::try_from(number).unwrap();
        bytes.extend(frame(first, [key, 0xff, 0, key.wrapping_mul(77)], fragment));
        bytes.extend(frame(0x89, [9, 8, 7, key], &[key]));
    }
    for byte in bytes {
        stream.write_u8(byte).await.unwrap();
    }
    for number in 0..last {
        assert_eq!(next(&mut stream).await, (0x8a, vec![u8::try_from(number).unwrap()]));
    }
    let pong = next_message(&mut stream).await;
    assert_eq!((&pong["type"], &pong["data"]["request_id"]), (&json!("pong"), &json!(mark)));
}

#[tokio::test]
async fn who_says_goodbye_is_answered_whatever_it_says_afterwards() {
    let stage = Stage::new().await;
    let mut stream = connect(stage.address).await;
    let mut bytes = frame(0x88, [1, 2, 3, 4], &[0x0f, 0xa0]);
    for _ in 0..1_000 {
        bytes.extend(frame(0x81, [1, 2, 3, 4], b"{}"));
    }
    stream.write_all(&bytes).await.unwrap();
    expect_end(&mut stream, 1000).await;
}

#[tokio::test]
async fn who_breaks_the_protocol_learns_it_although_more_is_on_its_way() {
    let stage = Stage::new().await;
    let mut stream = connect(stage.address).await;
    let mut bytes = frame(0x83, [1, 2, 3, 4], b"");
    bytes.resize(256 * 1024, 0);
    stream.write_all(&bytes).await.unwrap();
    expect_end(&mut stream, 1002).await;
}

#[tokio::test]
async fn who_never_stops_talking_is_let_go_and_costs_the_others_nothing() {
    let stage = Stage::new().await;
    let (mut reading, mut writing) = connect(stage.address).await.into_split();
    let pings = frame(0x89, [1, 2, 3, 4], b"").repeat(4_096);
    let talking = async { while writing.write_all(&pings).await.is_ok() {} };
    // However that ends, it ends.
    let listening = async { tokio::io::copy(&mut reading, &mut tokio::io::sink()).await };
    let both = timeout(PATIENCE, async { tokio::join!(talking, listening) });
    let other = async { WsClient::connect(stage.address).await.expect("connected").await };
    let (ended, _) = tokio::join!(both, other);
    assert!(ended.is_ok(), "it is not let go");
}
