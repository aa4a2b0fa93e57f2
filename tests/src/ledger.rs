//! What was kept: the event stream, the rows of the database, and whatever still waits in either.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream;
use futures_util::TryStreamExt as _;
use serde_json::Value;
use sqlx::Row as _;
use sqlx::any::AnyPoolOptions;
use stepcast_shared::messages::EventSeq;
use stepcast_shared::subjects::{self, EVENTS_STREAM, Kind};

use crate::wait::until_after;

/// Longer than the longest pause before anything is tried or delivered again.
const DRAIN: Duration = Duration::from_mins(1);

/// A recorded event.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its place in the stream.
    pub sequence: u64,
    pub kind: Kind,
    pub seq: EventSeq,
    /// The envelope.
    pub message: Value,
}

/// A job as the database has it.
#[derive(Clone, Debug)]
pub struct Row {
    pub id: String,
    pub status: String,
    pub seq: EventSeq,
    pub event_seq: Option<i64>,
    /// The terminal envelope's data.
    pub result: Option<Value>,
    /// The last envelope.
    pub message: Option<Value>,
    /// Who may still act for it.
    pub claim_token: Option<String>,
}

/// Every event of every job, in the order in which they were recorded.
pub async fn stream(context: &jetstream::Context) -> anyhow::Result<BTreeMap<String, Vec<Recorded>>> {
    let mut stream = context.get_stream(EVENTS_STREAM).await?;
    let state = stream.info().await?.state.clone();
    let mut jobs: BTreeMap<String, Vec<Recorded>> = BTreeMap::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await?;
        let subject = subjects::parse_job(&message.subject).context("a subject of ours")?;
        let seq = message.headers.get(EventSeq::HEADER).context("an event says its place")?;
        let seq = seq.as_str().parse().ok().context("the place is a pair of numbers")?;
        let message = serde_json::from_slice(&message.payload)?;
        let event = Recorded { sequence, kind: subject.kind, seq, message };
        jobs.entry(subject.job_id.to_string()).or_default().push(event);
    }
    Ok(jobs)
}

/// Every job's row.
pub async fn rows(database: &str) -> anyhow::Result<Vec<Row>> {
    let pool = open(database).await?;
    let rows = sqlx::query(
        "SELECT id, status, attempt, seq, event_seq, result, message, claim_token FROM jobs ORDER BY id",
    )
    .fetch_all(&pool)
    .await?;
    let json = |text: Option<String>| text.map(|text| serde_json::from_str(&text)).transpose();
    let read = |row: &sqlx::any::AnyRow| {
        Ok(Row {
            id: row.try_get("id")?,
            status: row.try_get("status")?,
            seq: EventSeq {
                attempt: row.try_get::<i64, _>("attempt")?.try_into()?,
                seq: row.try_get::<i64, _>("seq")?.try_into()?,
            },
            event_seq: row.try_get("event_seq")?,
            result: json(row.try_get("result")?)?,
            message: json(row.try_get("message")?)?,
            claim_token: row.try_get("claim_token")?,
        })
    };
    rows.iter().map(read).collect()
}

/// Waits until the outbox is empty and every consumer has acknowledged everything; nothing may have been put aside.
pub async fn nothing_waits(database: &str, context: &jetstream::Context) {
    until_after(DRAIN, "the outbox is empty", async || {
        let pool = open(database).await.ok()?;
        let row = sqlx::query("SELECT COUNT(*) AS waiting FROM outbox").fetch_one(&pool).await.ok()?;
        (row.try_get::<i64, _>("waiting").ok()? == 0).then_some(())
    })
    .await;
    until_after(DRAIN, "nothing is pending in any consumer", async || {
        (pending(context).await.ok()? == 0).then_some(())
    })
    .await;
    let mut dead = context.get_stream(subjects::DEAD_STREAM).await.expect("the stream of the dead exists");
    let dead = dead.info().await.expect("a stream can be asked").state.messages;
    assert_eq!(dead, 0, "every event could be read");
}

async fn pending(context: &jetstream::Context) -> anyhow::Result<u64> {
    let mut pending = 0;
    let mut names = context.stream_names();
    while let Some(name) = names.try_next().await? {
        let stream = context.get_stream(&name).await?;
        let consumers: Vec<_> = stream.consumers().try_collect().await?;
        pending += consumers.iter().map(|info| info.num_pending + info.num_ack_pending as u64).sum::<u64>();
    }
    Ok(pending)
}

async fn open(database: &str) -> sqlx::Result<sqlx::AnyPool> {
    sqlx::any::install_default_drivers();
    let read_only = if database.starts_with("sqlite:") { "?mode=ro" } else { "" };
    AnyPoolOptions::new().max_connections(1).connect(&format!("{database}{read_only}")).await
}
