//! What is measured.

use clap::ValueEnum;

use crate::message::Lane;

/// Deliveries a second where the rate is fixed.
pub const FIXED_RATE: f64 = 20_000.0;

/// One row group of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Everybody watches one job; lifecycle events as fast as they are read.
    OneFull,
    /// Each client watches a job of its own; lifecycle events as fast as they are read.
    OwnFull,
    /// Everybody watches all jobs; lifecycle events as fast as they are read.
    AllFull,
    /// Everybody watches one job; progress, 20,000 deliveries a second.
    #[value(name = "one-20k")]
    OneFixed,
    /// Each client watches a job of its own; progress, 20,000 deliveries a second.
    #[value(name = "own-20k")]
    OwnFixed,
    /// Everybody watches all jobs; progress, 20,000 deliveries a second.
    #[value(name = "all-20k")]
    AllFixed,
    /// Everybody watches one job; progress as fast as the newest is read, so that a gateway may leave some out.
    OneFlood,
    /// Each client watches a job of its own; progress as fast as the newest is read.
    OwnFlood,
    /// Everybody watches all jobs; progress as fast as the newest is read.
    AllFlood,
    /// Clients that watch one job of which nothing is said: their memory.
    IdleOne,
    /// Clients that each watch a job of their own of which nothing is said: their memory.
    IdleOwn,
}

/// Who watches what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Everybody the same job.
    One,
    /// Each its own.
    Own,
    /// Everybody all jobs.
    All,
}

/// What is published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Nothing.
    Idle,
    /// As fast as it is read.
    Full(Lane),
    /// So many deliveries a second.
    Fixed(Lane, f64),
}

impl Scenario {
    /// Who watches what.
    pub fn watch(self) -> Watch {
        match self {
            Self::OneFull | Self::OneFixed | Self::OneFlood | Self::IdleOne => Watch::One,
            Self::OwnFull | Self::OwnFixed | Self::OwnFlood | Self::IdleOwn => Watch::Own,
            Self::AllFull | Self::AllFixed | Self::AllFlood => Watch::All,
        }
    }

    /// What is published.
    pub fn load(self) -> Load {
        match self {
            Self::OneFull | Self::OwnFull | Self::AllFull => Load::Full(Lane::Events),
            Self::OneFixed | Self::OwnFixed | Self::AllFixed => Load::Fixed(Lane::Progress, FIXED_RATE),
            Self::OneFlood | Self::OwnFlood | Self::AllFlood => Load::Full(Lane::Progress),
            Self::IdleOne | Self::IdleOwn => Load::Idle,
        }
    }

    /// Clients if nobody says.
    pub fn clients(self) -> usize {
        if self.load() == Load::Idle { 10_000 } else { 1_000 }
    }

    /// Jobs, given so many clients.
    pub fn jobs(self, clients: usize) -> usize {
        match self.watch() {
            Watch::One => 1,
            Watch::Own => clients,
            // As many as a snapshot of all jobs holds.
            Watch::All => 1_000,
        }
    }

    /// The heading in the report.
    pub fn title(self, clients: usize) -> String {
        let watch = match self.watch() {
            Watch::One => "on one job",
            Watch::Own => "each on a job of its own",
            Watch::All => "on all of 1,000 jobs",
        };
        let load = match self.load() {
            Load::Idle => "idle".to_owned(),
            Load::Full(Lane::Events) => "events at full speed".to_owned(),
            Load::Full(Lane::Progress) => "progress at full speed".to_owned(),
            Load::Fixed(_, rate) => format!("progress, {rate:.0} deliveries a second"),
        };
        format!("{clients} clients {watch}, {load}")
    }
}
