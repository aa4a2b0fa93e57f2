//! What an api counts.
//!
//! Counters and durations are of this process, and add up over replicas. What is read from the database or from NATS is
//! the same for all replicas, each of which says it: there the greatest is right, and a sum is not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use metrics::{counter, gauge, histogram};
use stepcast_shared::job::Priority;
use stepcast_shared::messages::{JobMessage, QueueDepth};
use stepcast_shared::meter::{self, Kind};
use stepcast_shared::subjects;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::db::projection::Moved;
use crate::db::silence::in_time;
use crate::projector::CONSUMER;
use crate::state::AppState;

/// How often it is looked how much waits.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Longest wait for NATS to say how much waits there.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pools that have series of their own. Clients name pools, and each takes memory here and in Prometheus for good.
const MOST_POOLS: usize = 100;
/// Where the others are counted.
const OTHER: &str = "other";

/// Says what each metric is.
pub fn declare() {
    meter::declare_shared();
    let [counter, counters, gauge, histogram] = [Kind::Counter, Kind::Counters, Kind::Gauge, Kind::Histogram];
    meter::declare(&[
        (counter, "stepcast_jobs_accepted_total", "Jobs accepted"),
        (counter, "stepcast_claims_total", "Jobs handed to backends"),
        (counter, "stepcast_claims_lapsed_total", "Claims whose poller was not heard of for a full lease"),
        (counters, "stepcast_jobs_ended_total", "Jobs whose end was projected, by status and error code"),
        (counters, "stepcast_attempts_retried_total", "Failed attempts that another follows, by error code"),
        (
            histogram,
            "stepcast_job_wait_seconds",
            "From the accept of a job to the start of its first attempt",
        ),
        (
            histogram,
            "stepcast_job_render_seconds",
            "From the start of the last attempt to a job's completion",
        ),
        (histogram, "stepcast_job_seconds", "From the accept of a job to its end, by status"),
        (
            gauge,
            "stepcast_jobs",
            "Jobs that have not ended, by status, pool and priority; from the database: take the maximum over replicas",
        ),
        (
            gauge,
            "stepcast_oldest_pending_seconds",
            "Age of the job that has waited longest; from the database: take the maximum over replicas",
        ),
        (
            gauge,
            "stepcast_outbox_rows",
            "Events not recorded yet; from the database: take the maximum over replicas",
        ),
        (
            gauge,
            "stepcast_outbox_age_seconds",
            "Age of the oldest event not recorded yet; from the database: take the maximum over replicas",
        ),
        (counter, "stepcast_outbox_parked_total", "Events that were refused for good"),
        (counter, "stepcast_events_projected_total", "Recorded events that rows have followed"),
        (counter, "stepcast_events_dead_total", "Recorded events that could not be read"),
        (
            histogram,
            "stepcast_projection_seconds",
            "From the recording of an event to the row that follows it, between the clocks of NATS and of this process",
        ),
        (
            gauge,
            "stepcast_projector_pending_events",
            "Recorded events that rows have not followed yet; from NATS: take the maximum over replicas",
        ),
        (histogram, "stepcast_http_request_seconds", "Answers over HTTP, by method, route and status"),
        (histogram, "stepcast_rpc_handled_seconds", "Answers over NATS, by name and outcome"),
        (histogram, "stepcast_database_turns_per_commit", "Transactions that shared a commit, on SQLite"),
        (gauge, "stepcast_database_turns_waiting", "Transactions that wait for their turn, on SQLite"),
        (counter, "stepcast_jobs_expired_total", "Ended jobs removed for their age"),
        (counter, "stepcast_objects_removed_total", "Images removed for their age"),
        (counter, "stepcast_progress_passed_over_total", "Progress not kept for want of room"),
    ]);
}

/// The label of a pool.
fn pool_label(pool: &str) -> String {
    static KNOWN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut known = KNOWN.lock().expect("no code panics while it holds this lock");
    if !known.contains(pool) {
        if known.len() >= MOST_POOLS {
            return OTHER.to_owned();
        }
        known.insert(pool.to_owned());
    }
    pool.to_owned()
}

/// Counts a row that moved along an event, which was stored at this time; milliseconds since 1970.
pub fn moved(moved: &Moved, message: &JobMessage, stored_at: i64) {
    let since = |then: i64| (stored_at - then).max(0) as f64 / 1000.0;
    match message {
        JobMessage::Started(started) if started.attempt == 1 => {
            let priority = word(crate::db::jobs::priority(moved.priority));
            histogram!("stepcast_job_wait_seconds", "pool" => pool_label(&moved.pool), "priority" => priority)
                .record(since(moved.created_at));
        }
        JobMessage::Retrying(retrying) => {
            counter!("stepcast_attempts_retried_total", "code" => retrying.reason.as_str()).increment(1);
        }
        JobMessage::Complete(complete) => {
            let status = complete.status.as_str();
            let code = complete.error.as_ref().map_or("none", |error| error.code.as_str());
            counter!("stepcast_jobs_ended_total", "status" => status, "code" => code).increment(1);
            histogram!("stepcast_job_seconds", "pool" => pool_label(&moved.pool), "status" => status)
                .record(since(moved.created_at));
            if let (Some(started_at), None) = (moved.started_at, &complete.error) {
                histogram!("stepcast_job_render_seconds", "pool" => pool_label(&moved.pool))
                    .record(since(started_at));
            }
        }
        JobMessage::Started(_) | JobMessage::Queued(_) | JobMessage::Progress(_) => {}
    }
}

