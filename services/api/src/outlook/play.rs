//! The queue played through: which backend would take which job when, by the rules that claims are granted by.

use std::collections::{HashMap, HashSet};

use super::timings::Timings;

/// A backend that takes work. One that is away, kept from work, or busy for somebody else is no part of this.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its id.
    pub id: String,
    /// The pools it serves.
    pub pools: Vec<String>,
    /// Checkpoint that is loaded, where known.
    pub model: Option<String>,
    /// Seconds until it is free; `None` if that cannot be told.
    pub free_in: Option<f64>,
}

/// A waiting job. Times in seconds.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Its id.
    pub id: String,
    /// Greater goes first.
    pub priority: i64,
    /// Which backends may take it.
    pub pool: String,
    /// Checkpoint that it asks for.
    pub model: Option<String>,
    /// The one backend that may take it.
    pub wanted: Option<String>,
    /// In megapixel-steps, where known.
    pub work: Option<f64>,
    /// Since it was accepted.
    pub waited: f64,
    /// Until it may be taken.
    pub pause: f64,
    /// The backend that has taken it and not begun.
    pub held_by: Option<String>,
}

/// What is ahead of each waiting job.
#[derive(Clone, Debug, Default)]
pub struct Outlook {
    starts: HashMap<String, f64>,
    passed_over: HashSet<String>,
    /// When each backend would have nothing left to do.
    afterwards: Vec<Server>,
    /// Jobs that were looked at, and whether there are more.
    jobs: usize,
    whole: bool,
}

impl Server {
    fn may_take(&self, pool: &str, wanted: Option<&str>) -> bool {
        wanted.is_none_or(|wanted| wanted == self.id) && self.pools.iter().any(|served| served == pool)
    }

    fn is_for(&self, job: &Waiting) -> bool {
        self.may_take(&job.pool, job.wanted.as_deref())
    }

    /// Whether it would take this job without loading another checkpoint.
    fn has_loaded(&self, job: &Waiting) -> bool {
        job.model.is_none() || job.model == self.model
    }
}

impl Outlook {
    /// Plays `queue`, which is in order of priority and age, on `servers`. `affinity_wait` is the longest time, in
    /// seconds since its acceptance, that a job is passed over for others whose checkpoint is loaded.
    ///
    /// `whole` says that nothing waits behind `queue`.
    pub fn play(
        queue: &[Waiting],
        servers: Vec<Server>,
        timings: &Timings,
        affinity_wait: f64,
        whole: bool,
    ) -> Self {
        let passed_over = passed_over(queue, &servers, affinity_wait);
        let mut game = Game {
            queue,
            timings,
            affinity_wait,
            servers,
            taken: vec![false; queue.len()],
            first: 0,
            starts: HashMap::new(),
        };
        game.take_up_held();
        game.run();
        let Game { starts, servers: afterwards, .. } = game;
        Self { starts, passed_over, afterwards, jobs: queue.len(), whole }
    }

    /// Seconds until a job is taken, as far as that can be told; 0 if it has been.
    ///
    /// A job that was not played, being newer than this or too far back, goes behind all that were: `place` is its place
    /// in the queue, from 1.
    pub fn seconds(&self, id: &str, pool: &str, wanted: Option<&str>, place: i64) -> Option<f64> {
        if let Some(start) = self.starts.get(id) {
            return Some(*start);
        }
        let free = self.afterwards.iter().filter(|server| server.may_take(pool, wanted));
        let soonest = free.filter_map(|server| server.free_in).min_by(f64::total_cmp)?;
        let further = if self.whole { 1.0 } else { place as f64 / self.jobs.max(1) as f64 };
        Some(soonest * further.max(1.0))
    }

    /// Whether a later job goes first because its checkpoint is loaded where this one's is not: see
    /// [`WaitingFor::ModelSwap`](crate::waiting::WaitingFor::ModelSwap).
    pub fn is_passed_over(&self, id: &str) -> bool {
        self.passed_over.contains(id)
    }
}

struct Game<'a> {
    queue: &'a [Waiting],
    timings: &'a Timings,
    affinity_wait: f64,
    servers: Vec<Server>,
    taken: Vec<bool>,
    /// Everything before it is taken.
    first: usize,
    starts: HashMap<String, f64>,
}

/// What a free backend does.
enum Next {
    Takes(usize),
    /// There is something for it later, at this time.
    Waits(f64),
    Rests,
}

