//! Some clients stop reading. Measured are the others, before and while, and the server's memory; then the slow ones
//! read on, to see what they are sent.

use std::time::{Duration, Instant};

use super::{Stage, Terms, WARM_UP};
use crate::fleet::Fate;
use crate::outcome::Outcome;
use crate::publisher::Publisher;
use crate::scenario::SLOW;

/// How long nobody reads for the slow ones: longer than any queue here lasts that has a bound.
const STOPPED: Duration = Duration::from_secs(10);
/// How often the server's memory is read meanwhile.
const SAMPLE: Duration = Duration::from_millis(250);
/// A client that has heard nothing for so long will not.
const SILENCE: Duration = Duration::from_secs(3);

impl Stage<'_> {
    pub(super) fn slow(&mut self, terms: &Terms) -> anyhow::Result<Outcome> {
        let publisher = Publisher::start(self.plan(terms)?, self.fleet.progress())?;
        self.fleet.run(WARM_UP)?;
        let before = self.count(terms.time, &publisher)?;
        let fast = self.case.clients;
        self.fleet.pause(fast..fast + SLOW)?;
        self.fleet.clear();
        let (begun, resident) = (Instant::now(), self.started.server.resident_kib()?);
        let mut most = resident;
        while begun.elapsed() < STOPPED {
            self.fleet.run(SAMPLE)?;
            most = most.max(self.started.server.resident_kib()?);
        }
        let elapsed = begun.elapsed().as_secs_f64();
        let tally = &self.fleet.tally;
        anyhow::ensure!(tally.ended == 0, "{} fast clients were cut off: {}", tally.ended, tally.reason);
        let (delivered, p99) = (tally.delivered as f64, tally.latency.quantile(0.99));
        let published = publisher.published();
        publisher.stop()?;
        let fate = self.fleet.resume(published, SILENCE)?;
        // To each client, since those that stopped no longer count.
        Ok(Outcome {
            rate_before: before.rate.map(|rate| rate / (fast + SLOW) as f64),
            p99_before: before.p99,
            rate: Some(delivered / elapsed / fast as f64),
            p99: p99.map(|micros| micros as f64),
            grown: Some((most - resident) as f64),
            fate: Some(describe(&fate)),
            ..self.outcome()
        })
    }
}

fn describe(fate: &Fate) -> String {
    let mut parts = Vec::new();
    if fate.closed > 0 {
        parts.push(format!("{} cut off ({})", fate.closed, fate.reason));
    }
    if fate.caught_up > 0 {
        parts.push(format!("{} served later", fate.caught_up));
    }
    if fate.behind > 0 {
        parts.push(format!("{} never served the newest", fate.behind));
    }
    if fate.missed > 0 {
        parts.push(format!("{} messages missing between others", fate.missed));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fate_is_told_in_words() {
        let fate =
            Fate { closed: 3, caught_up: 7, behind: 0, missed: 5, reason: "closed with 4408".to_owned() };
        let told = "3 cut off (closed with 4408), 7 served later, 5 messages missing between others";
        assert_eq!(describe(&fate), told);
    }
}
