//! What is measured, and on which servers.

use clap::ValueEnum;

use crate::message::Lane;
use crate::peer::Peer;

/// Deliveries a second where the rate is fixed.
const FIXED_RATE: f64 = 20_000.0;
/// Clients that stop reading, beside those that go on.
pub const SLOW: usize = 5;
/// How the number of clients grows.
const SIZES: [usize; 3] = [100, 1_000, 10_000];

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
    /// Some of those who watch a job stop reading: what the others notice, and what the server makes of it.
    Slow,
    /// Every client loses its connection and comes back at once.
    Storm,
    /// Ever more clients, each on a job of its own; progress, 20,000 deliveries a second.
    #[value(name = "grow-20k")]
    GrowFixed,
    /// Ever more clients, each on a job of its own; lifecycle events as fast as they are read.
    GrowFull,
    /// Dashboards on all jobs, of which 20,000 progress messages a second are published: one by one, or in batches.
    Batch,
}

/// How a scenario is measured and told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Deliveries: their number, cost and latency.
    Delivery,
    /// Memory.
    Idle,
    /// What slow readers do to the others.
    Slow,
    /// How long a storm lasts.
    Storm,
    /// Deliveries and memory at several sizes.
    Growth,
    /// Messages one by one, and in batches.
    Batch,
}

/// One row: what is measured in turn with the others of its scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// The server.
    pub peer: Peer,
    /// Its clients.
    pub clients: usize,
    /// Whether they take progress in batches.
    pub batched: bool,
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
    /// So many messages a second, however many deliveries that makes; what is too much may be left out.
    Published(Lane, f64),
}

impl Scenario {
    /// How it is measured.
    pub fn shape(self) -> Shape {
        match self {
            Self::IdleOne | Self::IdleOwn => Shape::Idle,
            Self::Slow => Shape::Slow,
            Self::Storm => Shape::Storm,
            Self::GrowFixed | Self::GrowFull => Shape::Growth,
            Self::Batch => Shape::Batch,
            _ => Shape::Delivery,
        }
    }

    /// Who watches what.
    pub fn watch(self) -> Watch {
        match self {
            Self::OneFull | Self::OneFixed | Self::OneFlood | Self::IdleOne | Self::Slow => Watch::One,
            Self::OwnFull
            | Self::OwnFixed
            | Self::OwnFlood
            | Self::IdleOwn
            | Self::Storm
            | Self::GrowFixed
            | Self::GrowFull => Watch::Own,
            Self::AllFull | Self::AllFixed | Self::AllFlood | Self::Batch => Watch::All,
        }
    }

    /// What is published.
    pub fn load(self) -> Load {
        match self {
            Self::OneFull | Self::OwnFull | Self::AllFull | Self::GrowFull => Load::Full(Lane::Events),
            Self::OneFixed | Self::OwnFixed | Self::AllFixed | Self::GrowFixed => {
                Load::Fixed(Lane::Progress, FIXED_RATE)
            }
            Self::OneFlood | Self::OwnFlood | Self::AllFlood => Load::Full(Lane::Progress),
            Self::IdleOne | Self::IdleOwn | Self::Storm => Load::Idle,
            // Events, which nobody may leave out, must wait for a slow reader or end it.
            Self::Slow => Load::Fixed(Lane::Events, FIXED_RATE),
            Self::Batch => Load::Published(Lane::Progress, FIXED_RATE),
        }
    }

    /// Jobs, given so many clients.
    pub fn jobs(self, clients: usize) -> usize {
        match (self.watch(), self) {
            (Watch::One, _) => 1,
            (Watch::Own, _) => clients,
            // With more jobs every dashboard takes more, one by one or not.
            (Watch::All, Self::Batch) => 100,
            // As many as a snapshot of all jobs holds.
            (Watch::All, _) => 1_000,
        }
    }

    /// Rounds of it, if others take so many: what takes long, and hardly varies or is told by its size, has one.
    pub fn rounds(self, others: u32) -> u32 {
        match self.shape() {
            Shape::Delivery | Shape::Batch => others,
            Shape::Idle | Shape::Slow | Shape::Storm | Shape::Growth => 1,
        }
    }