fn word(priority: Priority) -> &'static str {
    match priority {
        Priority::Low => "low",
        Priority::Normal => "normal",
        Priority::High => "high",
    }
}

/// Counts how long answers over HTTP take.
pub async fn http(request: Request, next: Next) -> Response {
    // A client may make up a method, and each would be a series.
    let methods = ["GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS"];
    let method = methods.into_iter().find(|method| request.method() == *method).unwrap_or(OTHER);
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = path.unwrap_or("none").to_owned();
    let begun = Instant::now();
    let answer = next.run(request).await;
    let status = answer.status().as_u16().to_string();
    histogram!("stepcast_http_request_seconds", "method" => method, "route" => route, "status" => status)
        .record(begun.elapsed());
    answer
}

/// Counts how long an answer over NATS took.
pub fn rpc(name: &'static str, succeeded: bool, took: Duration) {
    let outcome = if succeeded { "ok" } else { "refused" };
    histogram!("stepcast_rpc_handled_seconds", "name" => name, "outcome" => outcome).record(took);
}

/// Says again and again how much waits, until the process stops.
pub async fn watch(state: AppState, stopping: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = BTreeMap::new();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        match in_time(state.counts.now(&state)).await {
            Ok(now) => say_depths(&now.queue.by_pool_and_priority, &mut said),
            Err(cause) => debug!(error = %cause, "jobs not counted"),
        }
        match timeout(PATIENCE, pending_events(&state.jetstream)).await {
            Ok(Ok(pending)) => gauge!("stepcast_projector_pending_events").set(pending as f64),
            Ok(Err(cause)) => debug!(error = format!("{cause:#}"), "events not counted"),
            Err(_) => debug!("events not counted in time"),
        }
    }
}

/// What is said of the jobs of one kind.
#[derive(Clone, Copy, Default)]
struct Depth {
    pending: u64,
    running: u64,
    oldest_seconds: f64,
}

/// Says how many jobs of each kind there are; none of those that there were before.
fn say_depths(depths: &[QueueDepth], said: &mut BTreeMap<(String, &'static str), Depth>) {
    for depth in said.values_mut() {
        *depth = Depth::default();
    }
    // Without any job at all there is a figure all the same.
    said.entry(("default".to_owned(), word(Priority::default()))).or_default();
    for QueueDepth { pool, priority, pending, running, oldest_pending_seconds } in depths {
        let depth = said.entry((pool_label(pool.as_str()), word(*priority))).or_default();
        depth.pending += pending;
        depth.running += running;
        depth.oldest_seconds = depth.oldest_seconds.max(oldest_pending_seconds.unwrap_or_default());
    }
    for ((pool, priority), depth) in said {
        let labels = |status: &'static str| {
            [("status", status.to_owned()), ("pool", pool.clone()), ("priority", (*priority).to_owned())]
        };
        gauge!("stepcast_jobs", &labels("pending")).set(depth.pending as f64);
        gauge!("stepcast_jobs", &labels("running")).set(depth.running as f64);
        gauge!("stepcast_oldest_pending_seconds", "pool" => pool.clone(), "priority" => *priority)
            .set(depth.oldest_seconds);
    }
}

/// Recorded events that the projector has not had, or has not acknowledged.
async fn pending_events(context: &jetstream::Context) -> anyhow::Result<u64> {
    let stream = context.get_stream_no_info(subjects::EVENTS_STREAM).await?;
    let info = stream.consumer_info(CONSUMER).await?;
    Ok(info.num_pending + u64::try_from(info.num_ack_pending).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_that_clients_make_up_have_a_bound() {
        for number in 0..2 * MOST_POOLS {
            pool_label(&format!("made-up-{number}"));
        }
        assert_eq!(pool_label("made-up-0"), "made-up-0");
        assert_eq!(pool_label("one-more"), OTHER);
    }

    #[test]
    fn what_is_gone_is_said_once_more() {
        let mut said = BTreeMap::new();
        let depth = |pending, running| QueueDepth {
            pool: "default".parse().unwrap(),
            priority: Priority::High,
            pending,
            running,
            oldest_pending_seconds: Some(2.0),
        };
        say_depths(&[depth(3, 1)], &mut said);
        let high = |said: &BTreeMap<_, Depth>| said[&("default".to_owned(), "high")];
        assert_eq!((high(&said).pending, high(&said).running), (3, 1));
        say_depths(&[], &mut said);
        assert_eq!((high(&said).pending, high(&said).oldest_seconds.to_bits()), (0, 0));
        assert_eq!(said.len(), 2, "with the one that is always there");
    }
}
