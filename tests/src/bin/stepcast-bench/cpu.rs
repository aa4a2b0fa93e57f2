//! Processor time of processes, which says more than a clock where others use the machine too.

use std::time::Duration;

use anyhow::Context as _;

/// Ticks a second of `/proc`; the kernel's interface has it fixed.
const TICKS: f64 = 100.0;

/// What a process has used since its start.
pub(crate) fn used(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may itself hold spaces.
    let (_, fields) = stat.rsplit_once(')').context("a process has a name")?;
    let ticks = |index: usize| -> anyhow::Result<f64> {
        Ok(fields.split_whitespace().nth(index).context("a process has counters")?.parse()?)
    };
    Ok(Duration::from_secs_f64((ticks(11)? + ticks(12)?) / TICKS))
}
