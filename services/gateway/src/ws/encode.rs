//! Frames to be written.

use std::sync::Arc;

use bytes::BufMut as _;

use super::{LONGEST_CONTROL, Opcode};
use crate::close::Close;

/// The bit that says a frame is a whole message.
const FIN: u8 = 0x80;

/// A frame, encoded once. Clones share its bytes, so a message costs each further receiver nothing but a count.
///
/// The count stands with the bytes, in one allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire {
    bytes: Arc<[u8]>,
    /// Where the payload begins: at 2, 4 or 10.
    payload_at: u8,
}

impl Wire {
    /// A whole text message.
    pub fn text(payload: &str) -> Self {
        Self::new(Opcode::Text, payload.as_bytes())
    }

    /// A ping without a payload.
    pub fn ping() -> Self {
        Self::new(Opcode::Ping, &[])
    }

    /// The answer to a ping, with its payload of at most 125 bytes.
    pub fn pong(payload: &[u8]) -> Self {
        debug_assert!(payload.len() <= LONGEST_CONTROL, "a ping's payload is no longer");
        Self::new(Opcode::Pong, payload)
    }

    /// A goodbye.
    pub fn close(close: Close) -> Self {
        let mut payload = Vec::with_capacity(2 + close.reason.len());
        payload.put_u16(close.code);
        payload.put_slice(close.reason.as_bytes());
        debug_assert!(payload.len() <= LONGEST_CONTROL, "reasons are short");
        Self::new(Opcode::Close, &payload)
    }

    fn new(opcode: Opcode, payload: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(10 + payload.len());
        bytes.put_u8(FIN | opcode as u8);
        // The shortest form of a length that holds it (RFC 6455 section 5.2).
        if let Ok(length @ ..126) = u8::try_from(payload.len()) {
            bytes.put_u8(length);
        } else if let Ok(length) = u16::try_from(payload.len()) {
            bytes.put_u8(126);
            bytes.put_u16(length);
        } else {
            bytes.put_u8(127);
            bytes.put_u64(payload.len() as u64);
        }
        let payload_at = u8::try_from(bytes.len()).expect("a head has at most 10 bytes");
        bytes.put_slice(payload);
        Self { bytes: bytes.into(), payload_at }
    }

    /// The frame as it goes over a WebSocket.
    pub fn frame(&self) -> &[u8] {
        &self.bytes
    }

    /// What it carries, for those who frame it otherwise.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[usize::from(self.payload_at)..]
    }
}
