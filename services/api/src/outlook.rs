//! What is ahead of the waiting jobs: taken from the rows, the states of the backends and the live progress, when
//! somebody asks, and kept for a moment.

mod play;
mod timings;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use stepcast_shared::messages::{BackendCondition, BackendMode, Status};

pub use self::play::Outlook;
use self::play::{Server, Waiting};
use self::timings::{Sample, Timings};
pub use self::timings::{megapixel_steps, sampling_steps};
use crate::db::jobs::queue::{self, EndedRow, RunningRow, WaitingRow};
use crate::db::modes;
use crate::kept::{Keep, Kept};
use crate::state::AppState;

/// Waiting jobs that are played one by one.
const HORIZON: usize = 2_000;
/// Ended jobs that are learnt from.
const LEARNT_FROM: usize = 400;
/// For how long an outlook is kept.
const KEEP: Keep = Keep { least: Duration::ZERO, most: Duration::from_secs(1) };

/// The last outlook, shared by all requests.
#[derive(Clone, Debug, Default)]
pub struct Outlooks(Arc<Kept<Outlook>>);

impl Outlooks {
    /// The outlook of now, or of a moment ago.
    pub async fn get(&self, state: &AppState) -> sqlx::Result<Arc<Outlook>> {
        self.0.get(KEEP, take(state)).await
    }
}

async fn take(state: &AppState) -> sqlx::Result<Outlook> {
    let (pool, dialect) = (state.db.read(), state.db.dialect);
    let modes = modes::modes(pool).await?;
    let ended = queue::ended(pool, LEARNT_FROM).await?;
    let running = queue::running(pool, dialect).await?;
    let waiting = queue::waiting(pool, dialect, HORIZON).await?;
    let timings = Timings::learn(&ended.into_iter().rev().filter_map(sample).collect::<Vec<_>>());
    let servers = servers(state, &modes, &running, &timings);
    let whole = waiting.len() < HORIZON;
    let waiting: Vec<Waiting> = waiting.into_iter().map(Waiting::from).collect();
    Ok(Outlook::play(&waiting, servers, &timings, state.limits.max_affinity_wait.as_secs_f64(), whole))
}

/// Every backend that takes work, with what is left of what it renders.
fn servers(
    state: &AppState,
    modes: &BTreeMap<String, BackendMode>,
    running: &[RunningRow],
    timings: &Timings,
) -> Vec<Server> {
    let running: HashMap<&str, &RunningRow> = running.iter().map(|row| (row.backend.as_str(), row)).collect();
    let mut servers = Vec::new();
    for backend in state.backends.list() {
        let works = matches!(backend.state, BackendCondition::Idle | BackendCondition::Busy);
        if !works || modes.contains_key(backend.id.as_str()) {
            continue;
        }
        let free_in = match running.get(backend.id.as_str()) {
            Some(row) => left(state, row, backend.model.as_deref(), timings),
            None => Some(0.0),
        };
        servers.push(Server {
            id: backend.id.to_string(),
            pools: backend.pools.iter().map(ToString::to_string).collect(),
            model: backend.model,
            free_in,
        });
    }
    servers
}

/// Seconds left of a running job: as its poller says live, or else by what such jobs took before.
fn left(state: &AppState, row: &RunningRow, loaded: Option<&str>, timings: &Timings) -> Option<f64> {
    let attempt = u32::try_from(row.attempt).ok()?;
    let live = row.id.parse().ok().and_then(|id| state.progress.get(id, attempt)?.eta_seconds);
    live.or_else(|| {
        let model = row.model.as_deref().or(loaded);
        Some((timings.seconds(&row.backend, model, row.work)? - seconds(row.elapsed)).max(0.0))
    })
}

impl From<WaitingRow> for Waiting {
    fn from(row: WaitingRow) -> Self {
        Self {
            id: row.id,
            priority: row.priority,
            pool: row.pool,
            model: row.model,
            wanted: row.wanted_backend,
            work: row.work,
            waited: seconds(row.waited),
            pause: seconds(row.pause).max(0.0),
            held_by: row.held_by,
        }
    }
}

fn sample(row: EndedRow) -> Option<Sample> {
    let completed = row.status == Status::Completed.as_str();
    let EndedRow { backend, model, work, took, .. } = row;
    (completed && took >= 0).then(|| Sample { backend, model, work, seconds: seconds(took) })
}

fn seconds(millis: i64) -> f64 {
    millis as f64 / 1000.0
}
