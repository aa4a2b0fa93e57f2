//! One client: connects, says what it wants, waits until it has it, then listens.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendFlags, sockopt};

use crate::nats_lines::{Lines, Said};
use crate::websocket::{self, BINARY, CLOSE, Frames, PING, PONG};

/// Bytes read from a socket at once; a client that reads less often than its server writes finds more than a message.
const READ: usize = 128 * 1024;
/// Bytes of the largest frame.
const LARGEST: usize = 64 * 1024 * 1024;

/// What the frames of a server hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// A message each.
    Messages,
    /// NATS's protocol, cut anywhere.
    Nats,
}

/// What a client says, and what it must hear before it counts as ready.
#[derive(Clone, Debug)]
pub struct Hello {
    /// What it hears.
    pub speech: Speech,
    /// The WebSocket handshake; empty for a server without one.
    pub request: Vec<u8>,
    /// What it sends once the handshake is done.
    pub subscribe: Vec<u8>,
    /// Whether its subscription is confirmed by a frame that says so.
    pub confirmed: bool,
    /// Snapshots of jobs that follow.
    pub snapshots: u32,
}

/// What reading led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing that matters beyond the messages themselves.
    Nothing,
    /// The client has all that it asked for first.
    Ready,
}

/// A client and its socket.
#[derive(Debug)]
pub struct Client {
    hello: Hello,
    stage: Stage,
    socket: Option<OwnedFd>,
    /// A frame that has arrived in part.
    carry: Vec<u8>,
    /// What NATS has said in part, in whole frames.
    said: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Closed,
    Connecting,
    Shaking,
    Waiting { confirmed: bool, snapshots: u32 },
    Ready,
}

impl Client {
    /// A client that is not connected.
    pub fn new(hello: Hello) -> Self {
        Self { hello, stage: Stage::Closed, socket: None, carry: Vec::new(), said: Vec::new() }
    }

    /// Takes its socket, which is being connected.
    pub fn connecting(&mut self, socket: OwnedFd) {
        self.socket = Some(socket);
        self.stage = Stage::Connecting;
        self.carry = Vec::new();
        self.said = Vec::new();
    }

    /// Its socket, while it has one.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(OwnedFd::as_fd)
    }

    /// Whether it has all that it asked for first.
    pub fn is_ready(&self) -> bool {
        self.stage == Stage::Ready
    }

    /// How far it is, for an error.
    pub fn describe(&self) -> String {
        format!("is {:?}", self.stage)
    }

    /// Says hello, the socket being connected.
    pub fn connected(&mut self) -> Result<(), String> {
        let socket = self.socket().ok_or("it has no socket")?;
        if let Err(error) = sockopt::socket_error(socket).and_then(|error| error) {
            return Err(format!("not connected: {error}"));
        }
        if self.hello.request.is_empty() {
            return self.subscribe();
        }
        self.stage = Stage::Shaking;
        self.send(&self.hello.request)
    }

    /// Reads once; `message` is given each frame's payload, and says whether it knew it.
    ///
    /// Errors with the reason if the connection is over.
    pub fn read(
        &mut self,
        buffer: &mut Vec<u8>,
        mut message: impl FnMut(&[u8]) -> bool,
    ) -> Result<Heard, String> {
        let Some(socket) = &self.socket else { return Ok(Heard::Nothing) };
        let carried = self.carry.len();
        if carried > LARGEST {
            return Err("a frame larger than any message".to_owned());
        }
        if buffer.len() < carried + READ {
            buffer.resize(carried + READ, 0);
        }
        buffer[..carried].copy_from_slice(&self.carry);
        let read = match rustix::io::read(socket, &mut buffer[carried..carried + READ]) {
            Ok(0) => return Err("the server closed the connection".to_owned()),
            Ok(read) => read,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Heard::Nothing),
            Err(error) => return Err(error.to_string()),
        };
        let was_ready = self.is_ready();
        let mut data = &buffer[..carried + read];
        if self.stage == Stage::Shaking {
            let Some(length) = websocket::accepted(data)? else {
                self.carry = data.to_vec();
                return Ok(Heard::Nothing);
            };
            data = &data[length..];
            self.subscribe()?;
        }
        let mut frames = Frames::of(data);
        for frame in frames.by_ref() {
            match frame.opcode {
                PING => {
                    let mut pong = Vec::new();
                    websocket::client_frame(PONG, frame.payload, &mut pong);
                    self.send(&pong)?;
                }
                CLOSE => return Err(close_reason(frame.payload)),
                _ => match self.hello.speech {
                    Speech::Messages if message(frame.payload) => {}
                    Speech::Messages => self.other(frame.payload),
                    Speech::Nats => self.nats(frame.payload, &mut message)?,
                },
            }
        }
        self.carry.clear();
        self.carry.extend_from_slice(frames.rest());
        Ok(if self.is_ready() && !was_ready { Heard::Ready } else { Heard::Nothing })
    }

    /// Gives the socket up, with a reset.
    pub fn close(&mut self) {
        self.socket = None;
        self.stage = Stage::Closed;
    }

    fn subscribe(&mut self) -> Result<(), String> {
        self.stage = Stage::Waiting { confirmed: !self.hello.confirmed, snapshots: self.hello.snapshots };
        self.send(&self.hello.subscribe)?;
        self.settle();
        Ok(())
    }

    /// A frame that is no published message.
    fn other(&mut self, payload: &[u8]) {
        let Stage::Waiting { confirmed, snapshots } = &mut self.stage else { return };
        let is = |kind: &str| {
            let head = &payload[..payload.len().min(64)];
            head.windows(kind.len()).any(|window| window == kind.as_bytes())
        };
        if is("subscription_confirmed") {
            *confirmed = true;
        } else if is("generation_started") {
            *snapshots = snapshots.saturating_sub(1);
        }
        self.settle();
    }

    /// A frame of NATS's protocol.
    fn nats(&mut self, payload: &[u8], message: &mut impl FnMut(&[u8]) -> bool) -> Result<(), String> {
        let joined;
        let text = if self.said.is_empty() {
            payload
        } else {
            joined = [&self.said, payload].concat();
            &joined
        };
        let mut lines = Lines::of(text);
        for said in lines.by_ref() {
            match said {
                Said::Message(payload) => {
                    message(payload);
                }
                Said::Ping => {
                    let mut pong = Vec::new();
                    websocket::client_frame(BINARY, b"PONG\r\n", &mut pong);
                    self.send(&pong)?;
                }
                Said::Pong => {
                    if let Stage::Waiting { confirmed, .. } = &mut self.stage {
                        *confirmed = true;
                    }
                    self.settle();
                }
                Said::Error(complaint) => return Err(String::from_utf8_lossy(complaint).into_owned()),
                Said::Other => {}
            }
        }
        let rest = lines.rest();
        self.said = rest.to_vec();
        Ok(())
    }

    fn settle(&mut self) {
        if self.stage == (Stage::Waiting { confirmed: true, snapshots: 0 }) {
            self.stage = Stage::Ready;
        }
    }

    /// Sends something small; a socket that does not take it is broken, since nothing waits in it.
    fn send(&self, bytes: &[u8]) -> Result<(), String> {
        let Some(socket) = &self.socket else { return Ok(()) };
        match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) => Err("the server does not read".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn close_reason(payload: &[u8]) -> String {
    match payload.split_first_chunk() {
        Some((code, reason)) => {
            format!("closed with {} {}", u16::from_be_bytes(*code), String::from_utf8_lossy(reason))
        }
        None => "closed without a code".to_owned(),
    }
}