impl Game<'_> {
    /// Claimed jobs begin now, on whatever holds them.
    fn take_up_held(&mut self) {
        for (index, job) in self.queue.iter().enumerate() {
            let Some(holder) = &job.held_by else { continue };
            self.starts.insert(job.id.clone(), 0.0);
            match self.servers.iter().position(|server| server.id == *holder) {
                Some(server) => self.give(server, index, 0.0),
                None => self.taken[index] = true,
            }
        }
    }

    fn run(&mut self) {
        let mut at_work: Vec<usize> = (0..self.servers.len()).collect();
        // Whichever is free first takes next.
        while let Some((place, now)) = at_work
            .iter()
            .enumerate()
            .filter_map(|(place, server)| Some((place, self.servers[*server].free_in?)))
            .min_by(|one, other| one.1.total_cmp(&other.1))
        {
            let server = at_work[place];
            match self.next(server, now) {
                Next::Takes(job) => {
                    self.starts.insert(self.queue[job].id.clone(), now);
                    self.give(server, job, now);
                }
                Next::Waits(until) => self.servers[server].free_in = Some(until),
                Next::Rests => {
                    at_work.swap_remove(place);
                }
            }
        }
    }

    /// What claims would choose: by priority, then what needs no other checkpoint or has waited too long, then by age.
    fn next(&self, server: usize, now: f64) -> Next {
        let server = &self.servers[server];
        let (mut with_another_checkpoint, mut later) = (None::<usize>, None::<f64>);
        for (index, job) in self.queue.iter().enumerate().skip(self.first) {
            if let Some(found) = with_another_checkpoint
                && self.queue[found].priority > job.priority
            {
                break;
            }
            if self.taken[index] || !server.is_for(job) {
                continue;
            }
            if job.pause > now {
                later = Some(later.map_or(job.pause, |known| known.min(job.pause)));
            } else if server.has_loaded(job) || job.waited + now >= self.affinity_wait {
                return Next::Takes(index);
            } else {
                with_another_checkpoint.get_or_insert(index);
            }
        }
        match (with_another_checkpoint, later) {
            (Some(job), _) => Next::Takes(job),
            (None, Some(until)) => Next::Waits(until),
            (None, None) => Next::Rests,
        }
    }

    fn give(&mut self, server: usize, job: usize, now: f64) {
        self.taken[job] = true;
        while self.taken.get(self.first) == Some(&true) {
            self.first += 1;
        }
        let job = &self.queue[job];
        let server = &mut self.servers[server];
        let load = if server.has_loaded(job) { 0.0 } else { self.timings.load_seconds(&server.id) };
        if job.model.is_some() {
            server.model.clone_from(&job.model);
        }
        let seconds = self.timings.seconds(&server.id, server.model.as_deref(), job.work);
        server.free_in = match (seconds, server.free_in) {
            (Some(seconds), Some(free)) => Some(free.max(now) + load + seconds),
            _ => None,
        };
    }
}

/// The jobs that are passed over: no backend that could take them has their checkpoint loaded, and one that could takes
/// a later job of the same priority first. Holds whether or not any time is known.
fn passed_over(queue: &[Waiting], servers: &[Server], affinity_wait: f64) -> HashSet<String> {
    let waits = |job: &Waiting| job.held_by.is_none() && job.pause <= 0.0;
    let mut last_favoured: HashMap<(usize, i64), usize> = HashMap::new();
    for (index, job) in queue.iter().enumerate().filter(|(_, job)| waits(job)) {
        for (number, server) in servers.iter().enumerate() {
            if server.is_for(job) && server.has_loaded(job) {
                last_favoured.insert((number, job.priority), index);
            }
        }
    }
    let is_passed_over = |index: usize, job: &Waiting| {
        let mut capable = servers.iter().enumerate().filter(|(_, server)| server.is_for(job)).peekable();
        capable.peek().is_some()
            && capable.clone().all(|(_, server)| !server.has_loaded(job))
            && capable.any(|(number, _)| {
                last_favoured.get(&(number, job.priority)).is_some_and(|favoured| *favoured > index)
            })
    };
    let waiting = queue.iter().enumerate().filter(|(_, job)| waits(job) && job.waited < affinity_wait);
    waiting.filter(|(index, job)| is_passed_over(*index, job)).map(|(_, job)| job.id.clone()).collect()
}

#[cfg(test)]
mod tests;
