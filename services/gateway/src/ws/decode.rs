//! Bytes in, messages out.

use super::{LONGEST_CONTROL, Opcode};
use crate::close::{self, Close};

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A text message.
    Text(String),
    /// A binary message; nothing here wants its bytes.
    Binary,
    /// A ping, to be answered with the same payload.
    Ping(Vec<u8>),
    /// The answer to a ping.
    Pong,
    /// The client's goodbye, with its code if it gave one. Nothing after it counts.
    Close(Option<u16>),
}

/// What a client did that ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Against RFC 6455.
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    /// More than a message may have.
    #[error("a message is too big")]
    TooBig,
    /// A text that is none.
    #[error("a text message is not UTF-8")]
    NotText,
}

impl Violation {
    /// A length is not in its shortest form (RFC 6455 section 5.2), which some libraries let pass.
    pub(super) const WASTEFUL: Self = Self::Protocol("a length takes more bytes than it needs");

    /// How to say goodbye.
    pub fn close(self) -> Close {
        match self {
            Self::Protocol(_) => close::PROTOCOL,
            Self::TooBig => close::TOO_BIG,
            Self::NotText => close::NOT_TEXT,
        }
    }
}

/// Puts together what arrives in pieces.
///
/// It holds memory only while a frame or a fragmented message is incomplete, and not much more than twice the longest
/// message. That a text is none shows at the end of the frame that holds the fault.
#[derive(Debug)]
pub struct Decoder {
    /// Longest message, in bytes.
    longest: usize,
    /// The beginning of a frame whose end has not come yet.
    rest: Vec<u8>,
    /// A message of which fragments have come.
    message: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    is_text: bool,
    bytes: Vec<u8>,
    /// How many of the bytes are known to be whole characters.
    checked: usize,
}

/// The head of a frame (RFC 6455 section 5.2).
struct Head {
    fin: bool,
    opcode: Opcode,
    mask: [u8; 4],
    /// Where the payload begins.
    payload_at: usize,
    payload_length: usize,
}

impl Decoder {
    /// For messages of at most `longest` bytes.
    pub fn new(longest: usize) -> Self {
        Self { longest, rest: Vec::new(), message: None }
    }

    /// Takes what was read, and appends the messages that it completes.
    ///
    /// After an error the connection cannot be understood any longer; what was appended before it counts.
    pub fn decode(&mut self, input: &[u8], received: &mut Vec<Received>) -> Result<(), Violation> {
        if self.rest.is_empty() {
            let taken = self.frames(input, received)?;
            self.rest.extend_from_slice(&input[taken..]);
            return Ok(());
        }
        let mut rest = std::mem::take(&mut self.rest);
        rest.extend_from_slice(input);
        let taken = self.frames(&rest, received)?;
        if taken < rest.len() {
            // A buffer that held a long frame is not kept for the beginning of the next one.
            self.rest = if taken == 0 { rest } else { rest.split_off(taken) };
        }
        Ok(())
    }

    /// Bytes of memory that it holds.
    #[cfg(any(test, fuzzing))]
    pub fn held(&self) -> usize {
        self.rest.capacity() + self.message.as_ref().map_or(0, |message| message.bytes.capacity())
    }

    /// Reads whole frames, and returns how many bytes they had.
    fn frames(&mut self, input: &[u8], received: &mut Vec<Received>) -> Result<usize, Violation> {
        let mut taken = 0;
        while let Some(head) = self.head(&input[taken..])? {
            let begin = taken + head.payload_at;
            let Some(masked) = input.get(begin..begin + head.payload_length) else { break };
            let mut payload = masked.to_vec();
            unmask(&mut payload, head.mask);
            self.frame(&head, payload, received)?;
            taken = begin + head.payload_length;
            if matches!(received.last(), Some(Received::Close(_))) {
                return Ok(input.len());
            }
        }
        Ok(taken)
    }

