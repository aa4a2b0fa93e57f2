//! Metrics: their buckets, and what is said of them.
//!
//! Durations are histograms in seconds, so that those of several processes can be added up. A counter without labels is
//! there from the start, at 0: a rule that looks for its increase sees the first one too.

use std::time::Duration;

use anyhow::Context as _;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

/// How often recorded durations are moved into their buckets. Until then each takes memory.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// What people wait for: from a tenth of a second to an hour.
const LONG: [f64; 15] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0];
/// Questions to another process: from a millisecond to ten seconds.
const SHORT: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Processor time of one round of a loop: from ten microseconds to a quarter of a second.
const BRIEF: [f64; 14] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1,
    0.25,
];
/// How many at once.
const COUNTS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// What has other buckets than [`LONG`].
const OTHERS: [(&str, &[f64]); 7] = [
    ("stepcast_poll_seconds", &SHORT),
    ("stepcast_projection_seconds", &SHORT),
    ("stepcast_rpc_seconds", &SHORT),
    ("stepcast_http_request_seconds", &SHORT),
    ("stepcast_gateway_fan_out_seconds", &BRIEF),
    ("stepcast_gateway_frames_per_write", &COUNTS),
    ("stepcast_database_turns_per_commit", &COUNTS),
];

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, and has no labels.
    Counter,
    /// Only grows, by labels; each is there once it has grown.
    Counters,
    /// Goes up and down.
    Gauge,
    /// How values lie.
    Histogram,
}

/// Installs the process's recorder. Errors if there is one already.
pub fn install() -> anyhow::Result<PrometheusHandle> {
    let mut builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &LONG)
        .context("the buckets make no sense")?;
    for (name, buckets) in OTHERS {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)
            .context("the buckets make no sense")?;
    }
    builder.install_recorder().context("metrics were set up before")
}

/// Keeps what is recorded small, whether or not anybody scrapes it, until the process stops.
pub async fn upkeep(handle: PrometheusHandle, stopping: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(UPKEEP_EVERY);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            _ = ticks.tick() => handle.run_upkeep(),
        }
    }
}

/// Says what metrics are, each with a sentence for whoever reads them.
pub fn declare(metrics: &[(Kind, &'static str, &'static str)]) {
    for &(kind, name, help) in metrics {
        match kind {
            Kind::Counter => {
                describe_counter!(name, help);
                counter!(name).increment(0);
            }
            Kind::Counters => describe_counter!(name, help),
            Kind::Gauge => describe_gauge!(name, help),
            Kind::Histogram => describe_histogram!(name, help),
        }
    }
}

/// Says what the metrics are that every service writes.
pub fn declare_shared() {
    declare(&[
        (
            Kind::Histogram,
            "stepcast_rpc_seconds",
            "Requests to api over NATS, as their asker sees them, by name and outcome",
        ),
        (
            Kind::Counter,
            "stepcast_nats_slow_consumer_total",
            "Times that NATS dropped messages because this process read too slowly",
        ),
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_grow() {
        for buckets in [&LONG[..], &SHORT, &BRIEF, &COUNTS] {
            assert!(buckets.is_sorted() && buckets[0] > 0.0);
        }
    }
}
