//! The hub's table, without NATS, a clock or a lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stepcast_shared::ids::{JobId, Owner};

use crate::feed::Subscription;
use crate::frame::{Class, JobFrame};
use crate::outbox::{Outbox, Round};

/// How many jobs of one owner are read again because somebody watches them all; further ones are live only.
const JOBS_NOTED: usize = 50_000;

pub(super) type MemberId = u64;

#[derive(Debug, Default)]
pub(super) struct Table {
    owners: HashMap<Owner, OwnerTable>,
}

#[derive(Debug, Default)]
struct OwnerTable {
    all: Topic,
    /// The wildcard is about to end, and the single jobs have been subscribed to beside it.
    retiring: bool,
    jobs: HashMap<JobId, JobTopic>,
}

/// Who wants a subject, and its subscription.
#[derive(Debug, Default)]
pub(super) struct Topic {
    watchers: HashMap<MemberId, Arc<Outbox>>,
    pub(super) subscription: Option<Subscription>,
    /// Since when its subscription is not needed.
    idle_since: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct JobTopic {
    pub(super) topic: Topic,
    /// The last progress of the running attempt.
    progress: Option<JobFrame>,
    finished: bool,
    /// When its recorded events are to be read again.
    due: Instant,
}

impl Table {
    /// Hands a frame to everybody who wants it; returns how many had not had it.
    pub(super) fn deliver(&mut self, owner: &Owner, frame: &JobFrame, round: &mut Round) -> usize {
        let Some(owner) = self.owners.get_mut(owner) else { return 0 };
        if !owner.all.watchers.is_empty() && owner.jobs.len() < JOBS_NOTED {
            owner.jobs.entry(frame.job_id).or_insert_with(|| JobTopic::new(Instant::now()));
        }
        let mut new = 0;
        if let Some(job) = owner.jobs.get_mut(&frame.job_id) {
            job.remember(frame);
            new += job.topic.deliver(frame, round);
        }
        new + owner.all.deliver(frame, round)
    }

    pub(super) fn watch_job(
        &mut self,
        owner: &Owner,
        id: JobId,
        member: MemberId,
        outbox: &Arc<Outbox>,
        due: Instant,
    ) {
        let owner = self.owners.entry(owner.clone()).or_default();
        let covered = owner.covers_all();
        let job = owner.jobs.entry(id).or_insert_with(|| JobTopic::new(due));
        job.topic.watchers.insert(member, Arc::clone(outbox));
        if !covered {
            job.topic.idle_since = None;
        }
        job.finished = false;
        job.due = due;
    }

    /// Those of the jobs that no subscription covers.
    pub(super) fn unsubscribed(&self, owner: &Owner, ids: &[JobId]) -> Vec<JobId> {
        let Some(owner) = self.owners.get(owner) else { return ids.to_vec() };
        if owner.covers_all() {
            return Vec::new();
        }
        let subscribed = |id: &JobId| owner.jobs.get(id).is_some_and(|job| job.topic.subscription.is_some());
        ids.iter().filter(|id| !subscribed(id)).copied().collect()
    }

    /// Returns whether the wildcard is subscribed to already.
    pub(super) fn watch_all(
        &mut self,
        owner: &Owner,
        member: MemberId,
        outbox: &Arc<Outbox>,
        now: Instant,
    ) -> bool {
        let owner = self.owners.entry(owner.clone()).or_default();
        owner.all.watchers.insert(member, Arc::clone(outbox));
        owner.all.idle_since = None;
        if owner.all.subscription.is_some() {
            owner.take_over(now);
        }
        owner.all.subscription.is_some()
    }

    pub(super) fn set_wildcard(&mut self, owner: &Owner, subscription: Subscription, now: Instant) {
        let owner = self.owners.entry(owner.clone()).or_default();
        owner.all.subscription = Some(subscription);
        owner.take_over(now);
    }

    pub(super) fn unwatch_job(&mut self, owner: &Owner, id: JobId, member: MemberId, now: Instant) {
        let Some(job) = self.owners.get_mut(owner).and_then(|owner| owner.jobs.get_mut(&id)) else { return };
        job.topic.unwatch(member, now);
    }

    pub(super) fn unwatch_all(&mut self, owner: &Owner, member: MemberId, now: Instant) {
        if let Some(owner) = self.owners.get_mut(owner) {
            owner.all.unwatch(member, now);
        }
    }

    pub(super) fn last_progress(&self, owner: &Owner, id: JobId) -> Option<JobFrame> {
        self.owners.get(owner)?.jobs.get(&id)?.progress.clone()
    }

    pub(super) fn job(&mut self, owner: &Owner, id: JobId) -> &mut JobTopic {
        let owner = self.owners.entry(owner.clone()).or_default();
        owner.jobs.entry(id).or_insert_with(|| JobTopic::new(Instant::now()))
    }

    pub(super) fn due(&self, now: Instant, limit: usize) -> Vec<(Owner, Vec<JobId>)> {
        let mut all = Vec::new();
        for (owner, table) in &self.owners {
            let everything = !table.all.watchers.is_empty();
            let is_due = |job: &JobTopic| {
                !job.finished && job.due <= now && (everything || !job.topic.watchers.is_empty())
            };
            let mut due: Vec<(Instant, JobId)> =
                table.jobs.iter().filter(|(_, job)| is_due(job)).map(|(id, job)| (job.due, *id)).collect();
            // The longest overdue first, so that none waits for ever behind others that fall due again.
            if due.len() > limit {
                due.select_nth_unstable(limit);
                due.truncate(limit);
            }
            let ids: Vec<JobId> = due.into_iter().map(|(_, id)| id).collect();
            if !ids.is_empty() {
                all.push((owner.clone(), ids));
            }
        }
        all
    }

