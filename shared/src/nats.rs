//! One way to reach NATS, and one place that says which streams and buckets exist.

mod connection;
mod credentials;
pub mod inspect;
mod recorded;
mod tls;

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, Republish, RetentionPolicy};
use async_nats::{Client, HeaderMap};
use futures_util::future::try_join_all;
use tokio::time::Instant;
use tracing::warn;

use self::connection::RECONNECT_DELAY;
pub use self::connection::{Connection, Gaps, Login, Servers, connect, open, open_within};
pub use self::credentials::{Credentials, Proof};
use self::recorded::NotUnderstood;
pub use self::recorded::{
    MULTI_LAST_LIMIT, Newest, PLACE_HEADER, SUBJECT_HEADER, Start, held, last, messages_from, multi_last,
    newest, place,
};
pub use self::tls::client_config;
use crate::subjects;

/// How long events are kept: long enough for a consumer that was away over a holiday weekend.
pub const EVENTS_MAX_AGE: Duration = Duration::from_hours(7 * 24);
/// Age at which a backend's lease ends by itself.
pub const LEASE_MAX_AGE: Duration = Duration::from_secs(30);

/// How long a cluster may take to find all its servers and a leader; three times what was measured.
const SETTLING: Duration = Duration::from_secs(30);
/// How long the making of a stream may go unanswered.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// Oldest server that does what the design rests on.
pub const OLDEST: (u32, u32) = (2, 14);
/// Copies of everything on a cluster.
const REPLICAS: usize = 3;

/// Creates or updates every stream and bucket, then checks that the server does what the design rests on. For who
/// records events.
///
/// Idempotent, and harmless beside others that do the same: whoever starts first does it. On a cluster everything has
/// three replicas, and what an earlier start made with one is raised to three. A cluster that is electing a leader is
/// waited for, up to 30 s; so is, by a user who may not make streams, somebody who may.
pub async fn prepare(client: &Client) -> anyhow::Result<jetstream::Context> {
    prepare_for(client, Part::Records).await
}

/// As [`prepare`], for who only reads events: it needs no right to write any, and none of the other streams.
pub async fn prepare_to_read(client: &Client) -> anyhow::Result<jetstream::Context> {
    prepare_for(client, Part::Reads).await
}

/// What a service does with events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It records them, and needs everything.
    Records,
    /// It reads them, and needs nothing else.
    Reads,
}

impl Part {
    fn needs(self, stream: &StreamConfig) -> bool {
        self == Self::Records || stream.name == subjects::EVENTS_STREAM
    }
}

async fn prepare_for(client: &Client, part: Part) -> anyhow::Result<jetstream::Context> {
    check_version(client)?;
    let context = jetstream::new(client.clone());
    // Of two processes that make the same stream at once, one may never be answered: it asks again soon, and finds it.
    let mut impatient = jetstream::new(client.clone());
    impatient.set_timeout(ANSWERED_WITHIN);
    let settled = Instant::now() + SETTLING;
    let replicas = replicas(client);
    let needed = wanted().into_iter().filter(|wanted| part.needs(wanted));
    try_join_all(needed.map(|wanted| make(&impatient, wanted, replicas, settled))).await?;
    loop {
        match self_test(client, &context, part).await {
            Ok(()) => return Ok(context),
            // The leader of a stream just made may not be elected yet.
            Err(Unfit::NoAnswer(_)) if Instant::now() < settled => tokio::time::sleep(RECONNECT_DELAY).await,
            Err(Unfit::NoAnswer(error) | Unfit::TooOld(error)) => return Err(error),
        }
    }
}

/// How many copies there are of everything.
fn replicas(client: &Client) -> usize {
    if client.server_info().cluster.is_some() { REPLICAS } else { 1 }
}

/// Older servers ignore what they do not know in silence: no stream is made on one.
fn check_version(client: &Client) -> anyhow::Result<()> {
    // Some builds have no version that can be read; the test that follows decides on those.
    inspect::check_version(&client.server_info().version)
}

fn too_old(version: &str) -> String {
    format!("NATS {version} is too old for Stepcast, which needs {}.{} or later", OLDEST.0, OLDEST.1)
}

