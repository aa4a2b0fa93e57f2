//! How the installation does, counted from the rows and the states of the backends when somebody asks.
//!
//! Replicas count the same rows by the same clock, so they agree. What ended within a window is counted at most once a
//! second and window, and less often where that takes long, however many look.

mod figures;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use stepcast_shared::ids::{BackendId, JobId};
use stepcast_shared::messages::{
    BackendMode, BackendState, BackendStats, OverallStats, QueueDepth, QueueStats, Stats, StatsWindow,
    Status, Throughput, Timestamp,
};
use uuid::Uuid;

use self::figures::Counted;
use crate::db::jobs::queue::running;
use crate::db::stats::DepthGroup;
use crate::db::{jobs, modes, stats as db};
use crate::kept::{Keep, Kept};
use crate::state::AppState;

/// The windows whose throughput is always told.
const TOLD: [StatsWindow; 3] = [StatsWindow::FiveMinutes, StatsWindow::Hour, StatsWindow::Day];
/// Kinds of unended jobs that are told apart; the smallest beyond are left out, as all of it is one message.
const MOST_KINDS: usize = 100;
/// For how long counts are kept.
const KEEP: Keep = Keep { least: Duration::from_secs(1), most: Duration::from_mins(1) };

/// The last counts, shared by all requests.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    now: Kept<Now>,
    windows: [Kept<Past>; StatsWindow::ALL.len()],
}

/// What waits and runs, and what is wanted of the backends.
#[derive(Debug)]
pub struct Now {
    /// What waits and runs.
    pub queue: QueueStats,
    modes: BTreeMap<String, BackendMode>,
}

/// What ended within a window.
#[derive(Debug)]
struct Past {
    at: i64,
    accepted: u64,
    overall: Counted,
    backends: BTreeMap<BackendId, Counted>,
}

impl Counts {
    /// What waits and runs now, or a second ago.
    pub async fn now(&self, state: &AppState) -> sqlx::Result<Arc<Now>> {
        self.0.now.get(KEEP, take_now(state)).await
    }

    async fn past(&self, state: &AppState, window: StatsWindow) -> sqlx::Result<Arc<Past>> {
        self.0.windows[window as usize].get(KEEP, take_past(state, window)).await
    }
}

/// The statistics over a window, of now or of a moment ago.
pub async fn stats(state: &AppState, window: StatsWindow) -> sqlx::Result<Stats> {
    let mut throughput = Vec::with_capacity(TOLD.len());
    for window in TOLD {
        throughput.push(per_time(window, &state.counts.past(state, window).await?.overall));
    }
    let (past, now) = (state.counts.past(state, window).await?, state.counts.now(state).await?);
    let heard_of: BTreeMap<BackendId, BackendState> =
        state.backends.list().into_iter().map(|backend| (backend.id.clone(), backend)).collect();
    let ids: BTreeSet<&BackendId> = heard_of.keys().chain(past.backends.keys()).collect();
    let nothing = Counted::new(past.overall.seconds);
    let backends = ids
        .iter()
        .map(|id| {
            let mode = now.modes.get(id.as_str());
            BackendStats {
                id: (*id).clone(),
                state: heard_of.get(*id).map(|backend| backend.state),
                paused: mode == Some(&BackendMode::Paused),
                draining: mode == Some(&BackendMode::Draining),
                figures: past.backends.get(*id).unwrap_or(&nothing).figures(1),
            }
        })
        .collect();
    Ok(Stats {
        at: Timestamp::from_millis(past.at),
        window,
        window_seconds: window.seconds(),
        queue: now.queue.clone(),
        throughput,
        overall: OverallStats { jobs_accepted: past.accepted, figures: past.overall.figures(ids.len()) },
        backends,
    })
}

fn per_time(window: StatsWindow, counted: &Counted) -> Throughput {
    let figures = counted.figures(0);
    Throughput {
        window,
        window_seconds: window.seconds(),
        counted_seconds: figures.counted_seconds,
        jobs_completed: figures.jobs_completed,
        images_completed: figures.images_completed,
        jobs_per_minute: figures.jobs_per_minute,
        jobs_per_hour: figures.jobs_per_minute * 60.0,
        images_per_minute: figures.images_per_minute,
        images_per_hour: figures.images_per_minute * 60.0,
    }
}

async fn take_now(state: &AppState) -> sqlx::Result<Now> {
    let pool = state.db.read();
    let (at, depths) = (state.db.now().await?, db::depths(pool).await?);
    Ok(Now { queue: queue(at, depths), modes: modes::modes(pool).await? })
}

fn queue(at: i64, groups: Vec<DepthGroup>) -> QueueStats {
    let mut queue = QueueStats::default();
    let mut by_kind: BTreeMap<(String, i64), QueueDepth> = BTreeMap::new();
    for group in groups {
        let Ok(pool) = group.pool.parse() else { continue };
        let depth = by_kind.entry((group.pool, -group.priority)).or_insert_with(|| QueueDepth {
            pool,
            priority: jobs::priority(group.priority),
            pending: 0,
            running: 0,
            oldest_pending_seconds: None,
        });
        let count = u64::try_from(group.jobs).unwrap_or(0);
        if group.status == Status::Running.as_str() {
            depth.running += count;
            queue.running += count;
        } else {
            depth.pending += count;
            queue.pending += count;
            depth.oldest_pending_seconds = minted_at(&group.first_id).map(|then| seconds((at - then).max(0)));
        }
    }
    let ages = by_kind.values().filter_map(|depth| depth.oldest_pending_seconds);
    queue.oldest_pending_seconds = ages.reduce(f64::max);
    let mut kinds: Vec<QueueDepth> = by_kind.into_values().collect();
    if kinds.len() > MOST_KINDS {
        kinds.sort_by_key(|depth| std::cmp::Reverse(depth.pending + depth.running));
        kinds.truncate(MOST_KINDS);
        kinds.sort_by_key(|depth| (depth.pool.clone(), std::cmp::Reverse(depth.priority)));
    }
    queue.by_pool_and_priority = kinds;
    queue
}

