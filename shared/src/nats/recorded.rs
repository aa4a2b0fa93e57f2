//! Reading what a stream has recorded, in few requests and without a consumer.
//!
//! Any replica may answer a direct get, also one that is behind: a server joins in when it has caught up to nine
//! tenths. So where it matters that nothing is missing, the stream's leader has the last word.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::kv::Store;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::RawMessage;
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, Message};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};

/// Header in which a recorded message, republished or read, has its place in the stream.
pub const PLACE_HEADER: &str = "Nats-Sequence";
/// Header in which a message that was read names the subject that it was recorded on.
pub const SUBJECT_HEADER: &str = "Nats-Subject";
/// Header in which each part of an answer names the place of the part before; the first says 0.
const PREVIOUS_HEADER: &str = "Nats-Last-Sequence";

/// Largest number of subjects in one [`multi_last`]; the server answers 413 from 1,025.
pub const MULTI_LAST_LIMIT: usize = 500;

/// The server takes a direct get for one that asks for nothing.
#[derive(Debug, thiserror::Error)]
#[error("the stream does not understand the request")]
pub(super) struct NotUnderstood;

/// From where a stream is read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Behind this sequence.
    After(u64),
    /// At the first message that the stream took at this time or later, on its own clock.
    At(DateTime<Utc>),
}

/// The newest message of a stream; who does not have it is behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    /// Its sequence; 0 if there is none.
    pub place: u64,
    subject: String,
}

#[derive(Serialize)]
struct MultiLastRequest<'a> {
    multi_last: &'a [&'a str],
}

#[derive(Serialize)]
struct NextRequest<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<DateTime<Utc>>,
    next_by_subj: &'a str,
    /// Only for a direct get: the leader tells one message at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<usize>,
}

#[derive(Serialize)]
struct LastRequest<'a> {
    last_by_subj: &'a str,
}

#[derive(Deserialize)]
struct Told {
    message: RawMessage,
}

/// The last message of each of many subjects (wildcards allowed), in one request.
///
/// `newest` is what the answer must not lack, or `None` if it may come from a replica that is behind. At most
/// [`MULTI_LAST_LIMIT`] subjects. Errors if the server breaks off, says nothing for 5 s, or is behind.
pub async fn multi_last(
    client: &Client,
    stream: &str,
    subjects: &[String],
    newest: Option<&Newest>,
) -> anyhow::Result<Vec<Message>> {
    ensure!(subjects.len() <= MULTI_LAST_LIMIT, "at most {MULTI_LAST_LIMIT} subjects a request");
    let newest = newest.filter(|newest| newest.place > 0);
    let mut asked: Vec<&str> = subjects.iter().map(String::as_str).collect();
    let witness = newest.map(|newest| newest.subject.as_str());
    asked.extend(witness.filter(|_| !asked.is_empty()));
    let found = direct_get(client, stream, &MultiLastRequest { multi_last: &asked }).await?;
    if let Some(newest) = newest {
        ensure!(found.iter().any(|message| place(message) >= newest.place), "the replica is behind");
    }
    Ok(found)
}

/// The first messages of a subject (wildcards allowed) from a place on, in order: `batch`, or as many fewer as the
/// stream's leader has.
///
/// Errors if the server breaks off, or one request says nothing for 5 s. A replica that is far behind costs a request
/// for each message that it lacks.
pub async fn messages_from(
    client: &Client,
    stream: &str,
    subject: &str,
    start: Start,
    batch: usize,
) -> anyhow::Result<Vec<Message>> {
    let mut request = NextRequest::new(subject, start);
    request.batch = Some(batch);
    let mut found = direct_get(client, stream, &request).await?;
    let context = jetstream::new(client.clone());
    while found.len() < batch {
        let start = found.last().map_or(start, |last| Start::After(place(last)));
        let Some(next) = ask_leader(&context, stream, &NextRequest::new(subject, start)).await? else {
            break;
        };
        found.push(as_read(next));
    }
    Ok(found)
}

/// The newest message of a subject (wildcards allowed), as the stream's leader knows it. Errors if the leader does not
/// answer within 5 s.
pub async fn newest(client: &Client, stream: &str, subject: &str) -> anyhow::Result<Newest> {
    let last = last(&jetstream::new(client.clone()), stream, subject).await?;
    let newest = last.map(|last| Newest { place: last.sequence, subject: last.subject.into_string() });
    Ok(newest.unwrap_or_default())
}

/// The last message of a subject (wildcards allowed), as the stream's leader knows it: for decisions, which a replica
/// that is behind would turn around. Errors if the leader does not answer within the time that the context allows.
pub async fn last(
    context: &jetstream::Context,
    stream: &str,
    subject: &str,
) -> anyhow::Result<Option<StreamMessage>> {
    ask_leader(context, stream, &LastRequest { last_by_subj: subject }).await
}

/// What a bucket holds under a key and its revision, as [`last`] knows it; `None` if it holds nothing.
pub async fn held(
    context: &jetstream::Context,
    bucket: &Store,
    key: &str,
) -> anyhow::Result<Option<(Bytes, u64)>> {
    let last = last(context, &bucket.stream_name, &format!("{}{key}", bucket.prefix)).await?;
    // A key that was deleted or purged has a message that says so.
    let kept = last.filter(|last| last.headers.get("KV-Operation").is_none());
    Ok(kept.map(|kept| (kept.payload, kept.sequence)))
}

