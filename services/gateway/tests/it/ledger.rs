//! What the event stream holds, read whole: what is held against it that clients were told.

use std::collections::{HashMap, HashSet};
use std::fmt;

use async_nats::Client;
use chrono::{DateTime, Utc};
use serde_json::Value;
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::messages::EventSeq;
use stepcast_shared::nats::{Start, messages_from};
use stepcast_shared::subjects::{self, EVENTS_STREAM};

/// Events in one answer.
const PAGE: usize = 200;

/// One recorded event.
pub struct Recorded {
    pub place: u64,
    pub job: JobId,
    pub seq: EventSeq,
    pub stored_at: DateTime<Utc>,
    pub message: Value,
}

/// Everything that was recorded of one owner, in order.
#[derive(Debug)]
pub struct Ledger {
    events: Vec<Recorded>,
    by_seq: HashMap<(JobId, EventSeq), usize>,
}

impl Ledger {
    pub async fn read(client: &Client) -> Self {
        let subject = subjects::events_of_owner(&Owner::anonymous());
        let mut events: Vec<Recorded> = Vec::new();
        loop {
            let after = Start::After(events.last().map_or(0, |event| event.place));
            let page = messages_from(client, EVENTS_STREAM, &subject, after, PAGE).await.unwrap();
            if page.is_empty() {
                break;
            }
            events.extend(page.iter().map(Recorded::read));
        }
        let by_seq = events.iter().enumerate().map(|(index, it)| ((it.job, it.seq), index)).collect();
        Self { events, by_seq }
    }

    pub fn events(&self) -> &[Recorded] {
        &self.events
    }

    /// What was recorded of a job at this place of its life.
    pub fn get(&self, job: JobId, seq: EventSeq) -> Option<&Recorded> {
        self.by_seq.get(&(job, seq)).map(|index| &self.events[*index])
    }

    /// The jobs of these that ended behind one place and not behind another.
    pub fn ended<'a>(
        &'a self,
        jobs: &'a HashSet<JobId>,
        after: u64,
        until: u64,
    ) -> impl Iterator<Item = &'a Recorded> {
        let here = self.events.iter().filter(move |it| it.place > after && it.place <= until);
        here.filter(|it| it.seq.is_terminal() && jobs.contains(&it.job))
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, job, seq, stored_at, .. } = self;
        write!(f, "{seq} of {job} at place {place}, {stored_at}")
    }
}

impl Recorded {
    fn read(message: &async_nats::Message) -> Self {
        let headers = message.headers.as_ref().unwrap();
        let header = |name: &str| headers.get(name).unwrap_or_else(|| panic!("no {name}")).as_str();
        let time = DateTime::parse_from_rfc3339(header("Nats-Time-Stamp")).unwrap();
        Self {
            place: header("Nats-Sequence").parse().unwrap(),
            job: subjects::parse_job(header("Nats-Subject")).unwrap().job_id,
            seq: header(EventSeq::HEADER).parse().unwrap(),
            stored_at: time.to_utc(),
            message: serde_json::from_slice(&message.payload).unwrap(),
        }
    }
}