/// Makes one stream, again and again until the cluster has settled.
///
/// One that is as it should be is left alone, so that who may not make it can use it. A cluster that has too few
/// servers for three replicas by then gets one, and a warning: the next start raises it.
async fn make(
    context: &jetstream::Context,
    mut wanted: StreamConfig,
    replicas: usize,
    settled: Instant,
) -> anyhow::Result<()> {
    wanted.num_replicas = replicas;
    let name = wanted.name.clone();
    loop {
        let found = context.get_stream(&name).await.ok().map(|stream| stream.cached_info().config.clone());
        if found.as_ref().is_some_and(|found| fits(found, &wanted)) {
            return Ok(());
        }
        let Err(error) = context.create_or_update_stream(wanted.clone()).await else { return Ok(()) };
        let code = refusal(&error);
        if may_pass(code) && Instant::now() < settled {
            tokio::time::sleep(RECONNECT_DELAY).await;
        } else if code == Some(ErrorCode::CLUSTER_NO_PEERS) && wanted.num_replicas > 1 {
            let needed = REPLICAS;
            warn!(
                stream = name,
                needed, "the nats cluster has too few servers: what it stores is not replicated"
            );
            wanted.num_replicas = 1;
        } else if code.is_none() && found.is_some() {
            // Nobody answers who may not change it. Another release made it, or a cluster that was smaller then.
            warn!(stream = name, "a stream is not as this release makes it, and cannot be changed from here");
            return Ok(());
        } else {
            return Err(error).with_context(|| format!("stream {name} cannot be made"));
        }
    }
}

/// Whether a stream is as it is wanted, in what we decide of it.
fn fits(found: &StreamConfig, wanted: &StreamConfig) -> bool {
    differences(found, wanted).is_empty()
}

/// In what a stream is not as it is wanted, of what we decide of it.
fn differences(found: &StreamConfig, wanted: &StreamConfig) -> Vec<&'static str> {
    // The server writes its own defaults into what we leave open.
    let same = |found: i64, wanted: i64| found == wanted || (wanted == 0 && found <= 0);
    let window = wanted.duplicate_window;
    let settings = [
        ("subjects", found.subjects == wanted.subjects),
        ("description", found.description == wanted.description),
        ("retention", found.retention == wanted.retention),
        ("discard", found.discard == wanted.discard),
        ("max_age", found.max_age == wanted.max_age),
        ("allow_direct", found.allow_direct == wanted.allow_direct),
        ("republish", found.republish == wanted.republish),
        ("replicas", found.num_replicas == wanted.num_replicas),
        ("allow_rollup", found.allow_rollup == wanted.allow_rollup),
        ("deny_delete", found.deny_delete == wanted.deny_delete),
        ("duplicate_window", window.is_zero() || found.duplicate_window == window),
        ("max_msgs_per_subject", same(found.max_messages_per_subject, wanted.max_messages_per_subject)),
        ("max_bytes", same(found.max_bytes, wanted.max_bytes)),
    ];
    settings.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
}

/// Why JetStream refused; `None` if it did not answer at all.
fn refusal(error: &CreateStreamError) -> Option<ErrorCode> {
    match error.kind() {
        CreateStreamErrorKind::JetStream(refusal) => Some(refusal.error_code()),
        _ => None,
    }
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

/// Every stream, those behind the buckets included.
fn wanted() -> [StreamConfig; 5] {
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
        bucket(subjects::LEASES_BUCKET, "Who holds a backend", LEASE_MAX_AGE),
        bucket(subjects::INFLIGHT_BUCKET, "What a backend is rendering", Duration::ZERO),
    ]
}

/// The stream behind a key-value bucket, as the client libraries make it. Keys live for ever if `max_age` is zero.
fn bucket(name: &str, description: &str, max_age: Duration) -> StreamConfig {
    StreamConfig {
        name: format!("KV_{name}"),
        description: Some(description.to_owned()),
        subjects: vec![format!("$KV.{name}.>")],
        max_messages_per_subject: 1,
        max_age,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        ..StreamConfig::default()
    }
}

/// Why a server cannot be used.
enum Unfit {
    TooOld(anyhow::Error),
    NoAnswer(anyhow::Error),
}

/// What we rest on is tried rather than trusted to a version.
async fn self_test(client: &Client, context: &jetstream::Context, part: Part) -> Result<(), Unfit> {
    if part == Part::Records {
        compares_sequences(client, context).await?;
    }
    let nothing = ["stepcast.v1.event.self-test.none.*".to_owned()];
    let answered = multi_last(client, subjects::EVENTS_STREAM, &nothing, None).await;
    answered.map(drop).map_err(|error| {
        let unfit = if error.is::<NotUnderstood>() { Unfit::TooOld } else { Unfit::NoAnswer };
        let version = too_old(&client.server_info().version);
        unfit(error.context(format!("{version}: it does not answer multi_last")))
    })
}

/// A publish with a wrong expected sequence is refused.
async fn compares_sequences(client: &Client, context: &jetstream::Context) -> Result<(), Unfit> {
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
        Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(()),
        Err(error) => {
            Err(Unfit::NoAnswer(anyhow::Error::new(error).context("the event stream does not answer")))
        }
        Ok(_) => {
            let version = too_old(&client.server_info().version);
            let what = "it does not check the expected sequence of a subject";
            Err(Unfit::TooOld(anyhow::anyhow!("{version}: {what}")))
        }
    }
}
