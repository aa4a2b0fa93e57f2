//! Why a connection is closed, in the code that tells a client whether to come back.

/// A close code and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// On the wire.
    pub code: u16,
    /// For a person.
    pub reason: &'static str,
}

/// The client said goodbye.
pub const NORMAL: Close = Close { code: 1000, reason: "goodbye" };
/// This gateway stops; come back.
pub const GOING_AWAY: Close = Close { code: 1001, reason: "the server restarts, come back" };
/// What came is not WebSocket.
pub const PROTOCOL: Close = Close { code: 1002, reason: "that is not WebSocket" };
/// A text frame was not text.
pub const NOT_TEXT: Close = Close { code: 1007, reason: "a text frame must be UTF-8" };
/// Far too many messages.
pub const FLOOD: Close = Close { code: 1008, reason: "too many messages" };
/// A frame over the limit.
pub const TOO_BIG: Close = Close { code: 1009, reason: "the message is too big" };
/// More waits for the client than may wait; come back and take a snapshot.
pub const TOO_SLOW: Close = Close { code: 4408, reason: "too slow, come back for a snapshot" };
/// More was recorded while NATS was away than is read again for those who are here; come back and take a snapshot.
pub const TOO_MUCH: Close = Close { code: 4408, reason: "too much was missed, come back for a snapshot" };
/// Nothing watched and nothing said; come back when there is something.
pub const IDLE: Close = Close { code: 1001, reason: "nothing is watched here" };
/// No answer to pings; come back if you are there.
pub const SILENT: Close = Close { code: 4408, reason: "no answer to pings" };
