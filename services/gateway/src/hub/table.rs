//! The hub's table, without NATS, a clock or a lock.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stepcast_shared::ids::{JobId, Owner};
#[cfg(any(test, fuzzing))]
use stepcast_shared::messages::EventSeq;

use super::changes::Changes;
use super::job::{JobTopic, Topic};
use crate::feed::Subscription;
use crate::frame::JobFrame;
use crate::outbox::{Outbox, Round};

/// How many jobs of one owner are remembered because somebody watches them all; further ones are live only.
const JOBS_NOTED: usize = 50_000;
/// How many ended jobs of one owner are remembered, so that a late copy of their last event is known as one.
const ENDED_REMEMBERED: usize = 4_096;

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
    /// Jobs that ended while all were watched, the first first.
    ended: VecDeque<JobId>,
    /// What those who take progress in batches are owed.
    changes: Changes,
}

impl Table {
    /// Hands a frame to everybody to whom it is news; returns to how many.
    pub(super) fn deliver(&mut self, owner: &Owner, frame: &JobFrame, round: &mut Round) -> usize {
        let Some(owner) = self.owners.get_mut(owner) else { return 0 };
        let OwnerTable { all, jobs, ended, changes, .. } = owner;
        if all.is_watched() && jobs.len() < JOBS_NOTED {
            jobs.entry(frame.job_id).or_insert_with(|| JobTopic::new(Instant::now()));
        }
        let Some(job) = jobs.get_mut(&frame.job_id) else {
            changes.note(frame);
            return all.offer(frame, round);
        };
        if job.is_news(frame) {
            changes.note(frame);
            if frame.is_terminal() {
                ended.push_back(frame.job_id);
            }
        }
        job.deliver(frame, all, round)
    }

    /// Takes note that a member is told of these events by a snapshot, and of nothing of the other jobs. Returns the
    /// progress that belongs to each.
    pub(super) fn settle(
        &mut self,
        owner: &Owner,
        member: MemberId,
        ids: &[JobId],
        events: &HashMap<JobId, JobFrame>,
        round: &mut Round,
    ) -> HashMap<JobId, JobFrame> {
        let Some(owner) = self.owners.get_mut(owner) else { return HashMap::new() };
        let OwnerTable { all, jobs, ended, changes, .. } = owner;
        let is_batched = all.is_batched(member);
        let mut progress = HashMap::new();
        for id in ids {
            let event = events.get(id);
            if event.is_some() && all.is_watched() && jobs.len() < JOBS_NOTED {
                // Whoever is told of a job's end must not hear afterwards what somebody says of it who does not know.
                jobs.entry(*id).or_insert_with(|| JobTopic::new(Instant::now()));
            }
            let Some(job) = jobs.get_mut(id) else { continue };
            if let Some(event) = event.filter(|event| job.is_news(event)) {
                changes.note(event);
                if event.is_terminal() {
                    ended.push_back(*id);
                }
            }
            let settled = job.settle(member, event, all, round);
            if is_batched && changes.tell_of(*id) {
                continue;
            }
            progress.extend(settled.map(|frame| (*id, frame)));
        }
        progress
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
        job.topic.watch(member, outbox, false);
        if !covered {
            job.topic.idle_since = None;
        }
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
        batched: bool,
        now: Instant,
    ) -> bool {
        let owner = self.owners.entry(owner.clone()).or_default();
        owner.all.watch(member, outbox, batched);
        owner.changes.wanted(owner.all.has_batched());
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
        job.unwatch(member, now);
    }

    pub(super) fn unwatch_all(&mut self, owner: &Owner, member: MemberId, now: Instant) {
        if let Some(owner) = self.owners.get_mut(owner) {
            owner.all.unwatch(member, now);
            owner.changes.wanted(owner.all.has_batched());
        }
    }

    /// Sends what has changed since the last call to those who take it in batches.
    pub(super) fn send_batches(&mut self, round: &mut Round) {
        for owner in self.owners.values_mut() {
            let Some(batch) = owner.changes.take() else { continue };
            for outbox in owner.all.batched() {
                round.batch(outbox, &batch);
            }
        }
    }

