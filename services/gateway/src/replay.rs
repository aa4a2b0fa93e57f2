//! What a client missed while it was away: the events recorded since it last heard something.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::nats::{self, EVENTS_MAX_AGE, Start};
use stepcast_shared::subjects::{self, EVENTS_STREAM};

use crate::frame::JobFrame;
use crate::protocol::Jobs;
use crate::snapshot::{BATCH, Reader, latest};

/// Most events that are replayed; who missed more is better served by where the jobs stand.
pub const MOST: usize = 5_000;
/// Most recent events that are looked through for jobs that have ended meanwhile, if more was missed.
const LOOKED_THROUGH: u64 = 20_000;
/// A client's clock and messages under way: this much before the time that it names is replayed as well.
const MARGIN: TimeDelta = TimeDelta::seconds(60);
/// Jobs that are looked up one by one; for more, all events of their owner are read.
const ONE_BY_ONE: usize = 16;

/// When a client last heard something.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Since {
    /// The time in the last envelope that it has.
    Time(DateTime<Utc>),
    /// The place in the stream of the last event that it has.
    Place(u64),
}

/// What was recorded since.
#[derive(Debug, PartialEq)]
pub enum Missed {
    /// Every event, in the order of their recording.
    Whole(Vec<JobFrame>),
    /// It is too much, or no longer known: the last event of each job that was heard of lately.
    Latest(Vec<JobFrame>),
}

impl Reader {
    /// What was recorded of these jobs since then. Errors if the stream does not answer.
    pub async fn missed(&self, owner: &Owner, jobs: &Jobs, since: Since) -> anyhow::Result<Missed> {
        if self.reaches(since).await? {
            let start = match since {
                Since::Time(time) => Start::At(time.checked_sub_signed(MARGIN).unwrap_or(time)),
                Since::Place(place) => Start::After(place),
            };
            if let Some(whole) = self.replay(owner, jobs, start).await? {
                return Ok(Missed::Whole(whole));
            }
        }
        // Jobs by id are told where they stand in any case.
        let Jobs::All = jobs else { return Ok(Missed::Latest(Vec::new())) };
        let start = self.newest().await?.place.saturating_sub(LOOKED_THROUGH);
        let mut found = HashMap::new();
        let subject = subjects::events_of_owner(owner);
        self.read_on(&subject, Start::After(start), |frames| {
            found = latest(found.drain().map(|(_, frame)| frame).chain(frames));
            true
        })
        .await?;
        let mut found: Vec<JobFrame> = found.into_values().collect();
        found.sort_unstable_by_key(|frame| frame.place);
        // What lies before them is left out.
        Ok(Missed::Latest(found.into_iter().map(JobFrame::without_place).collect()))
    }

    /// Whether the stream still has everything since then.
    async fn reaches(&self, since: Since) -> anyhow::Result<bool> {
        match since {
            Since::Time(time) => {
                let age = Utc::now().signed_duration_since(time) + MARGIN;
                // A time to come is no age at all.
                let age = age.to_std().unwrap_or_default();
                Ok(age < EVENTS_MAX_AGE)
            }
            Since::Place(place) => {
                let first = self.after(0, 1).await?.1;
                Ok(first <= place.saturating_add(1) && place <= self.newest().await?.place)
            }
        }
    }

    /// Every event of these jobs from there on; `None` if there are too many.
    async fn replay(
        &self,
        owner: &Owner,
        jobs: &Jobs,
        start: Start,
    ) -> anyhow::Result<Option<Vec<JobFrame>>> {
        let subjects = match jobs {
            Jobs::Ids(ids) if ids.len() <= ONE_BY_ONE => {
                ids.iter().map(|id| subjects::events_of_job(owner, *id)).collect()
            }
            _ => vec![subjects::events_of_owner(owner)],
        };
        let wanted = |id: JobId| match jobs {
            Jobs::All => true,
            Jobs::Ids(ids) => ids.contains(&id),
        };
        // Of several jobs, read one after another, each has been read up to here at least.
        let sure = if subjects.len() > 1 { self.newest().await?.place } else { u64::MAX };
        let mut events: Vec<JobFrame> = Vec::new();
        let mut read = 0;
        for subject in subjects {
            self.read_on(&subject, start, |frames| {
                read += frames.len();
                events.extend(frames.into_iter().filter(|frame| wanted(frame.job_id)));
                read <= MOST
            })
            .await?;
        }
        events.sort_unstable_by_key(|frame| frame.place);
        for frame in events.iter_mut().filter(|frame| frame.place > sure) {
            frame.place = 0;
        }
        Ok((read <= MOST).then_some(events))
    }

    /// Reads page after page, for as long as `more` wants another.
    async fn read_on(
        &self,
        subject: &str,
        mut start: Start,
        mut more: impl FnMut(Vec<JobFrame>) -> bool,
    ) -> anyhow::Result<()> {
        loop {
            let messages = {
                let _turn = self.turn().await?;
                nats::messages_from(self.client(), EVENTS_STREAM, subject, start, BATCH).await?
            };
            let frames = messages.iter().filter_map(|message| Some(JobFrame::recorded(message).ok()?.1));
            if !more(frames.collect()) || messages.len() < BATCH {
                return Ok(());
            }
            start = messages.last().map_or(start, |last| Start::After(nats::place(last)));
        }
    }
}
