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
mod tests {
    use super::super::timings::Sample;
    use super::*;

    const MINUTE: f64 = 60.0;

    fn server(id: &str, model: Option<&str>, free_in: Option<f64>) -> Server {
        let model = model.map(str::to_owned);
        Server { id: id.to_owned(), pools: vec!["default".to_owned()], model, free_in }
    }

    fn job(id: &str) -> Waiting {
        Waiting {
            id: id.to_owned(),
            priority: 1,
            pool: "default".to_owned(),
            model: None,
            wanted: None,
            work: Some(1.0),
            waited: 0.0,
            pause: 0.0,
            held_by: None,
        }
    }

    fn for_model(id: &str, model: &str) -> Waiting {
        Waiting { model: Some(model.to_owned()), ..job(id) }
    }

    /// Ten seconds for each job on any backend.
    fn ten_seconds() -> Timings {
        Timings::learn(&[Sample { backend: "gpu".to_owned(), model: None, work: Some(1.0), seconds: 10.0 }])
    }

    fn play(queue: &[Waiting], servers: Vec<Server>) -> Outlook {
        Outlook::play(queue, servers, &ten_seconds(), MINUTE, true)
    }

    fn starts<const N: usize>(outlook: &Outlook, ids: [&str; N]) -> [Option<f64>; N] {
        ids.map(|id| outlook.starts.get(id).copied())
    }

    #[test]
    fn one_backend_takes_one_after_another_once_it_is_free() {
        let outlook = play(&["a", "b", "c"].map(job), vec![server("gpu", None, Some(4.0))]);
        assert_eq!(starts(&outlook, ["a", "b", "c"]), [Some(4.0), Some(14.0), Some(24.0)]);
        assert_eq!(outlook.seconds("new", "default", None, 4), Some(34.0), "behind all of them");
        assert_eq!(outlook.seconds("new", "other", None, 4), None, "nobody serves its pool");
    }

    #[test]
    fn two_backends_share_them_and_one_that_is_asked_for_is_waited_for() {
        let servers = vec![server("one", None, Some(0.0)), server("two", None, Some(3.0))];
        let pinned = Waiting { wanted: Some("one".to_owned()), ..job("pinned") };
        let outlook = play(&[job("a"), job("b"), pinned, job("c")], servers);
        assert_eq!(
            starts(&outlook, ["a", "b", "pinned", "c"]),
            [Some(0.0), Some(3.0), Some(10.0), Some(13.0)]
        );
    }

    #[test]
    fn what_is_loaded_goes_first_until_the_other_has_waited_long_enough() {
        let queue = [for_model("b", "B"), for_model("a1", "A"), for_model("a2", "A"), job("any")];
        let outlook = play(&queue, vec![server("gpu", Some("A"), Some(0.0))]);
        assert_eq!(
            starts(&outlook, ["a1", "a2", "any", "b"]),
            [Some(0.0), Some(10.0), Some(20.0), Some(30.0)]
        );
        assert!(outlook.is_passed_over("b") && !outlook.is_passed_over("a1"));

        let mut queue = queue;
        queue[0].waited = MINUTE - 15.0;
        let outlook = play(&queue, vec![server("gpu", Some("A"), Some(0.0))]);
        assert_eq!(
            starts(&outlook, ["a1", "a2", "b", "any"]),
            [Some(0.0), Some(10.0), Some(20.0), Some(30.0)]
        );
        queue[0].waited = MINUTE;
        assert!(!play(&queue, vec![server("gpu", Some("A"), Some(0.0))]).is_passed_over("b"));
    }

    #[test]
    fn nobody_is_passed_over_where_its_checkpoint_is_loaded_or_nothing_later_profits() {
        let queue = [for_model("b", "B"), for_model("a", "A")];
        let servers = || vec![server("one", Some("A"), Some(0.0)), server("two", Some("B"), None)];
        assert!(!play(&queue, servers()).is_passed_over("b"), "`two` takes it as it is");
        let gpu = || vec![server("gpu", Some("A"), None)];
        assert!(play(&queue, gpu()).is_passed_over("b"), "no time needs to be known for that");
        assert!(!play(&queue[..1], gpu()).is_passed_over("b"));
        let first = Waiting { priority: 2, ..for_model("a", "A") };
        assert!(!play(&[first, for_model("b", "B")], gpu()).is_passed_over("b"), "that is its turn anyway");
        let elsewhere = Waiting { pool: "other".to_owned(), ..for_model("a", "A") };
        assert!(!play(&[for_model("b", "B"), elsewhere], gpu()).is_passed_over("b"));
    }

    #[test]
    fn a_pause_before_another_attempt_is_waited_for_and_others_go_first() {
        let queue = [Waiting { pause: 25.0, ..job("again") }, job("next")];
        let outlook = play(&queue, vec![server("gpu", None, Some(0.0))]);
        assert_eq!(starts(&outlook, ["next", "again"]), [Some(0.0), Some(25.0)]);
    }

    #[test]
    fn a_claimed_job_begins_now_where_it_is_held() {
        let queue = [job("next"), Waiting { held_by: Some("gpu".to_owned()), ..job("held") }];
        let outlook = play(&queue, vec![server("gpu", None, Some(0.0))]);
        assert_eq!(starts(&outlook, ["held", "next"]), [Some(0.0), Some(10.0)]);
    }

    #[test]
    fn priorities_come_first_whatever_is_loaded() {
        let high = Waiting { priority: 2, ..for_model("high", "B") };
        let outlook = play(&[high, for_model("a", "A")], vec![server("gpu", Some("A"), Some(0.0))]);
        assert_eq!(starts(&outlook, ["high", "a"]), [Some(0.0), Some(10.0)]);
    }

    #[test]
    fn what_cannot_be_told_is_not_told() {
        assert_eq!(play(&[job("a")], Vec::new()).seconds("a", "default", None, 1), None, "nobody is there");
        let unknown = play(&[job("a")], vec![server("gpu", None, None)]);
        assert_eq!(unknown.seconds("a", "default", None, 1), None, "nobody knows when it is free");
        let nothing = Timings::default();
        let queue = [job("a"), job("b")];
        let outlook = Outlook::play(&queue, vec![server("gpu", None, Some(3.0))], &nothing, MINUTE, true);
        assert_eq!(starts(&outlook, ["a", "b"]), [Some(3.0), None], "nobody knows how long `a` takes");
        assert_eq!(outlook.seconds("b", "default", None, 2), None);
    }

    #[test]
    fn what_is_too_far_back_waits_in_proportion() {
        let queue: Vec<Waiting> = (0..10).map(|n| job(&n.to_string())).collect();
        let servers = vec![server("gpu", None, Some(0.0))];
        let outlook = Outlook::play(&queue, servers, &ten_seconds(), MINUTE, false);
        assert_eq!(outlook.seconds("far", "default", None, 25), Some(250.0));
    }
}
