//! One measurement: one server, one scenario, one round.

mod slow;
mod storm;

use std::time::{Duration, Instant};

use stepcast_shared::ids::JobId;

use crate::backdrop::Backdrop;
use crate::fleet::Fleet;
use crate::message::{Lane, Template};
use crate::outcome::Outcome;
use crate::pace::{self, Pace};
use crate::peer::{Setup, Started};
use crate::publisher::{Plan, Publisher};
use crate::scenario::{Case, Load, SLOW, Scenario, Shape, Watch};

/// Connections that are being opened at once, where that is not what is measured.
const OPENING: usize = 128;
/// Longest wait for all clients.
const PATIENCE: Duration = Duration::from_mins(2);
/// From the start of the load to the start of the measurement.
const WARM_UP: Duration = Duration::from_millis(700);
/// From the last client to the reading of memory, or of latency: what follows a subscribe by a second is done by then.
const SETTLE: Duration = Duration::from_millis(2_500);
/// Messages of each job that may be on their way.
const WINDOW: u64 = 64;

/// How a load is put on.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How long it is measured.
    pub time: Duration,
    /// What is due within one of these is published together.
    pub tick: Duration,
    /// Messages of one job that follow each other directly, at full speed.
    pub burst: u64,
}

/// A server and its clients, all of which have what they asked for first.
struct Stage<'a> {
    scenario: Scenario,
    case: Case,
    jobs: &'a [JobId],
    started: Started,
    /// Resident memory of the server before the first client, in KiB.
    empty: u64,
    fleet: Fleet,
    /// How long the clients took, in seconds.
    opened: f64,
    backdrop: &'a Backdrop,
}

/// Measures once.
pub fn measure(
    case: Case,
    scenario: Scenario,
    terms: &Terms,
    setup: &Setup,
    backdrop: &Backdrop,
) -> anyhow::Result<Outcome> {
    let mut stage = Stage::set(case, scenario, setup, backdrop)?;
    match scenario.shape() {
        Shape::Idle => Ok(Outcome { resident: Some(stage.resident()?), ..stage.outcome() }),
        Shape::Growth if scenario == Scenario::GrowFixed => {
            let resident = Some(stage.resident()?);
            Ok(Outcome { resident, ..stage.delivery(terms)? })
        }
        Shape::Delivery | Shape::Batch | Shape::Growth => stage.delivery(terms),
        Shape::Slow => stage.slow(terms),
        Shape::Storm => stage.storm(),
    }
}

impl<'a> Stage<'a> {
    fn set(case: Case, scenario: Scenario, setup: &Setup, backdrop: &'a Backdrop) -> anyhow::Result<Self> {
        let watch = scenario.watch();
        let slow = if scenario.shape() == Shape::Slow { SLOW } else { 0 };
        let jobs = &backdrop.jobs[..scenario.jobs(case.clients)];
        let active = if watch == Watch::All { jobs.len() } else { 0 };
        backdrop.set_active(active);
        let active = u32::try_from(active).unwrap_or(u32::MAX);
        let hellos = (0..case.clients + slow)
            .map(|client| case.peer.hello(watch, jobs[client % jobs.len()], active, case.batched))
            .collect();
        let lane = match scenario.load() {
            Load::Idle => Lane::Progress,
            Load::Full(lane) | Load::Fixed(lane, _) | Load::Published(lane, _) => lane,
        };
        let started = case.peer.start(setup, watch)?;
        let empty = started.server.resident_kib()?;
        let mut fleet = Fleet::new(started.address, Template::new(lane)?, hellos)?;
        fleet.narrow(slow);
        let opening = Instant::now();
        fleet.open(OPENING, PATIENCE)?;
        let opened = opening.elapsed().as_secs_f64();
        Ok(Self { scenario, case, jobs, started, empty, fleet, opened, backdrop })
    }

    fn outcome(&self) -> Outcome {
        Outcome { opened: Some(self.opened), ..Outcome::default() }
    }

