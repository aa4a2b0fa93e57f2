//! One way to reach NATS, and one place that says which streams and buckets exist.

mod connection;

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, Republish, RetentionPolicy};
use async_nats::jetstream::{self, kv};
use async_nats::{Client, HeaderMap};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use futures_util::future::{try_join, try_join_all};
use serde::Serialize;
use tokio::time::Instant;
use tracing::warn;

use self::connection::RECONNECT_DELAY;
pub use self::connection::{Connection, Gaps, Login, Servers, connect, open};
use crate::subjects;

/// How long events are kept: long enough for a consumer that was away over a holiday weekend.
pub const EVENTS_MAX_AGE: Duration = Duration::from_hours(7 * 24);
/// Age at which a backend's lease ends by itself.
pub const LEASE_MAX_AGE: Duration = Duration::from_secs(30);
/// Largest number of subjects in one [`multi_last`]; the server answers 413 from 1,025.
pub const MULTI_LAST_LIMIT: usize = 500;

/// How long a cluster may take to find all its servers and a leader; three times what was measured.
const SETTLING: Duration = Duration::from_secs(30);
/// How long the making of a stream may go unanswered.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// Copies of everything on a cluster.
const REPLICAS: usize = 3;

/// Creates or updates every stream and bucket, then checks that the server does what the design rests on.
///
/// Idempotent, and harmless beside others that do the same: whoever starts first does it. On a cluster everything has
/// three replicas, and what an earlier start made with one is raised to three. A cluster that is electing a leader is
/// waited for, up to 30 s.
pub async fn prepare(client: &Client) -> anyhow::Result<jetstream::Context> {
    check_version(client)?;
    let context = jetstream::new(client.clone());
    // Of two processes that make the same stream at once, one may never be answered: it asks again soon, and finds it.
    let mut impatient = jetstream::new(client.clone());
    impatient.set_timeout(ANSWERED_WITHIN);
    let settled = Instant::now() + SETTLING;
    let replicas = if client.server_info().cluster.is_some() { REPLICAS } else { 1 };
    let streams = streams().map(|stream| {
        let what = format!("stream {}", stream.name);
        let context = &impatient;
        make(what, replicas, settled, async move |num_replicas| {
            let stream = StreamConfig { num_replicas, ..stream.clone() };
            context.create_or_update_stream(stream).await.map(drop).map_err(anyhow::Error::new)
        })
    });
    let buckets = buckets().map(|bucket| {
        let what = format!("bucket {}", bucket.bucket);
        let context = &impatient;
        make(what, replicas, settled, async move |num_replicas| {
            let bucket = kv::Config { num_replicas, ..bucket.clone() };
            context.create_or_update_key_value(bucket).await.map(drop).map_err(anyhow::Error::new)
        })
    });
    try_join(try_join_all(streams), try_join_all(buckets)).await?;
    loop {
        match self_test(client, &context).await {
            Ok(()) => return Ok(context),
            // The leader of a stream just made may not be elected yet.
            Err(Unfit::NoAnswer(_)) if Instant::now() < settled => tokio::time::sleep(RECONNECT_DELAY).await,
            Err(Unfit::NoAnswer(error) | Unfit::TooOld(error)) => return Err(error),
        }
    }
}

/// Older servers ignore what they do not know in silence: no stream is made on one.
fn check_version(client: &Client) -> anyhow::Result<()> {
    // Some builds have no version that can be read; the test that follows decides on those.
    let version = client.server_info().version;
    let readable = client.is_server_compatible(0, 0, 0);
    ensure!(!readable || client.is_server_compatible(2, 14, 0), "{}", too_old(&version));
    Ok(())
}

fn too_old(version: &str) -> String {
    format!("NATS {version} is too old for Stepcast, which needs 2.14 or later")
}

/// Makes one stream or bucket, again and again until the cluster has settled.
///
/// A cluster that has too few servers for three replicas by then gets one, and a warning: the next start raises it.
async fn make(
    what: String,
    mut replicas: usize,
    settled: Instant,
    attempt: impl AsyncFn(usize) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    loop {
        let Err(error) = attempt(replicas).await else { return Ok(()) };
        let code = refusal(&error);
        if may_pass(code) && Instant::now() < settled {
            tokio::time::sleep(RECONNECT_DELAY).await;
        } else if code == Some(ErrorCode::CLUSTER_NO_PEERS) && replicas > 1 {
            warn!(
                what,
                "the NATS cluster has fewer than {REPLICAS} servers: what it stores is not replicated"
            );
            replicas = 1;
        } else {
            return Err(error).with_context(|| format!("{what} cannot be made"));
        }
    }
}

/// Why JetStream refused; `None` if it did not answer at all.
fn refusal(error: &anyhow::Error) -> Option<ErrorCode> {
    error.chain().find_map(|cause| match cause.downcast_ref::<CreateStreamError>()?.kind() {
        CreateStreamErrorKind::JetStream(refusal) => Some(refusal.error_code()),
        _ => None,
    })
}

/// Whether it may be otherwise in a moment: servers still join, a leader is being elected, or another process makes
/// the same stream right now.
fn may_pass(code: Option<ErrorCode>) -> bool {
    const PASSING: [ErrorCode; 8] = [
        ErrorCode::CLUSTER_NO_PEERS,
        ErrorCode::CLUSTER_NOT_AVAILABLE,
        ErrorCode::CLUSTER_NOT_ACTIVE,
        ErrorCode::CLUSTER_NOT_LEADER,
        ErrorCode::CLUSTER_INCOMPLETE,
        ErrorCode::CLUSTER_NOT_ASSIGNED,
        ErrorCode::STREAM_NAME_EXIST,
        ErrorCode::STREAM_OFFLINE,
    ];
    code.is_none_or(|code| PASSING.contains(&code))
}

