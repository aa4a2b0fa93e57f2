//! One measurement: one server, one scenario, one round.

use std::time::{Duration, Instant};

use crate::backdrop::Backdrop;
use crate::fleet::Fleet;
use crate::message::{Lane, Template};
use crate::pace::{self, Pace};
use crate::peer::{Peer, Setup, Started};
use crate::publisher::{Plan, Publisher};
use crate::scenario::{Load, Scenario, Watch};

/// Connections that are being opened at once, where that is not what is measured.
const OPENING: usize = 128;
/// Longest wait for all clients.
const PATIENCE: Duration = Duration::from_mins(2);
/// From the start of the load to the start of the measurement.
const WARM_UP: Duration = Duration::from_millis(700);
/// From the last client to the reading of memory: what follows a subscribe by a second is done by then.
const SETTLE: Duration = Duration::from_millis(2_500);
/// Messages of each job that may be on their way.
const WINDOW: u64 = 64;

/// What was measured; what a scenario does not measure is absent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Deliveries a second.
    pub rate: Option<f64>,
    /// Deliveries that should have been, as far as it was fixed; a second.
    pub wanted: Option<f64>,
    /// The server's processor seconds per million deliveries.
    pub cpu: Option<f64>,
    /// The broker's, where the server is fed by it.
    pub broker_cpu: Option<f64>,
    /// Latency in microseconds: median.
    pub p50: Option<f64>,
    /// 99 of 100.
    pub p99: Option<f64>,
    /// 999 of 1,000.
    pub p999: Option<f64>,
    /// Share of what was published that a newer message replaced; in percent.
    pub conflated: Option<f64>,
    /// Resident memory per connection, in KiB, beyond what the server has without any.
    pub resident: Option<f64>,
    /// Time until all clients had what they asked for, in seconds.
    pub opened: Option<f64>,
}

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

/// Measures once.
pub fn measure(
    peer: Peer,
    scenario: Scenario,
    clients: usize,
    terms: &Terms,
    setup: &Setup,
    backdrop: &Backdrop,
) -> anyhow::Result<Outcome> {
    let watch = scenario.watch();
    let jobs = &backdrop.jobs[..scenario.jobs(clients)];
    let active = if watch == Watch::All { jobs.len() } else { 0 };
    backdrop.set_active(active);
    let hellos = (0..clients)
        .map(|client| peer.hello(watch, jobs[client % jobs.len()], u32::try_from(active).unwrap_or(u32::MAX)))
        .collect();
    let lane = match scenario.load() {
        Load::Idle => Lane::Progress,
        Load::Full(lane) | Load::Fixed(lane, _) => lane,
    };
    let template = Template::new(lane)?;
    let started = peer.start(setup)?;
    let empty = started.server.resident_kib()?;
    let mut fleet = Fleet::new(started.address, template.clone(), hellos)?;
    let opening = Instant::now();
    fleet.open(OPENING, PATIENCE)?;
    let opened = Some(opening.elapsed().as_secs_f64());
    let receivers = if watch == Watch::Own { 1 } else { clients };
    let pace = match scenario.load() {
        Load::Idle => {
            fleet.run(SETTLE)?;
            let grown = started.server.resident_kib()?.saturating_sub(empty);
            return Ok(Outcome {
                resident: Some(grown as f64 / clients as f64),
                opened,
                ..Outcome::default()
            });
        }
        Load::Full(_) => Pace::Full,
        Load::Fixed(_, rate) => Pace::Fixed { rate: rate / receivers as f64, tick: terms.tick },
    };
    let window = pace::window(WINDOW, jobs.len() as u64, receivers as u64);
    let burst = if pace == Pace::Full { terms.burst } else { 1 };
    let plan = Plan { jobs: jobs.to_vec(), template, pace, burst, window, feed: started.feed.clone() };
    let outcome = load(fleet, plan, &started, terms.time, receivers, backdrop)?;
    let wanted = if let Load::Fixed(_, rate) = scenario.load() { Some(rate) } else { None };
    Ok(Outcome { wanted, opened, ..outcome })
}

fn load(
    mut fleet: Fleet,
    plan: Plan,
    started: &Started,
    time: Duration,
    receivers: usize,
    backdrop: &Backdrop,
) -> anyhow::Result<Outcome> {
    let publisher = Publisher::start(plan, fleet.progress())?;
    fleet.run(WARM_UP)?;
    fleet.clear();
    let (begun, published) = (Instant::now(), publisher.published());
    let (cpu, broker) = (started.server.cpu_seconds()?, backdrop.broker.cpu_seconds()?);
    fleet.run(time)?;
    let elapsed = begun.elapsed().as_secs_f64();
    let (cpu, broker) = (started.server.cpu_seconds()? - cpu, backdrop.broker.cpu_seconds()? - broker);
    let published = (publisher.published() - published) * receivers as u64;
    publisher.stop()?;
    let tally = &fleet.tally;
    anyhow::ensure!(tally.ended == 0, "{} clients were cut off: {}", tally.ended, tally.reason);
    let delivered = tally.delivered as f64;
    anyhow::ensure!(delivered > 0.0, "nothing was delivered");
    let quantile = |share| tally.latency.quantile(share).map(|micros| micros as f64);
    Ok(Outcome {
        rate: Some(delivered / elapsed),
        cpu: Some(cpu / delivered * 1e6),
        broker_cpu: Some(broker / delivered * 1e6),
        p50: quantile(0.5),
        p99: quantile(0.99),
        p999: quantile(0.999),
        conflated: Some((1.0 - delivered / published as f64).max(0.0) * 100.0),
        ..Outcome::default()
    })
}

/// The median of each figure over the rounds that have it.
pub fn median(rounds: &[Outcome]) -> Outcome {
    let of = |figure: fn(&Outcome) -> Option<f64>| {
        let mut values: Vec<f64> = rounds.iter().filter_map(figure).collect();
        values.sort_by(f64::total_cmp);
        // Of an even number the lower of the two in the middle.
        values.get(values.len().saturating_sub(1) / 2).copied()
    };
    Outcome {
        rate: of(|it| it.rate),
        wanted: of(|it| it.wanted),
        cpu: of(|it| it.cpu),
        broker_cpu: of(|it| it.broker_cpu),
        p50: of(|it| it.p50),
        p99: of(|it| it.p99),
        p999: of(|it| it.p999),
        conflated: of(|it| it.conflated),
        resident: of(|it| it.resident),
        opened: of(|it| it.opened),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_taken_figure_by_figure() {
        let round = |rate, cpu| Outcome { rate: Some(rate), cpu, ..Outcome::default() };
        let rounds = [round(3.0, Some(1.0)), round(1.0, None), round(2.0, Some(5.0))];
        let median = median(&rounds);
        assert_eq!((median.rate, median.cpu, median.p50), (Some(2.0), Some(1.0), None));
    }
}