    /// Resident memory per connection, once it has settled.
    fn resident(&mut self) -> anyhow::Result<f64> {
        self.fleet.run(SETTLE)?;
        let grown = self.started.server.resident_kib()?.saturating_sub(self.empty);
        Ok(grown as f64 / self.case.clients as f64)
    }

    /// Clients that get each message.
    fn receivers(&self) -> usize {
        if self.scenario.watch() == Watch::Own { 1 } else { self.case.clients }
    }

    fn plan(&self, terms: &Terms) -> anyhow::Result<Plan> {
        let receivers = self.receivers();
        let (lane, pace) = match self.scenario.load() {
            Load::Idle => anyhow::bail!("nothing is published where clients are idle"),
            Load::Full(lane) => (lane, Pace::Full),
            Load::Fixed(lane, rate) => {
                (lane, Pace::Fixed { rate: rate / receivers as f64, tick: terms.tick })
            }
            Load::Published(lane, rate) => (lane, Pace::Fixed { rate, tick: terms.tick }),
        };
        Ok(Plan {
            jobs: self.jobs.to_vec(),
            template: Template::new(lane)?,
            pace,
            burst: if pace == Pace::Full { terms.burst } else { 1 },
            window: match self.scenario.shape() {
                // These are about servers that do not keep up with somebody.
                Shape::Slow | Shape::Batch => u64::MAX,
                _ => pace::window(WINDOW, self.jobs.len() as u64, receivers as u64),
            },
            feed: self.started.feed.clone(),
        })
    }

    /// Puts on the load, and counts what arrives.
    fn delivery(&mut self, terms: &Terms) -> anyhow::Result<Outcome> {
        let publisher = Publisher::start(self.plan(terms)?, self.fleet.progress())?;
        // Latency at a fixed rate is that of a server whose clients have been there for a while.
        let fixed = matches!(self.scenario.load(), Load::Fixed(..));
        self.fleet.run(if fixed { SETTLE } else { WARM_UP })?;
        let outcome = self.count(terms.time, &publisher)?;
        publisher.stop()?;
        let wanted = match self.scenario.load() {
            Load::Fixed(_, rate) => Some(rate),
            _ => None,
        };
        Ok(Outcome { wanted, ..outcome })
    }

    /// Counts what arrives in some time, and what it costs.
    fn count(&mut self, time: Duration, publisher: &Publisher) -> anyhow::Result<Outcome> {
        self.fleet.clear();
        let (begun, published) = (Instant::now(), publisher.published());
        let (cpu, broker) = self.cpu_seconds()?;
        self.fleet.run(time)?;
        let elapsed = begun.elapsed().as_secs_f64();
        let (cpu_after, broker_after) = self.cpu_seconds()?;
        let (cpu, broker) = (cpu_after - cpu, broker_after - broker);
        let published = (publisher.published() - published) * self.receivers() as u64;
        let tally = &self.fleet.tally;
        anyhow::ensure!(tally.ended == 0, "{} clients were cut off: {}", tally.ended, tally.reason);
        let delivered = tally.delivered as f64;
        anyhow::ensure!(delivered > 0.0, "nothing was delivered");
        let quantile = |share| tally.latency.quantile(share).map(|micros| micros as f64);
        Ok(Outcome {
            rate: Some(delivered / elapsed),
            cpu: Some(cpu / delivered * 1e6),
            broker_cpu: self.case.peer.has_broker().then_some(broker / delivered * 1e6),
            cores: Some(cpu / elapsed),
            bytes: Some(tally.bytes as f64 / elapsed),
            p50: quantile(0.5),
            p99: quantile(0.99),
            p999: quantile(0.999),
            conflated: Some((1.0 - delivered / published as f64).max(0.0) * 100.0),
            ..self.outcome()
        })
    }

    /// The server's and the broker's.
    fn cpu_seconds(&self) -> anyhow::Result<(f64, f64)> {
        Ok((self.started.server.cpu_seconds()?, self.backdrop.broker.cpu_seconds()?))
    }
}