fn streams() -> [StreamConfig; 3] {
    [
        StreamConfig {
            name: subjects::EVENTS_STREAM.to_owned(),
            description: Some("Every lifecycle event of every job".to_owned()),
            subjects: vec![subjects::ALL_EVENTS.to_owned()],
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            max_age: EVENTS_MAX_AGE,
            allow_direct: true,
            republish: Some(Republish {
                source: subjects::REPUBLISH_SOURCE.to_owned(),
                destination: subjects::REPUBLISH_DESTINATION.to_owned(),
                headers_only: false,
            }),
            ..StreamConfig::default()
        },
        StreamConfig {
            name: subjects::BACKENDS_STREAM.to_owned(),
            description: Some("Last state of each backend".to_owned()),
            subjects: vec![subjects::ALL_BACKENDS.to_owned()],
            max_messages_per_subject: 1,
            max_age: Duration::from_secs(30),
            duplicate_window: Duration::from_secs(30),
            allow_direct: true,
            ..StreamConfig::default()
        },
        StreamConfig {
            name: subjects::DEAD_STREAM.to_owned(),
            description: Some("Copies of events that could not be decoded".to_owned()),
            subjects: vec![subjects::ALL_DEAD.to_owned()],
            max_age: EVENTS_MAX_AGE,
            max_bytes: 64 * 1024 * 1024,
            ..StreamConfig::default()
        },
    ]
}

fn buckets() -> [kv::Config; 2] {
    [
        kv::Config {
            bucket: subjects::LEASES_BUCKET.to_owned(),
            description: "Who holds a backend".to_owned(),
            max_age: LEASE_MAX_AGE,
            history: 1,
            ..kv::Config::default()
        },
        kv::Config {
            bucket: subjects::INFLIGHT_BUCKET.to_owned(),
            description: "What a backend is rendering".to_owned(),
            history: 1,
            ..kv::Config::default()
        },
    ]
}

/// Why a server cannot be used.
enum Unfit {
    TooOld(anyhow::Error),
    NoAnswer(anyhow::Error),
}

/// What we rest on is tried rather than trusted to a version.
async fn self_test(client: &Client, context: &jetstream::Context) -> Result<(), Unfit> {
    let too_old = || too_old(&client.server_info().version);
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", "4000000000000");
    headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", "stepcast.v1.event.self-test.*.*");
    let refused = match context
        .publish_with_headers("stepcast.v1.event.self-test.self-test.self-test", headers, "".into())
        .await
    {
        Ok(ack) => ack.await,
        Err(error) => Err(error),
    };
    match refused {
        Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {}
        Err(error) => {
            return Err(Unfit::NoAnswer(
                anyhow::Error::new(error).context("the event stream does not answer"),
            ));
        }
        Ok(_) => {
            let what = "it does not check the expected sequence of a subject";
            return Err(Unfit::TooOld(anyhow::anyhow!("{}: {what}", too_old())));
        }
    }
    let nothing = ["stepcast.v1.event.self-test.none.*".to_owned()];
    match multi_last(client, subjects::EVENTS_STREAM, &nothing).await {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(Unfit::NoAnswer(error.context(format!("{}: it does not answer multi_last", too_old()))))
        }
    }
}

#[derive(Serialize)]
struct MultiLastRequest<'a> {
    multi_last: &'a [String],
}

/// The last message of each of many subjects (wildcards allowed), in one request.
///
/// At most [`MULTI_LAST_LIMIT`] subjects. Errors if the server breaks off or says nothing for 5 s.
pub async fn multi_last(
    client: &Client,
    stream: &str,
    subjects: &[String],
) -> anyhow::Result<Vec<async_nats::Message>> {
    ensure!(subjects.len() <= MULTI_LAST_LIMIT, "at most {MULTI_LAST_LIMIT} subjects a request");
    direct_get(client, stream, &MultiLastRequest { multi_last: subjects }).await
}

/// From where a stream is read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Behind this sequence.
    After(u64),
    /// At the first message that the stream took at this time or later, on its own clock.
    At(DateTime<Utc>),
}

#[derive(Serialize)]
struct AfterRequest<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<DateTime<Utc>>,
    next_by_subj: &'a str,
    batch: usize,
}

/// The first messages of a subject (wildcards allowed) from a place on, at most `batch`, in order.
///
/// Errors if the server breaks off or says nothing for 5 s.
pub async fn messages_from(
    client: &Client,
    stream: &str,
    subject: &str,
    start: Start,
    batch: usize,
) -> anyhow::Result<Vec<async_nats::Message>> {
    let (seq, start_time) = match start {
        Start::After(sequence) => (Some(sequence + 1), None),
        Start::At(time) => (None, Some(time)),
    };
    direct_get(client, stream, &AfterRequest { seq, start_time, next_by_subj: subject, batch }).await
}

/// Asks a stream directly, and collects the answers to their end.
async fn direct_get(
    client: &Client,
    stream: &str,
    request: &impl Serialize,
) -> anyhow::Result<Vec<async_nats::Message>> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    let request = serde_json::to_vec(request)?;
    client.publish_with_reply(format!("$JS.API.DIRECT.GET.{stream}"), inbox, request.into()).await?;
    let mut found = Vec::new();
    loop {
        let answer = tokio::time::timeout(Duration::from_secs(5), answers.next())
            .await
            .context("the stream did not answer in 5 s")?
            .context("the subscription ended")?;
        match answer.status.map(|status| status.as_u16()) {
            None => found.push(answer),
            // 204 ends the answer; 404 says that no subject matched.
            Some(204 | 404) => return Ok(found),
            Some(status) => bail!("the stream answered {status}: {}", answer.description.unwrap_or_default()),
        }
    }
}
