//! A job's message as it travels through the gateway: what the subject and the headers tell, and the payload unread.

use async_nats::{HeaderMap, HeaderValue};
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::messages::EventSeq;
use stepcast_shared::nats::{PLACE_HEADER, SUBJECT_HEADER};
use stepcast_shared::subjects::{self, Kind};

use crate::ws::Wire;

/// One message of one job. Clones share the payload.
#[derive(Clone, Debug, PartialEq)]
pub struct JobFrame {
    /// Which job.
    pub job_id: JobId,
    /// What it says, as far as the gateway needs to know.
    pub class: Class,
    /// Its place in the job's life.
    pub seq: EventSeq,
    /// Its place in the event stream; 0 if it is not recorded.
    pub place: u64,
    /// The envelope, byte for byte.
    pub wire: Wire,
}

/// How a message is to be treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Recorded: every one of them is sent.
    Event,
    /// Live: a newer one replaces it.
    Progress,
}

impl JobFrame {
    /// Whether nothing of the job follows.
    pub fn is_terminal(&self) -> bool {
        self.seq.is_terminal()
    }

    /// The same by itself: a place tells whoever hears it that everything recorded before it has been told.
    #[must_use]
    pub fn without_place(self) -> Self {
        Self { place: 0, ..self }
    }

    /// Reads a message of a live subject, with its headers as they stand on the wire.
    pub fn live(subject: &[u8], headers: &[u8], payload: &[u8]) -> Result<(Owner, Self), NotAFrame> {
        let subject = std::str::from_utf8(subject).map_err(|_| NotAFrame::Subject)?;
        read(subject, |name| header(headers, name), payload)
    }

    /// Reads a message that was read from the stream.
    pub fn recorded(message: &async_nats::Message) -> Result<(Owner, Self), NotAFrame> {
        let headers = message.headers.as_ref().ok_or(NotAFrame::NoSeq)?;
        let get = |name| HeaderMap::get(headers, name).map(HeaderValue::as_str);
        read(get(SUBJECT_HEADER).ok_or(NotAFrame::Subject)?, get, &message.payload)
    }

    /// Makes a frame of an event that api remembers.
    pub fn remembered(job_id: JobId, seq: EventSeq, envelope: &str) -> Self {
        Self { job_id, class: Class::Event, seq, place: 0, wire: Wire::text(envelope) }
    }
}

/// Why a message is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAFrame {
    /// Previews are not passed on yet.
    #[error("it is a preview")]
    Preview,
    /// The subject is none of a job's.
    #[error("its subject is not a job's")]
    Subject,
    /// Its place is not said.
    #[error("its header {} is missing or unreadable", EventSeq::HEADER)]
    NoSeq,
    /// A text frame must be UTF-8.
    #[error("its payload is not UTF-8")]
    NotText,
}

fn read<'a>(
    subject: &str,
    header: impl Fn(&'static str) -> Option<&'a str>,
    payload: &[u8],
) -> Result<(Owner, JobFrame), NotAFrame> {
    let subject = subjects::parse_job(subject).ok_or(NotAFrame::Subject)?;
    let class = match subject.kind {
        Kind::Preview => return Err(NotAFrame::Preview),
        Kind::Progress => Class::Progress,
        _ => Class::Event,
    };
    let seq = header(EventSeq::HEADER).and_then(|value| value.parse().ok()).ok_or(NotAFrame::NoSeq)?;
    let place = match class {
        Class::Event => header(PLACE_HEADER).and_then(|value| value.parse().ok()).unwrap_or_default(),
        Class::Progress => 0,
    };
    let text = std::str::from_utf8(payload).map_err(|_| NotAFrame::NotText)?;
    Ok((subject.owner, JobFrame { job_id: subject.job_id, class, seq, place, wire: Wire::text(text) }))
}

/// The value of a header in the form `NATS/1.0\r\nName: value\r\n…`.
pub fn header<'a>(headers: &'a [u8], name: &str) -> Option<&'a str> {
    let mut rest = headers;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.get(name.len()) == Some(&b':') && line.starts_with(name.as_bytes()) {
            return std::str::from_utf8(&line[name.len() + 1..]).ok().map(str::trim);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subject_and_headers_tell_everything() {
        let (owner, job_id) = (Owner::anonymous(), JobId::mint());
        let subject = subjects::job(&owner, job_id, Kind::Completed);
        let headers = b"NATS/1.0\r\nNats-Sequence: 17\r\nStepcast-Seq:3.2147483647\r\n\r\n";
        let (read_owner, frame) = JobFrame::live(subject.as_bytes(), headers, b"no json").unwrap();
        assert_eq!((read_owner, frame.job_id, frame.class), (owner, job_id, Class::Event));
        assert!(frame.is_terminal());
        assert_eq!(frame.place, 17);
        assert_eq!(frame.wire.payload(), b"no json");
    }

    #[test]
    fn what_cannot_be_placed_is_refused() {
        const SEQ: &[u8] = b"NATS/1.0\r\nStepcast-Seq: 1.2\r\n\r\n";
        let (owner, job_id) = (Owner::anonymous(), JobId::mint());
        let live = |subject: &str, headers, payload| JobFrame::live(subject.as_bytes(), headers, payload);
        let subject = subjects::job(&owner, job_id, Kind::Progress);
        assert_eq!(live(&subject, b"", b""), Err(NotAFrame::NoSeq));
        assert_eq!(live(&subject, b"NATS/1.0\r\nStepcast-Seq: x\r\n\r\n", b""), Err(NotAFrame::NoSeq));
        assert_eq!(live(&subject, SEQ, &[0xff]), Err(NotAFrame::NotText));
        assert_eq!(live("stepcast.v1.wake.default", SEQ, b""), Err(NotAFrame::Subject));
        let preview = subjects::job(&owner, job_id, Kind::Preview);
        assert_eq!(live(&preview, SEQ, b""), Err(NotAFrame::Preview));
    }

    #[test]
    fn a_header_is_found_by_its_whole_name() {
        let headers = b"NATS/1.0\r\nNats-Sequence-Of: 1\r\nNats-Sequence: 2\r\n\r\n";
        assert_eq!(header(headers, "Nats-Sequence"), Some("2"));
        assert_eq!(header(headers, "Nats"), None);
    }
}