/// Where in its stream a message stands that was read; 0 if it does not say.
pub fn place(message: &Message) -> u64 {
    number(message, PLACE_HEADER).unwrap_or_default()
}

impl<'a> NextRequest<'a> {
    fn new(subject: &'a str, start: Start) -> Self {
        let (seq, start_time) = match start {
            Start::After(sequence) => (Some(sequence + 1), None),
            Start::At(time) => (None, Some(time)),
        };
        Self { seq, start_time, next_by_subj: subject, batch: None }
    }
}

/// Asks the stream's leader for one message.
async fn ask_leader(
    context: &jetstream::Context,
    stream: &str,
    request: &impl Serialize,
) -> anyhow::Result<Option<StreamMessage>> {
    match context.request(format!("STREAM.MSG.GET.{stream}"), request).await? {
        Response::Ok(Told { message }) => {
            let message = message.try_into().map_err(anyhow::Error::from_boxed);
            message.context("the leader's answer cannot be read").map(Some)
        }
        Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => Ok(None),
        Response::Err { error } => Err(error).context("the stream's leader refuses"),
    }
}

/// What the leader told, as a replica would have.
fn as_read(told: StreamMessage) -> Message {
    let StreamMessage { subject, sequence, mut headers, payload, .. } = told;
    headers.insert(SUBJECT_HEADER, subject.as_str());
    headers.insert(PLACE_HEADER, sequence.to_string().as_str());
    let length = payload.len();
    Message { subject, reply: None, payload, headers: Some(headers), status: None, description: None, length }
}

/// Asks a stream directly, and collects the answers to their end.
async fn direct_get(client: &Client, stream: &str, request: &impl Serialize) -> anyhow::Result<Vec<Message>> {
    let inbox = client.new_inbox();
    let mut parts = client.subscribe(inbox.clone()).await?;
    let request = serde_json::to_vec(request)?;
    client.publish_with_reply(format!("$JS.API.DIRECT.GET.{stream}"), inbox, request.into()).await?;
    let mut answer = Answer::default();
    loop {
        let part = tokio::time::timeout(Duration::from_secs(5), parts.next())
            .await
            .context("the stream did not answer in 5 s")?
            .context("the subscription ended")?;
        if answer.ends_with(part)? {
            return Ok(answer.found);
        }
    }
}

/// An answer that comes in parts.
#[derive(Debug, Default)]
struct Answer {
    found: Vec<Message>,
}

impl Answer {
    /// Takes a part, and tells whether it was the last. Errors if one before it was lost: over a connection that broke,
    /// and is back before the server has said all.
    fn ends_with(&mut self, part: Message) -> anyhow::Result<bool> {
        let status = part.status.map(|status| status.as_u16());
        if let None | Some(204) = status {
            let previous = self.found.last().map_or(0, place);
            ensure!(number(&part, PREVIOUS_HEADER) == Some(previous), "a part of the answer is lost");
        }
        match status {
            None => self.found.push(part),
            // The end, or that no subject matched, which comes alone.
            Some(204 | 404) => return Ok(true),
            // To a server that does not know the field the request asks for nothing.
            Some(408) => bail!(NotUnderstood),
            Some(status) => bail!("the stream answered {status}: {}", part.description.unwrap_or_default()),
        }
        Ok(false)
    }
}

fn number(message: &Message, header: &str) -> Option<u64> {
    message.headers.as_ref()?.get(header)?.as_str().parse().ok()
}

#[cfg(test)]
mod tests {
    use async_nats::{HeaderMap, StatusCode};

    use super::*;

    fn part(place: u64, previous: u64, status: Option<u16>) -> Message {
        let mut headers = HeaderMap::new();
        headers.insert(PLACE_HEADER, place.to_string().as_str());
        headers.insert(PREVIOUS_HEADER, previous.to_string().as_str());
        Message {
            subject: "inbox".into(),
            reply: None,
            payload: "".into(),
            headers: Some(headers),
            status: status.map(|status| StatusCode::from_u16(status).unwrap()),
            description: None,
            length: 0,
        }
    }

    #[test]
    fn an_answer_of_which_a_part_is_lost_is_none() {
        let mut whole = Answer::default();
        assert!(!whole.ends_with(part(3, 0, None)).unwrap());
        assert!(!whole.ends_with(part(7, 3, None)).unwrap());
        assert!(whole.ends_with(part(0, 7, Some(204))).unwrap());
        assert_eq!(whole.found.iter().map(place).collect::<Vec<_>>(), [3, 7]);

        assert!(Answer::default().ends_with(part(7, 3, None)).is_err(), "the first");
        let mut answer = Answer::default();
        answer.ends_with(part(3, 0, None)).unwrap();
        assert!(answer.ends_with(part(9, 7, None)).is_err(), "one in the middle");
        let mut answer = Answer::default();
        answer.ends_with(part(3, 0, None)).unwrap();
        assert!(answer.ends_with(part(0, 7, Some(204))).is_err(), "the last");
    }

    #[test]
    fn no_match_ends_an_answer() {
        let nothing = Message { headers: None, ..part(0, 0, Some(404)) };
        assert!(Answer::default().ends_with(nothing).unwrap());
    }
}
