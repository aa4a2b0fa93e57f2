//! WebSocket (RFC 6455), server side, as far as the gateway speaks it: text out, text in, control frames both ways.
//!
//! Our own rather than a library's because of what a library keeps for each connection, and because one encoded
//! frame must be shared by all its receivers (`docs/adr/0009-own-data-path.md`). Nothing here touches a socket:
//! [`Wire`] is bytes to be written, [`Decoder`] turns bytes that were read into messages, [`handshake`] answers the
//! request. Property tests hold all three against a library.

pub mod handshake;

mod decode;
mod encode;
#[cfg(any(test, fuzzing))]
pub mod oracle;

pub use decode::{Decoder, Received};
pub use encode::Wire;

/// What a frame is (RFC 6455 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xa,
}

impl Opcode {
    fn of(nibble: u8) -> Option<Self> {
        Some(match nibble {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// Longest payload of a control frame (RFC 6455 section 5.5).
const LONGEST_CONTROL: usize = 125;

#[cfg(test)]
mod tests;