    /// Reads the head of a frame, and refuses what may not follow; `None` if it is incomplete.
    fn head(&self, input: &[u8]) -> Result<Option<Head>, Violation> {
        let &[first, second, ..] = input else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(Violation::Protocol("a reserved bit is set"));
        }
        let opcode = Opcode::of(first & 0x0f).ok_or(Violation::Protocol("an unknown kind of frame"))?;
        let fin = first & 0x80 != 0;
        if second & 0x80 == 0 {
            return Err(Violation::Protocol("a client's frame is not masked"));
        }
        let Some((length, length_bytes)) = payload_length(second & 0x7f, &input[2..])? else {
            return Ok(None);
        };
        if opcode.is_control() && (!fin || length > LONGEST_CONTROL) {
            return Err(Violation::Protocol("a control frame is long or fragmented"));
        }
        match (opcode, &self.message) {
            (Opcode::Continuation, None) => {
                return Err(Violation::Protocol("a continuation of nothing"));
            }
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(Violation::Protocol("a message begins within another"));
            }
            _ => {}
        }
        let before = self.message.as_ref().map_or(0, |message| message.bytes.len());
        if !opcode.is_control() && before.saturating_add(length) > self.longest {
            return Err(Violation::TooBig);
        }
        let mask_at = 2 + length_bytes;
        let Some(mask) = input.get(mask_at..).and_then(<[u8]>::first_chunk::<4>) else { return Ok(None) };
        Ok(Some(Head { fin, opcode, mask: *mask, payload_at: mask_at + 4, payload_length: length }))
    }

    fn frame(
        &mut self,
        head: &Head,
        payload: Vec<u8>,
        received: &mut Vec<Received>,
    ) -> Result<(), Violation> {
        match head.opcode {
            Opcode::Ping => received.push(Received::Ping(payload)),
            Opcode::Pong => received.push(Received::Pong),
            Opcode::Close => received.push(Received::Close(close_code(&payload)?)),
            Opcode::Text | Opcode::Binary => {
                let is_text = head.opcode == Opcode::Text;
                let message = Partial { is_text, bytes: payload, checked: 0 };
                self.fragment(message, head.fin, received)?;
            }
            Opcode::Continuation => {
                let mut message = self.message.take().expect("the head was checked against it");
                message.bytes.extend_from_slice(&payload);
                self.fragment(message, head.fin, received)?;
            }
        }
        Ok(())
    }

    /// Takes a message that has grown, and hands it on if it is whole.
    fn fragment(
        &mut self,
        mut message: Partial,
        fin: bool,
        received: &mut Vec<Received>,
    ) -> Result<(), Violation> {
        message.check(fin)?;
        if fin {
            received.push(message.complete());
        } else {
            self.message = Some(message);
        }
        Ok(())
    }
}

impl Partial {
    /// Refuses what can no longer become text, each byte looked at once.
    fn check(&mut self, is_whole: bool) -> Result<(), Violation> {
        if !self.is_text {
            return Ok(());
        }
        match std::str::from_utf8(&self.bytes[self.checked..]) {
            Ok(_) => self.checked = self.bytes.len(),
            // A character that the fragment's end cuts in two.
            Err(error) if error.error_len().is_none() && !is_whole => self.checked += error.valid_up_to(),
            Err(_) => return Err(Violation::NotText),
        }
        Ok(())
    }

    fn complete(self) -> Received {
        if self.is_text {
            Received::Text(String::from_utf8(self.bytes).expect("it was checked"))
        } else {
            Received::Binary
        }
    }
}

/// The length of a payload, and how many bytes beside the second of the head tell it; `None` if they are incomplete.
fn payload_length(short: u8, input: &[u8]) -> Result<Option<(usize, usize)>, Violation> {
    let (length, bytes, least) = match short {
        126 => match input.first_chunk::<2>() {
            Some(length) => (u64::from(u16::from_be_bytes(*length)), 2, 126),
            None => return Ok(None),
        },
        127 => match input.first_chunk::<8>() {
            Some(length) => (u64::from_be_bytes(*length), 8, 1 << 16),
            None => return Ok(None),
        },
        short => (u64::from(short), 0, 0),
    };
    if length < least {
        return Err(Violation::WASTEFUL);
    }
    if length >> 63 != 0 {
        return Err(Violation::Protocol("a length has its highest bit set"));
    }
    let length = usize::try_from(length).map_err(|_| Violation::TooBig)?;
    Ok(Some((length, bytes)))
}

/// Reads a goodbye: nothing, or a code that may be sent and a reason that is text (RFC 6455 sections 5.5.1 and 7.4).
fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok(None) } else { Err(Violation::Protocol("half a close code")) };
    };
    let code = u16::from_be_bytes(*code);
    // 1004 to 1006 and 1015 are never sent; 1012 to 1014 came with IANA's registry.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Violation::Protocol("a close code that may not be sent"));
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(Violation::NotText);
    }
    Ok(Some(code))
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    for chunk in payload.chunks_mut(4) {
        for (byte, key) in chunk.iter_mut().zip(mask) {
            *byte ^= key;
        }
    }
}