    /// What is measured, of these servers, with so many clients if somebody says.
    pub fn cases(self, peers: &[Peer], clients: Option<usize>) -> Vec<Case> {
        let mut cases = Vec::new();
        for peer in peers.iter().copied().filter(|peer| self.suits(*peer)) {
            let case = Case { peer, clients: clients.unwrap_or(self.clients()), batched: false };
            match (self.shape(), clients) {
                (Shape::Growth, None) => cases.extend(SIZES.map(|clients| Case { clients, ..case })),
                (Shape::Batch, _) => cases.extend([case, Case { batched: true, ..case }]),
                _ => cases.push(case),
            }
        }
        cases
    }

    fn clients(self) -> usize {
        match self.shape() {
            Shape::Idle | Shape::Storm => 10_000,
            // So few that each gets much, and a slow one is behind soon.
            Shape::Slow => 10,
            Shape::Delivery | Shape::Growth | Shape::Batch => 1_000,
        }
    }

    /// Whether a server has something to show here that it does not show elsewhere.
    fn suits(self, peer: Peer) -> bool {
        let is_flood = matches!(self.load(), Load::Full(Lane::Progress));
        match self.shape() {
            // Nobody else leaves anything out.
            Shape::Delivery if is_flood => peer.is_ours(),
            // At a fixed rate there is next to nothing to join.
            Shape::Delivery if peer == Peer::FloorJoined => matches!(self.load(), Load::Full(_)),
            // Whoever watches one job, or all, has one subscription either way.
            Shape::Delivery if peer == Peer::AxumEverything => self.watch() == Watch::Own,
            Shape::Delivery => true,
            Shape::Idle | Shape::Slow | Shape::Storm => !peer.is_floor() && peer != Peer::AxumEverything,
            Shape::Growth => peer.is_ours() || peer == Peer::Axum,
            Shape::Batch => peer.is_ours(),
        }
    }

    /// The heading in the report; `clients` as in its cases, where those agree.
    pub fn title(self, clients: usize) -> String {
        let load = match self.load() {
            Load::Idle => "idle".to_owned(),
            Load::Full(Lane::Events) => "events at full speed".to_owned(),
            Load::Full(Lane::Progress) => "progress at full speed".to_owned(),
            Load::Fixed(Lane::Progress, rate) => format!("progress, {rate:.0} deliveries a second"),
            Load::Fixed(Lane::Events, rate) => format!("events, {rate:.0} deliveries a second"),
            Load::Published(_, rate) => format!("{rate:.0} progress messages a second"),
        };
        let watch = match self.watch() {
            Watch::One => "on one job".to_owned(),
            Watch::Own => "each on a job of its own".to_owned(),
            Watch::All => format!("on all of {} jobs", self.jobs(clients)),
        };
        match self.shape() {
            Shape::Delivery | Shape::Idle => format!("{clients} clients {watch}, {load}"),
            Shape::Growth => format!("More clients, {watch}, {load}"),
            Shape::Slow => format!("{clients} clients {watch}, {load}, and {SLOW} that stop reading"),
            Shape::Storm => format!("{clients} clients, {watch}, come back at once"),
            Shape::Batch => format!("{clients} dashboards {watch}, {load}"),
        }
    }

    /// The name of a row.
    pub fn label(self, case: &Case) -> String {
        let title = case.peer.title();
        match self.shape() {
            Shape::Growth => format!("{title}, {} clients", case.clients),
            Shape::Batch if case.batched => format!("{title}, `\"batch\": true`"),
            Shape::Batch => format!("{title}, one by one"),
            _ => title.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_measures_the_gateway() {
        for scenario in Scenario::value_variants() {
            let cases = scenario.cases(Peer::value_variants(), None);
            assert!(cases.iter().any(|case| case.peer == Peer::Gateway), "{scenario:?}");
        }
    }

    #[test]
    fn growth_has_a_row_for_each_size_unless_one_is_named() {
        let sizes = |clients| -> Vec<usize> {
            Scenario::GrowFull.cases(&[Peer::Gateway], clients).iter().map(|case| case.clients).collect()
        };
        assert_eq!(sizes(None), [100, 1_000, 10_000]);
        assert_eq!(sizes(Some(7)), [7]);
    }
}
