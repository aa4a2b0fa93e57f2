//! Every client loses its connection at once and comes back at once, none waiting for another. Whoever is refused tries
//! again.

use std::time::{Duration, Instant};

use super::{PATIENCE, SETTLE, Stage};
use crate::outcome::Outcome;

/// From the first clients to the storm, so that what follows a subscribe is done.
const CALM: Duration = SETTLE;

impl Stage<'_> {
    pub(super) fn storm(&mut self) -> anyhow::Result<Outcome> {
        self.fleet.run(CALM)?;
        let resident = self.started.server.resident_kib()?;
        let (cpu, broker) = self.cpu_seconds()?;
        let begun = Instant::now();
        self.fleet.persist();
        self.fleet.cut();
        self.fleet.open(self.case.clients, PATIENCE)?;
        let back = begun.elapsed().as_secs_f64();
        let (cpu_after, broker_after) = self.cpu_seconds()?;
        let grown = self.started.server.resident_kib()?.saturating_sub(resident);
        let quantile = |share| self.fleet.tally.opening.quantile(share).map(|micros| micros as f64);
        let has_broker = self.case.peer.has_broker();
        // Nobody else uses this broker: whatever is there is the server's.
        let consumers = if has_broker { Some(self.backdrop.consumers()? as f64) } else { None };
        Ok(Outcome {
            opened: Some(back),
            p50: quantile(0.5),
            p99: quantile(0.99),
            cores: Some(cpu_after - cpu),
            broker_cpu: has_broker.then_some(broker_after - broker),
            grown: Some(grown as f64),
            refused: Some(self.fleet.tally.refused as f64),
            consumers,
            ..Outcome::default()
        })
    }
}
