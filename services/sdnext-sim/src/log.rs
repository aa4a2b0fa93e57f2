//! The server's own log, as `/sdapi/v1/log` shows it: each line a JSON text in a JSON string.

use std::collections::VecDeque;

use crate::clock::Clock;

const CAPACITY: usize = 1_000;

#[derive(Debug)]
pub(crate) struct Log {
    clock: Clock,
    lines: VecDeque<String>,
}

impl Log {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, lines: VecDeque::new() }
    }

    pub(crate) fn write(&mut self, level: &str, module: &str, message: &str) {
        let now = self.clock.now();
        let created = self.clock.micros() as f64 / 1e6;
        let line = format!(
            "{{ \"asctime\":\"{}\", \"created\":{created:.6}, \"facility\":\"sd\", \"pid\":{}, \"tid\":1, \
             \"level\":\"{level}\", \"module\":\"{module}\", \"func\":\"{module}\", \"msg\":{} }}",
            now.format("%Y-%m-%d %H:%M:%S,%3f"),
            std::process::id(),
            serde_json::Value::from(message),
        );
        if self.lines.len() == CAPACITY {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The last `count` lines, oldest first.
    pub(crate) fn last(&self, count: usize) -> Vec<String> {
        self.lines.iter().skip(self.lines.len().saturating_sub(count)).cloned().collect()
    }

    pub(crate) fn clear(&mut self) {
        self.lines.clear();
    }
}
