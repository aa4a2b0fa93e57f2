//! The rows of `/sdapi/v1/history`: one where a stage begins, one for what it wrote, one where it ends.

use std::collections::VecDeque;

use serde::Serialize;

/// Rows kept; the oldest go first.
const CAPACITY: usize = 10_000;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) job: String,
    pub(crate) op: &'static str,
    /// Unix seconds.
    pub(crate) timestamp: f64,
    /// Seconds, three decimals; only where a stage ends.
    pub(crate) duration: Option<f64>,
    /// Files written, without their extension.
    pub(crate) outputs: Vec<String>,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    rows: VecDeque<Row>,
}

impl History {
    pub(crate) fn push(&mut self, row: Row) {
        if self.rows.len() == CAPACITY {
            self.rows.pop_front();
        }
        self.rows.push_back(row);
    }

    /// All rows, or those of one stage.
    pub(crate) fn rows(&self, id: Option<&str>) -> Vec<Row> {
        self.rows.iter().filter(|row| id.is_none_or(|id| row.id == id)).cloned().collect()
    }
}
