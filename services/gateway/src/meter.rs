//! The figures of the fan-out, gathered in the loop and published once a second: a metric's name is not looked up for
//! every message.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use stepcast_shared::meter::{self, Kind};

use crate::outbox::Written;

/// Handles of the metrics, and what is not published yet.
#[derive(Debug)]
pub struct Meter {
    received: u64,
    written: Written,
    received_total: Counter,
    frames_total: Counter,
    writes_total: Counter,
    conflated_total: Counter,
    frames_per_write: Histogram,
    round_seconds: Histogram,
    lag_seconds: Gauge,
}

impl Meter {
    /// Finds the handles.
    pub fn new() -> Self {
        Self {
            received: 0,
            written: Written::default(),
            received_total: counter!("stepcast_gateway_received_total"),
            frames_total: counter!("stepcast_gateway_frames_sent_total"),
            writes_total: counter!("stepcast_gateway_writes_total"),
            conflated_total: counter!("stepcast_gateway_conflated_total"),
            frames_per_write: histogram!("stepcast_gateway_frames_per_write"),
            round_seconds: histogram!("stepcast_gateway_fan_out_seconds"),
            lag_seconds: gauge!("stepcast_gateway_ingest_lag_seconds"),
        }
    }

    /// Counts a message from NATS.
    pub fn received(&mut self) {
        self.received += 1;
    }

    /// Counts a round of writes and how long it took.
    pub fn wrote(&mut self, written: Written, took: Duration) {
        self.round_seconds.record(took.as_secs_f64());
        if written.writes > 0 {
            self.frames_per_write.record(written.frames as f64 / written.writes as f64);
        }
        self.written += written;
    }

    /// How far behind the server the loop is.
    pub fn lag(&mut self, lag: Duration) {
        self.lag_seconds.set(lag.as_secs_f64());
    }

    /// Publishes what was counted.
    pub fn publish(&mut self) {
        self.received_total.increment(std::mem::take(&mut self.received));
        let Written { frames, writes, conflated, joining: _ } = std::mem::take(&mut self.written);
        self.frames_total.increment(frames);
        self.writes_total.increment(writes);
        self.conflated_total.increment(conflated);
    }
}

/// Says what each metric is.
pub fn declare() {
    meter::declare_shared();
    let [counter, counters, gauge, histogram] = [Kind::Counter, Kind::Counters, Kind::Gauge, Kind::Histogram];
    meter::declare(&[
        (gauge, "stepcast_gateway_connections", "Clients connected now"),
        (counters, "stepcast_gateway_refused_total", "Clients that found no place, by reason"),
        (gauge, "stepcast_gateway_nats_subscriptions", "Subscriptions on NATS now, of a job or of an owner"),
        (gauge, "stepcast_gateway_topic_subscriptions", "Clients that watch a topic now"),
        (counter, "stepcast_gateway_stats_unanswered_total", "Questions for statistics that no api answered"),
        (counter, "stepcast_gateway_received_total", "Messages from NATS"),
        (gauge, "stepcast_gateway_ingest_lag_seconds", "How far the loop is behind the server of NATS"),
        (histogram, "stepcast_gateway_fan_out_seconds", "Processor time of one round of writes"),
        (counter, "stepcast_gateway_frames_sent_total", "Messages that the loop has written"),
        (counter, "stepcast_gateway_writes_total", "Calls in which it wrote them"),
        (histogram, "stepcast_gateway_frames_per_write", "Messages that one call wrote"),
        (
            counter,
            "stepcast_gateway_conflated_total",
            "Progress that a newer one replaced before it was sent",
        ),
        (counter, "stepcast_gateway_overflows_total", "Clients for which too much waited"),
        (counter, "stepcast_gateway_write_timeouts_total", "Clients that took nothing for too long"),
        (counters, "stepcast_gateway_closes_total", "Goodbyes written to WebSockets, by code"),
        (counter, "stepcast_gateway_resyncs_total", "Clients asked to come back because too much was missed"),
        (counters, "stepcast_gateway_recoveries_total", "Answers to clients that came back, by outcome"),
        (counter, "stepcast_gateway_gap_recovered_total", "Events found again after NATS was away"),
        (counter, "stepcast_gateway_reread_recovered_total", "Events found again in the course of things"),
        (counter, "stepcast_gateway_reread_jobs_total", "Jobs whose recorded events were read again"),
        (counters, "stepcast_gateway_incomplete_snapshots_total", "Snapshots without an answer, by whose"),
        (counter, "stepcast_gateway_undecodable_total", "Messages that could not be passed on"),
        (counters, "stepcast_gateway_errors_total", "Errors told to clients, by code"),
    ]);
}
