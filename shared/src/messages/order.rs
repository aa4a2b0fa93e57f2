//! The order of a job's messages, which holds across processes without their talking to each other.

use std::fmt;
use std::str::FromStr;

use crate::subjects::Kind;

/// Order of a job's messages: `(attempt, seq)` grows within a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventSeq {
    /// Number of the last started attempt; 0 before the first.
    pub attempt: u32,
    /// Place within the attempt.
    pub seq: u32,
}

impl EventSeq {
    /// Header that carries it on NATS.
    pub const HEADER: &'static str = "Stepcast-Seq";
    /// `seq` of `queued` (attempt 0).
    pub const QUEUED: u32 = 0;
    /// `seq` of `started`.
    pub const STARTED: u32 = 1;
    /// `seq` of the first progress of an attempt.
    pub const FIRST_PROGRESS: u32 = 2;
    /// `seq` of `retrying`.
    pub const RETRYING: u32 = 2_147_483_646;
    /// `seq` of the terminal event.
    pub const TERMINAL: u32 = 2_147_483_647;

    /// The place of a lifecycle event of this kind in this attempt.
    pub fn of(kind: Kind, attempt: u32) -> Self {
        let seq = match kind {
            Kind::Queued => Self::QUEUED,
            Kind::Started => Self::STARTED,
            Kind::Progress | Kind::Preview => Self::FIRST_PROGRESS,
            Kind::Retrying => Self::RETRYING,
            Kind::Completed | Kind::Failed | Kind::Cancelled => Self::TERMINAL,
        };
        Self { attempt, seq }
    }

    /// Whether nothing follows it.
    pub fn is_terminal(self) -> bool {
        self.seq == Self::TERMINAL
    }
}

impl fmt::Display for EventSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.attempt, self.seq)
    }
}

impl FromStr for EventSeq {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (attempt, seq) = text.split_once('.').ok_or(())?;
        Ok(Self { attempt: attempt.parse().map_err(drop)?, seq: seq.parse().map_err(drop)? })
    }
}
