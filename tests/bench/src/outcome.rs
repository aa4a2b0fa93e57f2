//! What measurements give, and their medians.

/// What was measured; what a scenario does not measure is absent.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Deliveries a second.
    pub rate: Option<f64>,
    /// Deliveries that should have been, as far as it was fixed; a second.
    pub wanted: Option<f64>,
    /// The server's processor seconds per million deliveries.
    pub cpu: Option<f64>,
    /// The broker's, where the server is fed by it.
    pub broker_cpu: Option<f64>,
    /// The server's processor seconds a second; over all of it where there is no steady state.
    pub cores: Option<f64>,
    /// Bytes of delivered messages, a second.
    pub bytes: Option<f64>,
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
    /// Growth of the server's resident memory while something went on, in KiB.
    pub grown: Option<f64>,
    /// Time until all clients had what they asked for, in seconds.
    pub opened: Option<f64>,
    /// Deliveries a second before something went wrong.
    pub rate_before: Option<f64>,
    /// Latency before: 99 of 100, in microseconds.
    pub p99_before: Option<f64>,
    /// Times that clients were refused and tried again.
    pub refused: Option<f64>,
    /// Consumers that JetStream keeps for the server.
    pub consumers: Option<f64>,
    /// What became of some clients.
    pub fate: Option<String>,
}

/// The median of each figure over the rounds that have it, and the last of what is told in words.
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
        cores: of(|it| it.cores),
        bytes: of(|it| it.bytes),
        p50: of(|it| it.p50),
        p99: of(|it| it.p99),
        p999: of(|it| it.p999),
        conflated: of(|it| it.conflated),
        resident: of(|it| it.resident),
        grown: of(|it| it.grown),
        opened: of(|it| it.opened),
        rate_before: of(|it| it.rate_before),
        p99_before: of(|it| it.p99_before),
        refused: of(|it| it.refused),
        consumers: of(|it| it.consumers),
        fate: rounds.iter().rev().find_map(|it| it.fate.clone()),
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