    pub(super) fn set_due(&mut self, owner: &Owner, ids: &[JobId], at: Instant) {
        let Some(owner) = self.owners.get_mut(owner) else { return };
        for id in ids {
            if let Some(job) = owner.jobs.get_mut(id) {
                job.due = at;
            }
        }
    }

    pub(super) fn all_due(&mut self, now: Instant) {
        for job in self.owners.values_mut().flat_map(|owner| owner.jobs.values_mut()) {
            job.due = now;
        }
    }

    pub(super) fn watched_owners(&self) -> Vec<Owner> {
        let watched = self.owners.iter().filter(|(_, table)| !table.all.watchers.is_empty());
        watched.map(|(owner, _)| owner.clone()).collect()
    }

    pub(super) fn note(&mut self, owner: &Owner, ids: &[JobId], due: Instant) {
        let Some(owner) = self.owners.get_mut(owner).filter(|owner| !owner.all.watchers.is_empty()) else {
            return;
        };
        for id in ids {
            if owner.jobs.len() >= JOBS_NOTED {
                return;
            }
            owner.jobs.entry(*id).or_insert_with(|| JobTopic::new(due));
        }
    }

    /// Wildcards that nobody needs any longer, with the watched jobs that still ride on each.
    pub(super) fn retiring_wildcards(&mut self, now: Instant, linger: Duration) -> Vec<(Owner, Vec<JobId>)> {
        let mut retiring = Vec::new();
        for (owner, table) in &mut self.owners {
            if table.retiring || !table.all.is_idle(now, linger) {
                continue;
            }
            table.retiring = true;
            table.all.idle_since = Some(now);
            let mut riding = Vec::new();
            for (id, job) in &mut table.jobs {
                if !job.topic.watchers.is_empty() {
                    job.topic.idle_since = None;
                    if job.topic.subscription.is_none() {
                        riding.push(*id);
                    }
                }
            }
            retiring.push((owner.clone(), riding));
        }
        retiring
    }

    /// Removes what has been idle for the linger, and returns its subscriptions.
    pub(super) fn take_idle(&mut self, now: Instant, linger: Duration) -> Vec<Subscription> {
        let mut ended = Vec::new();
        for table in self.owners.values_mut() {
            if table.retiring && table.all.is_idle(now, linger) {
                ended.extend(table.all.subscription.take());
                table.all.idle_since = None;
                table.retiring = false;
            }
            for job in table.jobs.values_mut() {
                if job.topic.is_idle(now, linger) {
                    ended.extend(job.topic.subscription.take());
                }
            }
            let everything = !table.all.watchers.is_empty();
            table.jobs.retain(|_, job| job.is_needed(everything));
        }
        self.owners.retain(|_, table| !table.is_empty());
        ended
    }

    /// How many wildcards and how many single jobs are subscribed to.
    pub(super) fn subscriptions(&self) -> (usize, usize) {
        let owners = self.owners.values();
        owners.fold((0, 0), |(wildcards, jobs), table| {
            let of_jobs = table.jobs.values().filter(|job| job.topic.subscription.is_some()).count();
            (wildcards + usize::from(table.all.subscription.is_some()), jobs + of_jobs)
        })
    }
}

impl OwnerTable {
    fn covers_all(&self) -> bool {
        self.all.subscription.is_some() && !self.retiring
    }

    /// The wildcard serves everybody; the subscriptions of single jobs may end.
    fn take_over(&mut self, now: Instant) {
        self.retiring = false;
        for job in self.jobs.values_mut() {
            job.topic.idle_since.get_or_insert(now);
        }
    }

    fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.all.watchers.is_empty() && self.all.subscription.is_none()
    }
}

impl Topic {
    fn deliver(&self, frame: &JobFrame, round: &mut Round) -> usize {
        self.watchers.values().filter(|outbox| round.live(outbox, frame)).count()
    }

    fn unwatch(&mut self, member: MemberId, now: Instant) {
        self.watchers.remove(&member);
        if self.watchers.is_empty() {
            self.idle_since.get_or_insert(now);
        }
    }

    fn is_idle(&self, now: Instant, linger: Duration) -> bool {
        self.subscription.is_some()
            && self.idle_since.is_some_and(|since| now.saturating_duration_since(since) >= linger)
    }
}

impl JobTopic {
    fn new(due: Instant) -> Self {
        Self { topic: Topic::default(), progress: None, finished: false, due }
    }

    fn remember(&mut self, frame: &JobFrame) {
        match frame.class {
            Class::Progress if !self.finished => {
                if self.progress.as_ref().is_none_or(|last| last.seq < frame.seq) {
                    self.progress = Some(frame.clone());
                }
            }
            Class::Progress => {}
            Class::Event => {
                self.progress.take_if(|last| last.seq < frame.seq);
                self.finished |= frame.is_terminal();
            }
        }
    }

    fn is_needed(&self, everything: bool) -> bool {
        !self.topic.watchers.is_empty() || self.topic.subscription.is_some() || (everything && !self.finished)
    }
}

#[cfg(test)]
mod tests;
