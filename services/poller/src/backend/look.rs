//! What a look at a server shows, and whose work that is.

use std::time::Duration;

use stepcast_shared::messages::{BackendCondition, BackendMode, BackendState, Timestamp};
use tokio::time::Instant;
use tracing::{info, warn};

use super::Backend;
use crate::sample::{Observation, Sample};
use crate::sdnext::Look;

/// How long a server without a model counts as starting. Afterwards a job may come: it makes the server load one.
const STARTING: Duration = Duration::from_mins(1);
/// Time without any change after which shown work counts as left over: after an exception a server reads busy for ever.
const FROZEN: Duration = Duration::from_mins(2);
/// The same for labels that a slow server shows as well.
const STUCK: Duration = Duration::from_mins(20);
/// Idle looks in a row after somebody else's work, a second apart.
const LOOKS_AFTER_FOREIGN: u32 = 2;

impl Backend {
    /// Looks at the server and says what it is doing.
    pub(super) async fn look(&mut self) -> BackendCondition {
        let (condition, model, foreign, message) = match self.sdnext.look().await {
            Err(error) => {
                self.known.forget();
                (BackendCondition::Down, None, None, Some(error.to_string()))
            }
            Ok(look) => {
                let (mut condition, foreign) = self.judge(&look);
                let unfit = self.quarantine.reason();
                if condition == BackendCondition::Idle && unfit.is_some() {
                    condition = BackendCondition::Quarantined;
                }
                if condition == BackendCondition::Idle && self.held_back == Some(BackendMode::Draining) {
                    condition = BackendCondition::Drained;
                }
                if matches!(condition, BackendCondition::Idle | BackendCondition::Drained) {
                    self.known.looked(look.sample);
                } else {
                    self.known.forget();
                }
                let message = match condition {
                    BackendCondition::Starting => Some("SD.Next answers and has not loaded a model yet"),
                    BackendCondition::Down => Some("a server answers, and not as SD.Next does"),
                    _ => None,
                };
                let message = message.map(str::to_owned).or(unfit);
                (condition, look.model, foreign, message)
            }
        };
        let was = self.state.borrow().as_ref().map(|state| state.state);
        // A backend that has just rendered is idle only if there is nothing more for it to do.
        let rendered = (was, condition) == (Some(BackendCondition::Busy), BackendCondition::Idle);
        if was != Some(condition) && !rendered {
            if let Some(message) = &message {
                warn!(?condition, message, "backend changed");
            } else {
                info!(?condition, "backend changed");
            }
        }
        self.state.send_if_modified(|state| {
            let new = BackendState {
                id: self.spec.id.clone(),
                state: if rendered { BackendCondition::Busy } else { condition },
                url: self.spec.url.to_string(),
                dialect: self.sdnext.dialect().as_str().to_owned(),
                pools: self.shared.config.pools.clone(),
                model,
                job_id: state.as_ref().filter(|_| rendered).and_then(|state| state.job_id),
                foreign,
                message,
                poller: self.shared.poller.clone(),
                updated_at: Timestamp::now(),
            };
            let same = state
                .as_ref()
                .is_some_and(|old| BackendState { updated_at: old.updated_at, ..new.clone() } == *old);
            *state = Some(new);
            !same
        });
        condition
    }

    /// What a server that answers is doing, and whose work it shows if it is not ours.
    fn judge(&mut self, look: &Look) -> (BackendCondition, Option<String>) {
        let Sample::Seen(seen) = &look.sample else { return (BackendCondition::Down, None) };
        if seen.is_active() && !self.is_left_over(seen) {
            let percent = (seen.progress * 100.0).round();
            let foreign = format!("{} {percent:.0} %", if seen.job.is_empty() { "work" } else { &seen.job });
            // A server that loads its first model works for nobody.
            let starting = look.model.is_none() && seen.job == "Load model";
            let condition = if starting { BackendCondition::Starting } else { BackendCondition::Foreign };
            self.idle_looks = if starting { 0 } else { LOOKS_AFTER_FOREIGN };
            return (condition, (!starting).then_some(foreign));
        }
        if self.idle_looks > 0 {
            // Recorded: one sample in sixty reads idle in the middle of a job.
            self.idle_looks -= 1;
            return (BackendCondition::Foreign, Some("ending".to_owned()));
        }
        if look.model.is_none() {
            let since = *self.modelless_since.get_or_insert_with(Instant::now);
            if since.elapsed() < STARTING {
                return (BackendCondition::Starting, None);
            }
        } else {
            self.modelless_since = None;
        }
        (BackendCondition::Idle, None)
    }

    /// Whether shown work is not there: it was shown when our POST had been answered, or has not moved for too long.
    fn is_left_over(&mut self, seen: &Observation) -> bool {
        if self.left_over.is_some() && self.left_over == seen.id {
            return true;
        }
        if seen.id.is_none() {
            // Servers without stages end what they have begun, whatever happens.
            return false;
        }
        match &self.frozen {
            Some((known, since)) if is_unmoved(known, seen) => {
                // Recorded: an exception leaves these labels standing. Others may be a slow step or a large model.
                let patience =
                    if known.job == "Process" || known.job.starts_with("API-") { FROZEN } else { STUCK };
                if since.elapsed() < patience {
                    return false;
                }
                info!(job = seen.job, "shown work has not moved; taken as left over");
                self.left_over.clone_from(&seen.id);
                true
            }
            _ => {
                self.frozen = Some((seen.clone(), Instant::now()));
                false
            }
        }
    }
}

fn is_unmoved(known: &Observation, seen: &Observation) -> bool {
    known.id == seen.id && known.sampling_step == seen.sampling_step && known.job == seen.job
}
