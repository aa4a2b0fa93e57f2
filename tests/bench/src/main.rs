//! Measures the gateway beside peers that do the same work, and beside what the sockets themselves cost.
//!
//! Server, broker, publisher and clients share one machine, so figures of different runs, let alone machines, do not
//! compare; those of one run do: its rounds take every server in turn.

mod backdrop;
mod cell;
mod client;
mod fleet;
mod histogram;
mod machine;
mod message;
mod nats_lines;
mod outcome;
mod pace;
mod peer;
mod publisher;
mod report;
mod scenario;
mod serve;
mod server;
mod websocket;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Parser, ValueEnum as _};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::backdrop::Backdrop;
use crate::cell::Terms;
use crate::outcome::Outcome;
use crate::peer::{Peer, Setup};
use crate::report::Group;
use crate::scenario::{Case, Scenario};
use crate::serve::Serve;

/// Measures the gateway beside its peers; prints tables of medians.
#[derive(Debug, Parser)]
#[command(name = "stepcast-gateway-bench", version)]
struct Config {
    /// What to measure, separated by commas; everything if absent.
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<Scenario>,
    /// Which servers, separated by commas; all if absent. Those that a scenario has no use for are left out there.
    #[arg(long, value_delimiter = ',')]
    peer: Vec<Peer>,
    /// Rounds, each of which takes every server in turn; the median is told. What takes long has one.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each measurement takes, in seconds, after a warm-up.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// At a fixed rate, what is due within so many microseconds is published together.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    tick: u64,
    /// At full speed, so many messages of one job follow each other directly.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    burst: u64,
    /// Clients, instead of the scenario's own number.
    #[arg(long, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=100_000))]
    clients: Option<usize>,
    /// The gateway's binary; beside this one if absent.
    #[arg(long)]
    gateway: Option<PathBuf>,
    /// Another build of the gateway, measured in the same rounds as `baseline`.
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// A further argument for the gateway, such as --gateway-arg=--gateway-linger=5s; may be given again.
    #[arg(long, allow_hyphen_values = true)]
    gateway_arg: Vec<String>,
    /// The broker's binary.
    #[arg(long, default_value_os_t = backdrop::broker_binary())]
    nats_server: PathBuf,
    /// A document whose figures are replaced by these; left as it is by a run that measures less than everything.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Show what the servers write to standard error, and every round.
    #[arg(long)]
    verbose: bool,
    #[command(subcommand)]
    serve: Option<Command>,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Run one of the servers to compare with.
    #[command(subcommand, hide = true)]
    Serve(Serve),
}

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    raise_file_limit()?;
    match config.serve.clone() {
        Some(Command::Serve(serve)) => serve.run(),
        None => measure(&config),
    }
}

fn measure(config: &Config) -> anyhow::Result<()> {
    let scenarios = if config.scenario.is_empty() {
        Scenario::value_variants().to_vec()
    } else {
        config.scenario.clone()
    };
    let mut peers =
        if config.peer.is_empty() { Peer::value_variants().to_vec() } else { config.peer.clone() };
    if config.baseline.is_none() {
        peers.retain(|peer| *peer != Peer::Baseline);
    }
    let plan: Vec<(Scenario, Vec<Case>)> =
        scenarios.into_iter().map(|scenario| (scenario, scenario.cases(&peers, config.clients))).collect();
    let cases = plan.iter().flat_map(|(scenario, cases)| cases.iter().map(move |case| (scenario, case)));
    let jobs = cases.map(|(scenario, case)| scenario.jobs(case.clients)).max();
    let jobs = jobs.context("none of these servers shows anything in these scenarios")?;
    let backdrop = Backdrop::start(&config.nats_server, jobs, config.verbose)?;
    let beside = std::env::current_exe()?.with_file_name("stepcast-gateway");
    let setup = Setup {
        gateway: config.gateway.clone().unwrap_or(beside),
        baseline: config.baseline.clone(),
        gateway_args: config.gateway_arg.clone(),
        nats_server: config.nats_server.clone(),
        nats_url: backdrop.url(),
        nats_port: backdrop.port,
        verbose: config.verbose,
    };
    let machine = machine::describe(&config.nats_server, &setup.gateway);
    println!("{machine}\n");
    let mut document = format!("{machine}\n\n");
    let begun = Instant::now();
    for (scenario, cases) in plan.into_iter().filter(|(_, cases)| !cases.is_empty()) {
        let table = report::table(&rounds(config, scenario, cases, &setup, &backdrop));
        println!("{table}");
        document += &table;
        document.push('\n');
    }
    eprintln!("measured in {} s", begun.elapsed().as_secs());
    match &config.write {
        Some(path) if config.is_whole() => report::write(path, &document),
        Some(path) => {
            eprintln!("{} is left as it is: this run was narrowed", path.display());
            Ok(())
        }
        None => Ok(()),
    }
}

impl Config {
    /// Whether its figures may stand for all.
    fn is_whole(&self) -> bool {
        self.scenario.is_empty() && self.peer.is_empty() && self.clients.is_none() && self.baseline.is_none()
    }
}

/// All rounds of one scenario. A case that fails is left out of the rest, with its reason in its row.
fn rounds(
    config: &Config,
    scenario: Scenario,
    cases: Vec<Case>,
    setup: &Setup,
    backdrop: &Backdrop,
) -> Group {
    let terms = Terms {
        time: Duration::from_secs(config.seconds),
        tick: Duration::from_micros(config.tick),
        burst: config.burst,
    };
    let mut measured: Vec<(Case, Result<Vec<Outcome>, String>)> =
        cases.into_iter().map(|case| (case, Ok(Vec::new()))).collect();
    for round in 1..=scenario.rounds(config.rounds) {
        for (case, outcomes) in &mut measured {
            let Ok(so_far) = outcomes else { continue };
            match cell::measure(*case, scenario, &terms, setup, backdrop) {
                Ok(outcome) => {
                    if config.verbose {
                        eprintln!("round {round}: {}: {outcome:?}", scenario.label(case));
                    }
                    so_far.push(outcome);
                }
                Err(error) => *outcomes = Err(format!("{error:#}")),
            }
        }
    }
    let rows = measured.into_iter().map(|(case, all)| (case, all.map(|all| outcome::median(&all)))).collect();
    Group { scenario, rows }
}

/// Every connection needs a file here and one in the server, which inherits the limit.
fn raise_file_limit() -> anyhow::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("the limit of open files cannot be raised")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Config::command().debug_assert();
    }

    #[test]
    fn a_narrowed_run_does_not_stand_for_all() {
        let is_whole = |arguments: &str| Config::parse_from(arguments.split(' ')).is_whole();
        assert!(is_whole("bench --rounds 5 --seconds 1"));
        assert!(!is_whole("bench --scenario own-20k"));
        assert!(!is_whole("bench --peer axum"));
    }
}
