//! What the figures were measured on.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::peer;

/// Cores, processor, kernel, date and versions, as a list.
pub fn describe(broker: &Path, gateway: &Path) -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "- Machine: {cores} cores, {}, Linux {}\n- Date: {}\n- Broker: {}\n- Gateway: {}\n- Peers: {}",
        model.map_or("unknown processor", |(_, model)| model),
        kernel.trim(),
        chrono::Utc::now().format("%Y-%m-%d"),
        version(broker),
        version(gateway),
        peer::versions(),
    )
}

fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    output.map_or("unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
