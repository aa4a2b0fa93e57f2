//! The messages that are published: real envelopes in which only the job, a running number and the time change.
//!
//! The number and the time have a fixed width and place, so that the publisher patches them in and a client reads
//! them without parsing JSON. The number stands where the place in the job's life stands (`seq` of a progress,
//! `attempt` of a lifecycle event), and grows over all jobs, hence within each.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use serde_json::json;
use stepcast_shared::ids::JobId;
use stepcast_shared::messages::{
    Envelope, JobMessage, ProgressUpdate, Source, Stage, Started, Status, Timestamp,
};
use stepcast_shared::subjects::Kind;

/// The first number: all have ten digits, and fit the wire's `u32`.
const FIRST: u64 = 1_000_000_000;
const NUMBER_WIDTH: usize = 10;
/// Bytes of a place in a job's life, as written by [`Template::place`].
pub const PLACE_WIDTH: usize = NUMBER_WIDTH + 2;
/// `2026-01-01T00:00:00.000000Z`.
const TIME_WIDTH: usize = 27;
const ID_WIDTH: usize = 36;
const HOUR: u64 = 3_600_000_000;

/// Which of a gateway's lanes the messages take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Progress: a gateway may leave out what a newer one has overtaken.
    Progress,
    /// Lifecycle events: every one must arrive.
    Events,
}

impl Lane {
    /// The last token of the subject.
    pub fn kind(self) -> Kind {
        match self {
            Self::Progress => Kind::Progress,
            Self::Events => Kind::Started,
        }
    }
}

/// An envelope with places to fill in.
#[derive(Clone, Debug)]
pub struct Template {
    lane: Lane,
    text: Vec<u8>,
    job_at: usize,
    number_at: usize,
    time_at: usize,
    second: u64,
}

/// What a client reads out of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which message, from 0, over all jobs.
    pub number: u64,
    /// When it was sent; microseconds within the hour.
    pub sent: u64,
}

impl Template {
    /// The envelope of a lane, from the real types.
    pub fn new(lane: Lane) -> anyhow::Result<Self> {
        let job_id = JobId::mint();
        let number = u32::try_from(FIRST)?;
        let message = match lane {
            Lane::Progress => JobMessage::Progress(progress(job_id, number)),
            Lane::Events => JobMessage::Started(started(job_id, number)),
        };
        let text = Envelope { message, timestamp: Timestamp::from_millis(0) }.to_json();
        let find = |what: &str| {
            let place = text.windows(what.len()).position(|window| window == what.as_bytes());
            place.with_context(|| format!("an envelope has no {what}"))
        };
        let (job_at, number_at) = (find(&job_id.to_string())?, find(&FIRST.to_string())?);
        let time_at = find("1970-01-01T00:00:00.000000Z")?;
        ensure!(number_at > job_at && time_at > number_at, "the fields of an envelope have moved");
        Ok(Self { lane, text, job_at, number_at, time_at, second: u64::MAX })
    }

    /// Bytes of every message of this lane.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Stamps what follows with this time, in microseconds since 1970.
    pub fn stamp(&mut self, now: u64) {
        let (second, micros) = (now / 1_000_000, now % 1_000_000);
        if second != self.second {
            self.second = second;
            let millis = i64::try_from(second * 1_000).expect("times are near");
            let text = Timestamp::from_millis(millis).to_string();
            self.text[self.time_at..][..TIME_WIDTH].copy_from_slice(text.as_bytes());
        }
        digits(&mut self.text[self.time_at + TIME_WIDTH - 7..][..6], micros);
    }

    /// Makes it the message with this number, of this job (36 bytes of id).
    pub fn fill(&mut self, job: &[u8; ID_WIDTH], number: u64) {
        self.text[self.job_at..][..ID_WIDTH].copy_from_slice(job);
        digits(&mut self.text[self.number_at..][..NUMBER_WIDTH], FIRST + number);
    }

    /// The message filled in last.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Which lane it takes.
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// The place in the job's life, `<attempt>.<seq>`, as the header of the message filled in last says it.
    pub fn place(&self, out: &mut Vec<u8>) {
        let number = &self.text[self.number_at..][..NUMBER_WIDTH];
        match self.lane {
            Lane::Progress => {
                out.extend_from_slice(b"1.");
                out.extend_from_slice(number);
            }
            Lane::Events => {
                out.extend_from_slice(number);
                out.extend_from_slice(b".1");
            }
        }
    }

