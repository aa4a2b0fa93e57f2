//! What goes wrong, and when: drawn from a seed, so that the same number brings the same troubles again.

use std::ops::Range;
use std::time::Duration;

use futures_util::future::join_all;
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use stepcast_sdnext_sim::{Fault as Armed, Handle};
use tokio::time::{Instant, sleep, sleep_until};

use crate::fleet::{BACKENDS, Fleet, Link, Part, Shape};
use crate::proxy::Mode;

/// How often a hanging render is let go on.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the end of a stalled link may take to be noticed by the proxy itself.
const BREAK: Duration = Duration::from_millis(100);

/// One trouble.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// `kill -9`; what was killed is started again afterwards.
    Kill(Part),
    /// SIGSTOP, and SIGCONT afterwards.
    Freeze(Part),
    /// A link is disturbed.
    Link(Link, Outage),
    /// A simulated server misbehaves.
    Backend(usize, Trouble),
}

/// How a link fails.
#[derive(Clone, Copy, Debug)]
pub enum Outage {
    /// Connections break, and cannot be made.
    Cut,
    /// Nothing arrives, then everything does.
    Stall,
    /// Nothing arrives, then connections break: what was sent meanwhile is lost.
    Lose,
}

/// How a simulated server misbehaves.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// Its process is killed; another takes its place.
    Killed,
    /// Every answer is a success without images.
    Wedged,
    /// So many renders find no memory.
    OutOfMemory(u32),
    /// Its limiter lets next to nothing through.
    RateLimited,
    /// A render stands still until it is let go on.
    Hanging,
    /// So many renders end in an exception.
    Broken(u32),
    /// So many renders get no answer, and go on.
    Unanswered(u32),
}

/// A trouble with its time, from the beginning of the run.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub begins: Duration,
    pub lasts: Duration,
    pub fault: Fault,
}

/// Each kind of trouble at least once, begun within 20 s.
///
/// What keeps the api from being connected comes in the first 14 s: no claim lapses before it has been connected for
/// a whole lease.
pub fn short(shape: Shape, rng: &mut StdRng) -> Vec<Event> {
    let mut draw = Draw { shape, rng, events: Vec::new() };
    let poller = draw.rng.random_range(0..shape.pollers);
    draw.add(1.0..4.0, 0.2..3.0, Fault::Kill(Part::Poller(poller)));
    draw.add(8.0..16.0, 3.0..8.0, Fault::Freeze(Part::Poller((poller + 1) % shape.pollers)));
    draw.round(0.0, 12.0);
    draw.done()
}

/// Several rounds of everything within some 70 s, one poller being frozen for longer than any lease.
pub fn long(shape: Shape, rng: &mut StdRng) -> Vec<Event> {
    let mut draw = Draw { shape, rng, events: Vec::new() };
    let poller = draw.rng.random_range(0..shape.pollers);
    draw.add(2.0..10.0, 55.0..65.0, Fault::Freeze(Part::Poller(poller)));
    for begin in [15.0, 45.0] {
        draw.add(begin..begin + 10.0, 0.2..5.0, Fault::Kill(Part::Poller((poller + 1) % shape.pollers)));
    }
    let gateway = draw.rng.random_range(0..shape.gateways);
    let api = draw.one_of(shape.apis);
    for part in [Part::Api(api), Part::Gateway(gateway)] {
        draw.add(5.0..50.0, 3.0..12.0, Fault::Freeze(part));
    }
    for begin in [0.0, 20.0, 40.0] {
        draw.round(begin, 18.0);
    }
    draw.done()
}

struct Draw<'a> {
    shape: Shape,
    rng: &'a mut StdRng,
    events: Vec<Event>,
}