    pub(super) fn job(&mut self, owner: &Owner, id: JobId) -> &mut JobTopic {
        let owner = self.owners.entry(owner.clone()).or_default();
        owner.jobs.entry(id).or_insert_with(|| JobTopic::new(Instant::now()))
    }

    /// The furthest of a job that was handed out.
    #[cfg(any(test, fuzzing))]
    pub(super) fn reached(&self, owner: &Owner, id: JobId) -> Option<EventSeq> {
        self.owners.get(owner)?.jobs.get(&id)?.reached()
    }

    pub(super) fn due(&self, now: Instant, limit: usize) -> Vec<(Owner, Vec<JobId>)> {
        let mut all = Vec::new();
        for (owner, table) in &self.owners {
            let everything = table.all.is_watched();
            let is_due = |job: &JobTopic| {
                job.due <= now && job.may_have_news() && (everything || job.topic.is_watched())
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

    /// The outboxes of those who watch all jobs, and of those who are told places in the stream.
    pub(super) fn all_or_placed(&self) -> Vec<Arc<Outbox>> {
        let mut outboxes = Vec::new();
        for table in self.owners.values() {
            outboxes.extend(table.all.outboxes().cloned());
            let of_jobs = table.jobs.values().flat_map(|job| job.topic.outboxes());
            outboxes.extend(of_jobs.filter(|outbox| outbox.socket().is_none()).cloned());
        }
        outboxes
    }

    pub(super) fn watched_owners(&self) -> Vec<Owner> {
        let watched = self.owners.iter().filter(|(_, table)| table.all.is_watched());
        watched.map(|(owner, _)| owner.clone()).collect()
    }

    /// Takes note of jobs of which it was heard that they exist; `member` is about to be told of them, if anybody.
    pub(super) fn note(&mut self, owner: &Owner, ids: &[JobId], member: Option<MemberId>, due: Instant) {
        let Some(owner) = self.owners.get_mut(owner).filter(|owner| owner.all.is_watched()) else {
            return;
        };
        for id in ids {
            if owner.jobs.len() >= JOBS_NOTED && !owner.jobs.contains_key(id) {
                continue;
            }
            let job = owner.jobs.entry(*id).or_insert_with(|| JobTopic::new(due));
            // What it may have had already, its outbox knows.
            if let Some(member) = member {
                job.doubt(member);
            }
        }
    }

    /// Takes note that a member is about to be told of these jobs, which it watches, as far as they can be read.
    pub(super) fn doubt(&mut self, owner: &Owner, ids: &[JobId], member: MemberId) {
        let Some(owner) = self.owners.get_mut(owner) else { return };
        for id in ids {
            if let Some(job) = owner.jobs.get_mut(id) {
                job.doubt(member);
            }
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
                if job.topic.is_watched() {
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
        let mut idle = Vec::new();
        for table in self.owners.values_mut() {
            if table.retiring && table.all.is_idle(now, linger) {
                idle.extend(table.all.subscription.take());
                table.all.idle_since = None;
                table.retiring = false;
            }
            for job in table.jobs.values_mut() {
                if job.topic.is_idle(now, linger) {
                    idle.extend(job.topic.subscription.take());
                }
            }
            table.forget();
        }
        self.owners.retain(|_, table| !table.is_empty());
        idle
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

    /// Forgets jobs that nobody watches; where all are watched, only those that ended longest ago.
    fn forget(&mut self) {
        if !self.all.is_watched() {
            self.ended.clear();
            self.jobs.retain(|_, job| job.is_held());
            return;
        }
        while self.ended.len() > ENDED_REMEMBERED {
            let Some(id) = self.ended.pop_front() else { return };
            if self.jobs.get(&id).is_some_and(|job| job.has_ended() && !job.is_held()) {
                self.jobs.remove(&id);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.jobs.is_empty() && !self.all.is_watched() && self.all.subscription.is_none()
    }
}

#[cfg(test)]
mod tests;
