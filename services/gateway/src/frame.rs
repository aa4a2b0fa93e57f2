//! A job's message as it travels through the gateway: what the subject and the header tell, and the payload unread.

use async_nats::HeaderMap;
use axum::extract::ws::Utf8Bytes;
use bytes::Bytes;
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::messages::EventSeq;
use stepcast_shared::subjects::{self, Kind};

/// Header in which a direct get names the subject that a message was recorded on.
const SUBJECT_HEADER: &str = "Nats-Subject";

/// One message of one job. Clones share the payload.
#[derive(Clone, Debug, PartialEq)]
pub struct JobFrame {
    /// Which job.
    pub job_id: JobId,
    /// What it says, as far as the gateway needs to know.
    pub class: Class,
    /// Its place in the job's life.
    pub seq: EventSeq,
    /// The envelope, byte for byte.
    pub text: Utf8Bytes,
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

    /// Reads a message of a live subject.
    pub fn live(message: async_nats::Message) -> Result<(Owner, Self), NotAFrame> {
        read(&message.subject, message.headers.as_ref(), message.payload)
    }

    /// Reads a message that a direct get answered.
    pub fn recorded(message: async_nats::Message) -> Result<(Owner, Self), NotAFrame> {
        let headers = message.headers.as_ref().ok_or(NotAFrame::NoSeq)?;
        let subject = headers.get(SUBJECT_HEADER).ok_or(NotAFrame::Subject)?.as_str().to_owned();
        read(&subject, message.headers.as_ref(), message.payload)
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

fn read(subject: &str, headers: Option<&HeaderMap>, payload: Bytes) -> Result<(Owner, JobFrame), NotAFrame> {
    let subject = subjects::parse_job(subject).ok_or(NotAFrame::Subject)?;
    let class = match subject.kind {
        Kind::Preview => return Err(NotAFrame::Preview),
        Kind::Progress => Class::Progress,
        _ => Class::Event,
    };
    let seq = headers
        .and_then(|headers| headers.get(EventSeq::HEADER))
        .and_then(|value| value.as_str().parse().ok())
        .ok_or(NotAFrame::NoSeq)?;
    let text = Utf8Bytes::try_from(payload).map_err(|_| NotAFrame::NotText)?;
    Ok((subject.owner, JobFrame { job_id: subject.job_id, class, seq, text }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(seq: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(EventSeq::HEADER, seq);
        headers
    }

    #[test]
    fn subject_and_header_tell_everything() {
        let (owner, job_id) = (Owner::anonymous(), JobId::mint());
        let subject = subjects::job(&owner, job_id, Kind::Completed);
        let (read_owner, frame) = read(&subject, Some(&headers("3.2147483647")), "no json".into()).unwrap();
        assert_eq!((read_owner, frame.job_id, frame.class), (owner, job_id, Class::Event));
        assert!(frame.is_terminal());
    }

    #[test]
    fn what_cannot_be_placed_is_refused() {
        let (owner, job_id) = (Owner::anonymous(), JobId::mint());
        let subject = subjects::job(&owner, job_id, Kind::Progress);
        assert_eq!(read(&subject, None, "".into()), Err(NotAFrame::NoSeq));
        assert_eq!(read(&subject, Some(&headers("x")), "".into()), Err(NotAFrame::NoSeq));
        let invalid = Bytes::from_static(&[0xff]);
        assert_eq!(read(&subject, Some(&headers("1.2")), invalid), Err(NotAFrame::NotText));
        assert_eq!(
            read("stepcast.v1.wake.default", Some(&headers("1.2")), "".into()),
            Err(NotAFrame::Subject)
        );
        let preview = subjects::job(&owner, job_id, Kind::Preview);
        assert_eq!(read(&preview, Some(&headers("1.2")), "".into()), Err(NotAFrame::Preview));
    }
}
