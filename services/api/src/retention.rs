//! Nothing is kept for ever: ended jobs expire with their events and images, and objects that nobody refers to are
//! removed.
//!
//! A row goes first, its images afterwards: what a crash leaves behind is an object without a row, and the sweep of
//! objects finds those too. An object is removed only once it has been there for a while, as an attempt stores its
//! images before an event names them; and only if its name is one that Stepcast gives, so that other files in the
//! folder are safe. A store must belong to one deployment: to another's database all of ours refer to nothing.
//!
//! Every replica sweeps. They pass over each other's rows, and removing an object twice changes nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};
use rand::Rng as _;
use stepcast_shared::ids::{ClaimToken, JobId};
use stepcast_shared::job::JobRequest;
use stepcast_shared::messages::{Complete, Status};
use stepcast_shared::nats::EVENTS_MAX_AGE;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::RetentionConfig;
use crate::db::{Db, retention};
use crate::error::Error;

/// Rows that one transaction removes.
const BATCH: u32 = 200;
/// How long it is known that a job has expired; afterwards it is as if it had never been.
const TOMBSTONES_KEPT: Duration = Duration::from_hours(90 * 24);

/// Removes what is too old.
pub struct Sweeper {
    pub db: Db,
    pub images: Arc<dyn ObjectStore>,
    pub config: RetentionConfig,
}

