//! The figures of the fan-out, gathered in the loop and published once a second: a metric's name is not looked up for
//! every message.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

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
