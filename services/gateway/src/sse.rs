//! `GET /sse/progress`: the same messages as server-sent events, for curl and for places without `WebSocket`.
//!
//! An `id` is a place in the event stream, and says that everything up to there has been told. So a client that comes
//! back with `Last-Event-ID` gets exactly what was recorded after it, and then what is live. What a snapshot tells, or
//! what is read again of single jobs, has no id; one by itself follows the snapshot.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::problem::Problem;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::Gateway;
use crate::answers::Answer;
use crate::close;
use crate::operations::{Operation, Workbench};
use crate::outbox::{Bounds, Outbox, Outgoing};
use crate::protocol::{Jobs, MAX_RATE};
use crate::replay::Since;
use crate::topics::Topic;
use crate::upgrade;

/// What may be asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// Ids of jobs, separated by commas; without it all jobs.
    job_ids: Option<String>,
    /// Topics, separated by commas; with it and without `job_ids` no jobs.
    topics: Option<String>,
    /// At most so many progress updates a second and job.
    max_rate: Option<f64>,
    /// Like the header `Last-Event-ID`, for clients that cannot set one.
    last_event_id: Option<u64>,
}

/// Answers with a stream that ends when the client leaves or this gateway stops.
pub async fn progress(
    State(gateway): State<Arc<Gateway>>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    request: Request,
) -> Response {
    let Query(parameters) = match parameters {
        Ok(parameters) => parameters,
        Err(error) => return invalid(error.body_text()).into_response(),
    };
    let operation = match operation(&parameters, &request, gateway.limits.max_subscriptions) {
        Ok(operation) => operation,
        Err(problem) => return problem.into_response(),
    };
    let place = match upgrade::admit(&gateway, &request) {
        Ok(place) => place,
        Err(problem) => return problem.into_response(),
    };
    let limits = &gateway.limits;
    let bounds = Bounds { messages: limits.outbox_messages, bytes: limits.outbox_bytes };
    let outbox = Arc::new(Outbox::of_reader(bounds));
    let keep_alive = KeepAlive::new().interval(limits.heartbeat);
    let left = CancellationToken::new();
    let reading = Reading { outbox: Arc::clone(&outbox), _left: left.clone().drop_guard() };
    gateway.connections.clone().spawn(async move {
        let _place = place;
        left.run_until_cancelled(serve(gateway, outbox, operation)).await;
    });
    Sse::new(events(reading)).keep_alive(keep_alive).into_response()
}

/// Fills the outbox until this gateway stops.
async fn serve(gateway: Arc<Gateway>, outbox: Arc<Outbox>, operation: Operation) {
    // Everybody is anonymous until there are credentials.
    let workbench = Arc::new(Workbench::new(&gateway, Owner::anonymous(), Arc::clone(&outbox), None));
    let watching = async {
        let _ = Arc::clone(&workbench).run(operation).await;
        outbox.flush();
        gateway.stopping.cancelled().await;
    };
    gateway.stopping.run_until_cancelled(watching).await;
    let reconnect_after = gateway.limits.reconnect_spread.mul_f64(rand::random());
    outbox.answer(Answer::going_away(reconnect_after).encode());
    outbox.close(close::GOING_AWAY);
    outbox.flush();
}

/// The client's end of an outbox; dropping it ends what fills it.
struct Reading {
    outbox: Arc<Outbox>,
    _left: DropGuard,
}

fn events(reading: Reading) -> impl Stream<Item = Result<Event, Infallible>> {
    let taken = Vec::new().into_iter();
    stream::unfold((reading, taken, false), async |(reading, mut taken, mut over)| {
        loop {
            if let Some(next) = taken.next() {
                return Some((Ok(event(&next)), (reading, taken, over)));
            }
            if over {
                return None;
            }
            let (frames, close) = reading.outbox.next().await;
            taken = frames.into_iter();
            over = close.is_some();
        }
    })
}

fn event(Outgoing { wire, place }: &Outgoing) -> Event {
    if wire.payload().is_empty() {
        return Event::default().id(place.to_string());
    }
    let data = std::str::from_utf8(wire.payload()).expect("only text messages are queued for readers");
    let event = if *place == 0 { Event::default() } else { Event::default().id(place.to_string()) };
    event.data(data)
}

fn operation(parameters: &Parameters, request: &Request, most: usize) -> Result<Operation, Problem> {
    let topics = topics(parameters.topics.as_deref())?;
    let jobs = if topics.is_empty() || parameters.job_ids.is_some() {
        jobs(parameters.job_ids.as_deref(), most)?
    } else {
        Jobs::Ids(Vec::new())
    };
    if parameters.max_rate.is_some_and(|rate| !(rate > 0.0 && rate <= MAX_RATE)) {
        return Err(invalid(format!("max_rate must be a number above 0 and up to {MAX_RATE}")));
    }
    let since = match request.headers().get("last-event-id") {
        None => parameters.last_event_id,
        Some(id) => {
            let place = id.to_str().ok().and_then(|id| id.trim().parse().ok());
            Some(place.ok_or_else(|| invalid("Last-Event-ID must be the id of an event of this stream"))?)
        }
    };
    let max_rate = parameters.max_rate;
    let since = since.map(Since::Place);
    Ok(Operation::Subscribe { jobs, topics, since, batch: false, max_rate, request_id: None })
}

fn topics(list: Option<&str>) -> Result<BTreeSet<Topic>, Problem> {
    let words = list.unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty());
    let named = words.map(|word| {
        Topic::named(word)
            .ok_or_else(|| invalid(format!("`{word:.64}` in topics is not a topic: one of stats, backends")))
    });
    named.collect()
}

fn jobs(list: Option<&str>, most: usize) -> Result<Jobs, Problem> {
    let Some(list) = list.filter(|list| !list.is_empty()) else { return Ok(Jobs::All) };
    let mut ids: Vec<JobId> = Vec::new();
    for word in list.split(',').map(str::trim) {
        let Ok(id) = word.parse() else {
            return Err(invalid(format!("`{word:.64}` in job_ids is not a job's id (a UUID)")));
        };
        if !ids.contains(&id) {
            ids.push(id);
        }
        if ids.len() > most {
            return Err(invalid(format!(
                "one stream may watch {most} jobs by id; without job_ids it has all"
            )));
        }
    }
    Ok(Jobs::Ids(ids))
}

fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(400, "invalid-parameters", "Invalid parameters").detail(detail)
}
