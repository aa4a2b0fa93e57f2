//! One way to reach NATS, and one place that says which streams and buckets exist.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, Republish, RetentionPolicy};
use async_nats::jetstream::{self, kv};
use async_nats::{Client, ConnectOptions, HeaderMap};
use futures_util::StreamExt;
use serde::Serialize;
use tracing::{info, warn};

use crate::config::NatsConfig;
use crate::subjects;

/// How long events are kept: long enough for a consumer that was away over a holiday weekend.
pub const EVENTS_MAX_AGE: Duration = Duration::from_hours(7 * 24);
/// Age at which a backend's lease ends by itself.
pub const LEASE_MAX_AGE: Duration = Duration::from_secs(30);
/// Largest number of subjects in one [`multi_last`]; the server answers 413 from 1,025.
pub const MULTI_LAST_LIMIT: usize = 500;

/// How often a client that lost its server tries again: a watcher should not see more than this of a restart.
const RECONNECT_DELAY: Duration = Duration::from_millis(250);
/// Longest wait for a first connection. Services start together; whoever is first waits for the broker.
const FIRST_CONNECTION: Duration = Duration::from_secs(30);

/// Connects, waiting up to 30 s for the server to appear.
pub async fn connect(service: &str, config: &NatsConfig) -> anyhow::Result<Client> {
    let options = || {
        let options = ConnectOptions::new()
            .name(format!("stepcast-{service}"))
            .max_reconnects(None)
            .reconnect_delay_callback(|_| RECONNECT_DELAY)
            .request_timeout(Some(Duration::from_secs(5)))
            .event_callback(|event| async move {
                match event {
                    async_nats::Event::Connected => info!("connected to nats"),
                    async_nats::Event::Disconnected => warn!("lost the connection to nats"),
                    async_nats::Event::SlowConsumer(_) => {
                        metrics::counter!("stepcast_nats_slow_consumer_total").increment(1);
                        warn!("a nats subscription overflowed");
                    }
                    // What a process does when it stops.
                    async_nats::Event::Closed | async_nats::Event::Draining => {}
                    other => warn!(event = %other, "nats reports"),
                }
            });
        match (&config.nats_user, &config.nats_password) {
            (Some(user), Some(password)) => options
                .user_and_password(user.clone(), secrecy::ExposeSecret::expose_secret(password).to_owned()),
            _ => options,
        }
    };
    let urls: Vec<&str> = config.nats_url.split(',').map(str::trim).collect();
    let deadline = tokio::time::Instant::now() + FIRST_CONNECTION;
    loop {
        match options().connect(urls.as_slice()).await {
            Ok(client) => return Ok(client),
            Err(error) if tokio::time::Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("no NATS server answers at {}", config.nats_url));
            }
            Err(_) => tokio::time::sleep(RECONNECT_DELAY).await,
        }
    }
}

/// Creates or updates every stream and bucket, then checks that the server does what the design rests on.
///
/// Idempotent: whoever starts first does it.
pub async fn prepare(client: &Client) -> anyhow::Result<jetstream::Context> {
    let context = jetstream::new(client.clone());
    let replicas = if client.server_info().cluster.is_some() { 3 } else { 1 };
    for stream in streams(replicas) {
        let name = stream.name.clone();
        context
            .create_or_update_stream(stream)
            .await
            .with_context(|| format!("stream {name} cannot be made"))?;
    }
    for bucket in buckets(replicas) {
        let name = bucket.bucket.clone();
        context
            .create_or_update_key_value(bucket)
            .await
            .with_context(|| format!("bucket {name} cannot be made"))?;
    }
    self_test(client, &context).await?;
    Ok(context)
}

fn streams(num_replicas: usize) -> [StreamConfig; 3] {
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
            num_replicas,
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
            num_replicas,
            ..StreamConfig::default()
        },
        StreamConfig {
            name: subjects::DEAD_STREAM.to_owned(),
            description: Some("Copies of events that could not be decoded".to_owned()),
            subjects: vec![subjects::ALL_DEAD.to_owned()],
            max_age: EVENTS_MAX_AGE,
            max_bytes: 64 * 1024 * 1024,
            num_replicas,
            ..StreamConfig::default()
        },
    ]
}

fn buckets(num_replicas: usize) -> [kv::Config; 2] {
    [
        kv::Config {
            bucket: subjects::LEASES_BUCKET.to_owned(),
            description: "Who holds a backend".to_owned(),
            max_age: LEASE_MAX_AGE,
            history: 1,
            num_replicas,
            ..kv::Config::default()
        },
        kv::Config {
            bucket: subjects::INFLIGHT_BUCKET.to_owned(),
            description: "What a backend is rendering".to_owned(),
            history: 1,
            num_replicas,
            ..kv::Config::default()
        },
    ]
}

/// Older servers ignore what they do not know in silence, so what we rest on is tried rather than read from a version.
async fn self_test(client: &Client, context: &jetstream::Context) -> anyhow::Result<()> {
    let version = client.server_info().version;
    let too_old = || format!("NATS {version} is too old for Stepcast, which needs 2.14 or later");
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
        Err(error) => return Err(error).context("the event stream does not answer"),
        Ok(_) => bail!("{}: it does not check the expected sequence of a subject", too_old()),
    }
    let nothing = ["stepcast.v1.event.self-test.none.*".to_owned()];
    let answered = multi_last(client, subjects::EVENTS_STREAM, &nothing).await;
    ensure!(answered.is_ok(), "{}: it does not answer multi_last", too_old());
    Ok(())
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
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    let request = serde_json::to_vec(&MultiLastRequest { multi_last: subjects })?;
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