impl Draw<'_> {
    fn add(&mut self, begins: Range<f64>, lasts: Range<f64>, fault: Fault) {
        let begins = Duration::from_secs_f64(self.rng.random_range(begins));
        let lasts = Duration::from_secs_f64(self.rng.random_range(lasts));
        self.events.push(Event { begins, lasts, fault });
    }

    /// One of so many; where there is one only, nothing is drawn.
    fn one_of(&mut self, count: usize) -> usize {
        if count == 1 { 0 } else { self.rng.random_range(0..count) }
    }

    fn round(&mut self, from: f64, within: f64) {
        let begins = from + 1.0..from + within;
        let gateway = self.rng.random_range(0..self.shape.gateways);
        let (nats, api) = (self.one_of(self.shape.nats), self.one_of(self.shape.apis));
        for part in [Part::Nats(nats), Part::Api(api), Part::Gateway(gateway)] {
            self.add(begins.clone(), 0.1..2.5, Fault::Kill(part));
        }
        if self.shape.postgres {
            self.add(begins.clone(), 0.1..2.5, Fault::Kill(Part::Database));
        }
        let poller = self.rng.random_range(0..self.shape.pollers);
        let backends = (0..BACKENDS).map(|backend| Link::Backend { poller, backend });
        for link in self.shape.links().chain(backends) {
            let outages = [Outage::Cut, Outage::Stall, Outage::Lose];
            let outage = *outages.choose(self.rng).expect("there are three");
            self.add(begins.clone(), 0.3..4.0, Fault::Link(link, outage));
        }
        let mut troubles = [
            Trouble::Killed,
            Trouble::Wedged,
            Trouble::OutOfMemory(self.rng.random_range(1..4)),
            Trouble::RateLimited,
            Trouble::Hanging,
            Trouble::Broken(self.rng.random_range(1..4)),
            Trouble::Unanswered(self.rng.random_range(1..3)),
        ];
        troubles.shuffle(self.rng);
        for trouble in troubles {
            let backend = self.rng.random_range(0..BACKENDS);
            self.add(from + 1.0..from + within + 6.0, 1.0..4.0, Fault::Backend(backend, trouble));
        }
    }

    fn done(mut self) -> Vec<Event> {
        self.events.sort_by_key(|event| event.begins);
        self.events
    }
}

/// Brings the troubles about, each at its time, and returns once all are over.
pub async fn run(fleet: &Fleet, events: Vec<Event>) {
    let begun = Instant::now();
    let troubles = events.into_iter().map(|event| async move {
        sleep_until(begun + event.begins).await;
        bring(fleet, event).await;
    });
    join_all(troubles).await;
}

async fn bring(fleet: &Fleet, Event { lasts, fault, .. }: Event) {
    match fault {
        Fault::Kill(part) => fleet.kill(part, lasts).await,
        Fault::Freeze(part) => fleet.freeze(part, lasts).await,
        Fault::Link(link, Outage::Cut) => fleet.disturb(link, Mode::Cut, lasts).await,
        Fault::Link(link, Outage::Stall) => fleet.disturb(link, Mode::Stall, lasts).await,
        Fault::Link(link, Outage::Lose) => {
            fleet.disturb(link, Mode::Stall, lasts).await;
            fleet.disturb(link, Mode::Cut, BREAK).await;
        }
        Fault::Backend(backend, Trouble::Killed) => fleet.kill_backend(backend, lasts).await,
        Fault::Backend(backend, trouble) => {
            let lives = fleet.backend(backend).await;
            let sim = &lives.now.handle;
            begin(sim, trouble);
            sleep(lasts).await;
            sim.clear_faults();
            sim.configure(|config| config.rate_limit = 0);
            // A render may be on its way to where it hangs.
            while sim.truth().running.is_some_and(|running| running.fault == Some(Armed::Hang)) {
                sim.release();
                sleep(LOOK_EVERY).await;
            }
        }
    }
}

fn begin(sim: &Handle, trouble: Trouble) {
    match trouble {
        Trouble::Killed => sim.kill(),
        Trouble::Wedged => sim.arm(Armed::Wedged, 1),
        Trouble::OutOfMemory(renders) => sim.arm(Armed::OutOfMemoryAfterStep, renders),
        Trouble::RateLimited => sim.configure(|config| config.rate_limit = 10),
        Trouble::Hanging => sim.arm(Armed::Hang, 1),
        Trouble::Broken(renders) => sim.arm(Armed::Http500, renders),
        Trouble::Unanswered(renders) => sim.arm(Armed::DropConnection, renders),
    }
}
