//! Why a job waits, and for how long.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use stepcast_shared::messages::{BackendCondition, BackendMode, BackendState};

use crate::db::jobs::JobRow;
use crate::db::modes;
use crate::error::Error;
use crate::outlook::Outlook;
use crate::state::AppState;

/// Why a job waits: the first of these that holds, in the order `no_capable_backend`, `paused`, `backend_down`,
/// `foreign_work`, `model_swap`, `ahead`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = stepcast_shared::schema::open)]
pub enum WaitingFor {
    /// Others are served first.
    Ahead,
    /// Others that came later go first, because of its checkpoint: it asks for one that no backend has loaded which is
    /// idle or busy for us and could take it, and one of these backends will rather take a later job of the same
    /// priority that needs no other checkpoint than the loaded one. That ends `STEPCAST_MAX_AFFINITY_WAIT` after the
    /// job was accepted: then it is served in turn, and its checkpoint is loaded for it.
    ModelSwap,
    /// No backend could take it, whatever waits.
    NoCapableBackend,
    /// Every backend that could take it is paused, or to be emptied.
    Paused,
    /// Every backend that could take it cannot be reached, or fails whatever it is given.
    BackendDown,
    /// Every backend that could take it works for somebody else.
    ForeignWork,
}

/// What the waiting of jobs depends on, at one moment.
pub struct Lookout {
    backends: Vec<BackendState>,
    modes: BTreeMap<String, BackendMode>,
    outlook: Arc<Outlook>,
}

impl Lookout {
    /// Looks out. Errors if the database does not answer.
    pub async fn take(state: &AppState) -> Result<Self, Error> {
        Ok(Self {
            backends: state.backends.list(),
            modes: modes::modes(state.db.read()).await?,
            outlook: state.outlooks.get(state).await?,
        })
    }

    /// Why a waiting job waits. `position` is its place in its pool, from 1.
    pub fn reason(&self, row: &JobRow, position: i64) -> WaitingFor {
        let mut capable: Vec<&BackendState> =
            self.backends.iter().filter(|backend| may_take(backend, row)).collect();
        // What was emptied may have been shut down since.
        let held_back = row.wanted_backend.as_ref().is_some_and(|wanted| self.modes.contains_key(wanted));
        if capable.is_empty() && !held_back {
            return WaitingFor::NoCapableBackend;
        }
        capable.retain(|backend| !self.modes.contains_key(backend.id.as_str()));
        let all = |conditions: [BackendCondition; 2]| {
            capable.iter().all(|backend| conditions.contains(&backend.state))
        };
        if capable.is_empty() {
            WaitingFor::Paused
        } else if all([BackendCondition::Down, BackendCondition::Quarantined]) {
            WaitingFor::BackendDown
        } else if position <= 1 && all([BackendCondition::Foreign, BackendCondition::Down]) {
            WaitingFor::ForeignWork
        } else if self.outlook.is_passed_over(&row.id) {
            WaitingFor::ModelSwap
        } else {
            WaitingFor::Ahead
        }
    }

    /// Seconds until a waiting job begins, to the tenth, if nothing changes; `None` where that cannot be told: nothing
    /// was measured yet, or nothing takes it. `position` and `reason` are its own.
    pub fn seconds(&self, row: &JobRow, position: i64, reason: WaitingFor) -> Option<f64> {
        match reason {
            WaitingFor::Ahead | WaitingFor::ModelSwap if row.cancelling == 0 => {
                let seconds =
                    self.outlook.seconds(&row.id, &row.pool, row.wanted_backend.as_deref(), position)?;
                Some((seconds * 10.0).round() / 10.0)
            }
            _ => None,
        }
    }
}

fn may_take(backend: &BackendState, row: &JobRow) -> bool {
    backend.pools.iter().any(|pool| pool.as_str() == row.pool)
        && row.wanted_backend.as_deref().is_none_or(|wanted| wanted == backend.id.as_str())
}