impl Sweeper {
    /// Sweeps until the process stops.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        if self.config.retain < EVENTS_MAX_AGE {
            warn!(
                retain = %humantime::format_duration(self.config.retain),
                "ended jobs expire before their events do: who replays those finds jobs that are gone"
            );
        }
        // Replicas that start together do not sweep together.
        let mut pause = self.config.sweep_every.mul_f64(rand::rng().random_range(0.0..1.0));
        loop {
            tokio::select! {
                () = stopping.cancelled() => return Ok(()),
                () = sleep(pause) => {}
            }
            pause = self.config.sweep_every;
            tokio::select! {
                // Whatever is broken off here is found by the next sweep.
                () = stopping.cancelled() => return Ok(()),
                swept = self.sweep() => if let Err(error) = swept {
                    warn!(error = &error as &dyn std::error::Error, "not everything old was removed");
                }
            }
        }
    }

    async fn sweep(&self) -> Result<(), Error> {
        self.expire_jobs().await?;
        let mut transaction = self.db.begin().await?;
        retention::forget(&mut transaction, self.db.dialect, millis(TOMBSTONES_KEPT)).await?;
        transaction.commit().await?;
        self.remove_unreferenced_images().await?;
        self.remove_unreferenced_inputs().await
    }

    async fn expire_jobs(&self) -> Result<(), Error> {
        loop {
            let mut transaction = self.db.begin().await?;
            let retain = millis(self.config.retain);
            let old = retention::take_old(&mut transaction, self.db.dialect, retain, BATCH).await?;
            for id in &old {
                retention::expire(&mut transaction, self.db.dialect, id).await?;
            }
            transaction.commit().await?;
            if old.is_empty() {
                return Ok(());
            }
            info!(jobs = old.len(), "jobs expired");
            metrics::counter!("stepcast_jobs_expired_total").increment(old.len() as u64);
            for id in &old {
                let images: Vec<ObjectMeta> =
                    self.images.list(Some(&Path::from(id.as_str()))).try_collect().await?;
                for image in images {
                    self.remove(&image.location).await?;
                }
            }
        }
    }

    /// Images that no ended job names, and that are old enough to have been named by now.
    async fn remove_unreferenced_images(&self) -> Result<(), Error> {
        let mut objects = self.images.list(None);
        // Objects of one job mostly follow each other.
        let mut last: Option<(JobId, Kept)> = None;
        while let Some(object) = objects.next().await {
            let object = object?;
            let Some(job_id) = job_of(&object.location) else { continue };
            if !self.is_old(&object) {
                continue;
            }
            let known = last.take().filter(|(known, _)| *known == job_id);
            let kept = match known {
                Some((_, kept)) => kept,
                None => self.kept(job_id).await?,
            };
            if !kept.holds(object.location.as_ref()) {
                self.remove(&object.location).await?;
            }
            last = Some((job_id, kept));
        }
        Ok(())
    }

    async fn kept(&self, job_id: JobId) -> Result<Kept, Error> {
        let Some(holder) = retention::holder(self.db.read(), job_id).await? else { return Ok(Kept::Nothing) };
        let ended = holder.status.parse().is_ok_and(Status::is_terminal);
        let result = holder.result.as_deref().map(serde_json::from_str::<Complete>);
        Ok(match result {
            // What cannot be read may name anything.
            Some(Ok(result)) if ended => {
                Kept::These(result.outputs.into_iter().map(|output| output.key).collect())
            }
            _ => Kept::Everything,
        })
    }

    /// Input images, first their rows, and their bytes once nobody can be about to refer to them.
    async fn remove_unreferenced_inputs(&self) -> Result<(), Error> {
        let (retain, grace) = (millis(self.config.retain), millis(self.config.unreferenced_after));
        let old = retention::old_inputs(self.db.read(), self.db.dialect, retain).await?;
        let stored: Vec<ObjectMeta> = self.images.list(Some(&Path::from("inputs"))).try_collect().await?;
        let stored: Vec<ObjectMeta> = stored.into_iter().filter(|object| self.is_old(object)).collect();
        if old.is_empty() && stored.is_empty() {
            return Ok(());
        }
        let referred = self.referred().await?;
        for (owner, id) in old.iter().filter(|(_, id)| !referred.contains(id)) {
            let mut transaction = self.db.begin().await?;
            retention::drop_input(&mut transaction, self.db.dialect, owner, id, retain).await?;
            transaction.commit().await?;
        }
        for object in stored {
            let Some(id) = input_of(&object.location).filter(|id| !referred.contains(*id)) else { continue };
            if retention::input_is_kept(self.db.read(), self.db.dialect, id, grace).await? {
                continue;
            }
            // It may have been stored again since it was listed.
            match self.images.head(&object.location).await {
                Ok(now) if self.is_old(&now) => self.remove(&object.location).await?,
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Ids of the input images that any job refers to.
    async fn referred(&self) -> Result<BTreeSet<String>, Error> {
        let mut referred = BTreeSet::new();
        let mut after = String::new();
        loop {
            let page = retention::referring(self.db.read(), &after, BATCH).await?;
            let Some((last, _)) = page.last() else { return Ok(referred) };
            after.clone_from(last);
            for (_, request) in &page {
                if let Ok(request) = serde_json::from_str::<JobRequest>(request) {
                    referred.extend(request.inputs().map(str::to_owned));
                }
            }
        }
    }

    fn is_old(&self, object: &ObjectMeta) -> bool {
        let age: Duration = (Utc::now() - object.last_modified).to_std().unwrap_or_default();
        age > self.config.unreferenced_after
    }

    async fn remove(&self, location: &Path) -> Result<(), Error> {
        match self.images.delete(location).await {
            Ok(()) => metrics::counter!("stepcast_objects_removed_total").increment(1),
            // Another replica was faster.
            Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// Which objects of a job are to stay.
enum Kept {
    /// It has not ended: its attempt may be about to name any of them.
    Everything,
    /// Those that its outcome names.
    These(BTreeSet<String>),
    /// There is no such job.
    Nothing,
}

impl Kept {
    fn holds(&self, key: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::These(keys) => keys.contains(key),
            Self::Nothing => false,
        }
    }
}

/// The job of an image's key, `<job_id>/<attempt>-<token>/<index>.<ext>`; `None` for any other name.
fn job_of(location: &Path) -> Option<JobId> {
    let parts: Vec<&str> = location.as_ref().split('/').collect();
    let [job_id, attempt, file] = parts[..] else { return None };
    let (number, token) = attempt.split_once('-')?;
    let (index, _) = file.split_once('.')?;
    number.parse::<u32>().ok()?;
    index.parse::<usize>().ok()?;
    token.parse::<ClaimToken>().ok()?;
    job_id.parse().ok()
}

/// The id of an input image's key, `inputs/<hex SHA-256>`; `None` for any other name.
fn input_of(location: &Path) -> Option<&str> {
    let id = location.as_ref().strip_prefix("inputs/")?;
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_we_give_are_ours() {
        let (job_id, token) = (JobId::mint(), ClaimToken::mint());
        assert_eq!(job_of(&format!("{job_id}/1-{token}/0.png").into()), Some(job_id));
        let foreign = ["holiday.jpg", "inputs/cat.png", "a/b/c.png"].map(str::to_owned);
        let near = [
            format!("{job_id}/0.png"),
            format!("{job_id}/1-{token}/x.png"),
            format!("{job_id}/{token}/0.png"),
        ];
        for name in foreign.into_iter().chain(near) {
            let path = Path::from(name.as_str());
            assert_eq!((job_of(&path), input_of(&path)), (None, None), "{name}");
        }
        let hash = "ab".repeat(32);
        assert_eq!(input_of(&format!("inputs/{hash}").into()), Some(hash.as_str()));
    }
}