    /// The messages of one that holds many, byte for byte; `None` if it is no such one.
    pub fn in_batch<'a>(&self, payload: &'a [u8]) -> Option<impl Iterator<Item = &'a [u8]> + use<'a>> {
        const TYPE: &[u8] = b"{\"type\":\"progress_batch\"";
        const LIST: &[u8] = b"\"messages\":[";
        if !payload.starts_with(TYPE) {
            return None;
        }
        let begin = payload.windows(LIST.len()).position(|window| window == LIST)? + LIST.len();
        let length = self.len();
        // A comma follows each, or the end of the list.
        Some(payload[begin..].chunks(length + 1).filter_map(move |chunk| chunk.get(..length)))
    }

    /// Reads a message back; `None` if it is another than this template makes.
    pub fn read(&self, payload: &[u8]) -> Option<Seen> {
        if payload.len() != self.text.len() || payload[..self.job_at] != self.text[..self.job_at] {
            return None;
        }
        let number = number_of(&payload[self.number_at..][..NUMBER_WIDTH])?.checked_sub(FIRST)?;
        let time = &payload[self.time_at..][..TIME_WIDTH];
        // Within the hour, since only differences matter.
        let (minutes, seconds, micros) =
            (number_of(&time[14..16])?, number_of(&time[17..19])?, number_of(&time[20..26])?);
        Some(Seen { number, sent: (minutes * 60 + seconds) * 1_000_000 + micros })
    }
}

/// Microseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Microseconds from `sent` (within its hour) to `now` (since 1970).
pub fn age(sent: u64, now: u64) -> u64 {
    let age = (now % HOUR + HOUR - sent % HOUR) % HOUR;
    // The clock may step back by a little; nothing takes half an hour here.
    if age > HOUR / 2 { 0 } else { age }
}

/// A progress as a poller publishes it.
fn progress(job_id: JobId, seq: u32) -> ProgressUpdate {
    ProgressUpdate {
        job_id,
        status: Status::Running,
        attempt: 1,
        seq,
        progress: 0.4375,
        current_step: 7,
        total_steps: 20,
        eta_seconds: Some(4.2),
        preview_image: None,
        error_message: None,
        stage: Stage::Sampling,
        image: 1,
        images: 2,
        steps_per_second: Some(3.1),
        source: Source::Measured,
        stalled: false,
        stalled_seconds: None,
        backend: None,
    }
}

/// A lifecycle event of the same size as a progress. Attempts may follow each other without end, so each is newer
/// than the last, none is terminal, and none may be left out.
pub fn started(job_id: JobId, attempt: u32) -> Started {
    let prompt = "a lighthouse in a storm, waves, dramatic light, oil on canvas, detailed, wide angle";
    Started {
        job_id,
        status: Status::Running,
        attempt,
        seq: 1,
        params: json!({"prompt": prompt, "steps": 20, "width": 512, "height": 512, "seed": -1}),
        estimated_duration: Some(8.1),
        backend: "gpu-0".parse().expect("a name"),
    }
}

fn digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).expect("a digit");
        number /= 10;
    }
}

fn number_of(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(job: JobId) -> [u8; ID_WIDTH] {
        job.to_string().into_bytes().try_into().expect("an id has 36 characters")
    }

    #[test]
    fn a_filled_message_is_a_real_envelope() {
        for lane in [Lane::Progress, Lane::Events] {
            let mut template = Template::new(lane).unwrap();
            let job = JobId::mint();
            template.stamp(1_790_000_000_123_456);
            template.fill(&id(job), 41);
            let text = template.text().to_vec();
            let envelope: Envelope<JobMessage> = serde_json::from_slice(&text).unwrap();
            assert_eq!(envelope.message.job_id(), job);
            assert_eq!(envelope.message.kind(), lane.kind());
            assert_eq!(envelope.timestamp.to_string(), "2026-09-21T14:13:20.123456Z");
            let mut place = Vec::new();
            template.place(&mut place);
            assert_eq!(place, envelope.message.seq().to_string().into_bytes());
            assert_eq!(place.len(), PLACE_WIDTH);
        }
    }

    #[test]
    fn what_was_filled_in_is_read_back() {
        let mut template = Template::new(Lane::Progress).unwrap();
        template.stamp(1_790_000_000_123_456);
        template.fill(&id(JobId::mint()), 987_654_321);
        let text = template.text().to_vec();
        let sent = (13 * 60 + 20) * 1_000_000 + 123_456;
        assert_eq!(template.read(&text), Some(Seen { number: 987_654_321, sent }));
        assert_eq!(template.read(&text[1..]), None);
        assert_eq!(Template::new(Lane::Events).unwrap().read(&text), None);
    }

    #[test]
    fn the_messages_of_a_batch_are_read_one_by_one() {
        let mut template = Template::new(Lane::Progress).unwrap();
        template.stamp(1_790_000_000_123_456);
        let mut batch = br#"{"type":"progress_batch","timestamp":"now","data":{"messages":["#.to_vec();
        for number in [3, 1, 4] {
            template.fill(&id(JobId::mint()), number);
            batch.extend_from_slice(template.text());
            batch.push(b',');
        }
        batch.pop();
        batch.extend_from_slice(b"]}}");
        let numbers: Vec<u64> = template
            .in_batch(&batch)
            .unwrap()
            .filter_map(|message| Some(template.read(message)?.number))
            .collect();
        assert_eq!(numbers, [3, 1, 4]);
        assert!(template.in_batch(template.text()).is_none());
    }

    #[test]
    fn an_age_passes_the_full_hour_and_is_never_negative() {
        assert_eq!(age(HOUR - 10, 7 * HOUR + 5), 15);
        assert_eq!(age(20, 7 * HOUR + 5), 0);
    }
}