async fn take_past(state: &AppState, window: StatsWindow) -> sqlx::Result<Past> {
    let (pool, length) = (state.db.read(), i64::from(window.seconds()) * 1_000);
    let at = state.db.now().await?;
    let from = at - length;
    let ended = db::ended(pool, from).await?;
    let rows: i64 = ended.iter().map(|group| group.jobs).sum();
    let first_end = ended.iter().map(|group| group.first_end).min().unwrap_or(from);
    let counted_from = if rows < db::MOST { from } else { first_end };
    let mut overall = Counted::new(seconds((at - counted_from).max(1)));
    let mut backends: BTreeMap<BackendId, Counted> = BTreeMap::new();
    let mut both = |backend: Option<&str>, count: &dyn Fn(&mut Counted)| {
        count(&mut overall);
        if let Some(id) = backend.and_then(|id| id.parse().ok()) {
            count(backends.entry(id).or_insert_with(|| Counted::new(overall.seconds)));
        }
    };
    for group in &ended {
        both(group.backend.as_deref(), &|counted| counted.ended(group));
    }
    for group in db::waits(pool, from).await? {
        both(group.backend.as_deref(), &|counted| counted.waited(&group));
    }
    for group in db::retries(pool, from).await? {
        both(group.backend.as_deref(), &|counted| counted.retried(&group));
    }
    for row in running(pool, state.db.dialect).await? {
        both(Some(&row.backend), &|counted| counted.renders(row.elapsed.clamp(0, length)));
    }
    let accepted = db::accepted(pool, &first_id(from)).await?;
    Ok(Past { at, accepted: u64::try_from(accepted).unwrap_or(0), overall, backends })
}

/// The least id that is minted at a time; milliseconds since 1970.
fn first_id(millis: i64) -> String {
    let millis = u64::try_from(millis).unwrap_or(0);
    Uuid::from_u64_pair(millis << 16 | 0x7000, 0x8000_0000_0000_0000).hyphenated().to_string()
}

/// When an id was minted; milliseconds since 1970.
fn minted_at(id: &str) -> Option<i64> {
    let (seconds, nanos) = id.parse::<JobId>().ok()?.as_uuid().get_timestamp()?.to_unix();
    i64::try_from(seconds * 1_000 + u64::from(nanos) / 1_000_000).ok()
}

fn seconds(millis: i64) -> f64 {
    millis as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_when_it_was_minted_and_none_of_that_time_is_less_than_the_first() {
        let id = JobId::mint().to_string();
        let millis = minted_at(&id).unwrap();
        assert!((Timestamp::now().0.timestamp_millis() - millis).abs() < 60_000);
        assert!(first_id(millis) <= id && id < first_id(millis + 1));
        assert_eq!(minted_at(&first_id(millis)), Some(millis));
    }

    fn group(status: &str, pool: &str, priority: i64, jobs: i64, id: &str) -> DepthGroup {
        let (status, pool, first_id) = (status.to_owned(), pool.to_owned(), id.to_owned());
        DepthGroup { status, pool, priority, jobs, first_id }
    }

    #[test]
    fn of_many_kinds_the_largest_are_told() {
        let groups = (0..300).map(|n| group("pending", &format!("pool-{n:03}"), 1, n + 1, &first_id(1_000)));
        let queue = queue(2_000, groups.collect());
        assert_eq!((queue.pending, queue.by_pool_and_priority.len()), (45_150, MOST_KINDS));
        assert_eq!(queue.by_pool_and_priority[0].pool.as_str(), "pool-200");
        assert_eq!(queue.oldest_pending_seconds, Some(1.0));
    }

    #[test]
    fn depths_are_by_pool_and_urgent_first() {
        let old = first_id(1_000_000);
        let queue = queue(
            1_002_500,
            vec![
                group("pending", "default", 0, 3, &first_id(1_002_000)),
                group("running", "default", 2, 1, &old),
                group("pending", "default", 2, 2, &old),
                group("running", "sdxl", 1, 4, &old),
            ],
        );
        assert_eq!((queue.pending, queue.running, queue.oldest_pending_seconds), (5, 5, Some(2.5)));
        insta::assert_snapshot!(serde_json::to_string(&queue.by_pool_and_priority).unwrap(), @r#"[{"pool":"default","priority":"high","pending":2,"running":1,"oldest_pending_seconds":2.5},{"pool":"default","priority":"low","pending":3,"running":0,"oldest_pending_seconds":0.5},{"pool":"sdxl","priority":"normal","pending":0,"running":4,"oldest_pending_seconds":null}]"#);
    }
}
