//! Makes an echo server of a gateway, for a suite that knows no other.
//!
//! What a client says reaches the gateway as it is, byte for byte. A message that means nothing to the gateway is
//! answered by one `error`, in order; on the way back the message itself is put in its place. Everything else that
//! the gateway says passes: pongs, goodbyes, and the end of the connection.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;

/// A door to a gateway behind which everything echoes.
pub struct Echo {
    pub address: SocketAddr,
    _task: JoinSet<()>,
}

impl Echo {
    pub async fn before(gateway: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    let gateway = TcpStream::connect(gateway).await.unwrap();
                    for socket in [&client, &gateway] {
                        socket.set_nodelay(true).unwrap();
                    }
                    let ((from_client, to_client), (from_gateway, to_gateway)) =
                        (client.into_split(), gateway.into_split());
                    let said = Mutex::default();
                    // A connection that breaks is the suite's to judge.
                    let _ = tokio::join!(
                        ask(from_client, to_gateway, &said),
                        answer(from_gateway, to_client, &said)
                    );
                });
            }
        });
        Self { address, _task: task }
    }
}

/// Messages that the gateway has not answered yet: their opcodes and payloads.
type Said = Mutex<VecDeque<(u8, Vec<u8>)>>;

async fn ask(mut client: OwnedReadHalf, mut gateway: OwnedWriteHalf, said: &Said) -> io::Result<()> {
    let mut stream = Stream::default();
    let mut message: Option<(u8, Vec<u8>)> = None;
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let read = client.read(&mut bytes).await?;
        if read == 0 {
            return gateway.shutdown().await;
        }
        stream.rest.extend_from_slice(&bytes[..read]);
        // Whether this is right is for the gateway to say.
        for frame in stream.frames() {
            match (frame.opcode, &mut message) {
                (TEXT | BINARY, _) => message = Some((frame.opcode, frame.payload)),
                (CONTINUATION, Some((_, whole))) => whole.extend(frame.payload),
                _ => continue,
            }
            if frame.fin {
                said.lock().unwrap().extend(message.take());
            }
        }
        gateway.write_all(&bytes[..read]).await?;
    }
}

async fn answer(mut gateway: OwnedReadHalf, mut client: OwnedWriteHalf, said: &Said) -> io::Result<()> {
    let mut stream = Stream::default();
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let read = gateway.read(&mut bytes).await?;
        if read == 0 {
            return client.shutdown().await;
        }
        stream.rest.extend_from_slice(&bytes[..read]);
        if let Some(head) = stream.head() {
            client.write_all(&head).await?;
        }
        let mut echoed = Vec::new();
        for frame in stream.frames() {
            if frame.opcode != TEXT {
                frame.write(&mut echoed);
                continue;
            }
            let words: Value = serde_json::from_slice(&frame.payload).expect("the gateway says JSON");
            match words["type"].as_str() {
                Some("connected") => {}
                Some("error") => {
                    let (opcode, payload) =
                        said.lock().unwrap().pop_front().expect("it answers what was said");
                    Frame { fin: true, opcode, payload }.write(&mut echoed);
                }
                other => panic!("{other:?} does not answer nonsense"),
            }
        }
        client.write_all(&echoed).await?;
    }
}

/// Bytes in one direction: HTTP first, then frames.
#[derive(Default)]
struct Stream {
    rest: Vec<u8>,
    is_framed: bool,
}

struct Frame {
    fin: bool,
    opcode: u8,
    payload: Vec<u8>,
}

impl Stream {
    /// The HTTP head, once, when it is whole.
    fn head(&mut self) -> Option<Vec<u8>> {
        if self.is_framed {
            return None;
        }
        let end = self.rest.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        self.is_framed = true;
        let frames = self.rest.split_off(end);
        Some(std::mem::replace(&mut self.rest, frames))
    }

    fn frames(&mut self) -> Vec<Frame> {
        self.head();
        let mut frames = Vec::new();
        let mut taken = 0;
        while let Some((frame, length)) = self.is_framed.then(|| Frame::read(&self.rest[taken..])).flatten() {
            frames.push(frame);
            taken += length;
        }
        self.rest.drain(..taken);
        frames
    }
}

impl Frame {
    /// The first frame, if it is whole, and its length.
    fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let (&[first, second], rest) = bytes.split_first_chunk()?;
        let (length, rest) = match second & 0x7f {
            126 => rest
                .split_first_chunk()
                .map(|(length, rest)| (u64::from(u16::from_be_bytes(*length)), rest))?,
            127 => rest.split_first_chunk().map(|(length, rest)| (u64::from_be_bytes(*length), rest))?,
            length => (u64::from(length), rest),
        };
        let (mask, rest) = if second & 0x80 == 0 { (&[0; 4], rest) } else { rest.split_first_chunk()? };
        let masked = rest.get(..usize::try_from(length).ok()?)?;
        let payload = masked.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        let frame = Self { fin: first & 0x80 != 0, opcode: first & 0xf, payload };
        Some((frame, bytes.len() - rest.len() + masked.len()))
    }

    /// As a server sends it.
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.push(u8::from(self.fin) << 7 | self.opcode);
        match self.payload.len() {
            length @ ..126 => bytes.push(u8::try_from(length).unwrap()),
            length @ ..65_536 => {
                bytes.push(126);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                bytes.push(127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&self.payload);
    }
}
