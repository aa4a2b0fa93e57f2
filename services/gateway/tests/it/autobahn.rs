//! The cases of Autobahn's test suite (crossbario/autobahn-testsuite), to which implementations of RFC 6455 are held:
//! framing, pings, reserved bits and opcodes, fragments, UTF-8, goodbyes, long messages and many of them.
//!
//! The cases are Autobahn's own, in the Python package `kosoku`, which runs them on today's Python. Left out are 12 and
//! 13: they are about compression, which the gateway does not offer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;
use tokio::time::timeout;

use crate::echo::Echo;
use crate::nats_server::NatsServer;
use crate::process;

/// Longest message of these cases.
const LONGEST: &str = "16777216";
const COMPRESSION: [&str; 2] = ["12.*", "13.*"];
/// Messages of up to 16 MiB, whose time goes into this test's own copying.
const LONG: [&str; 4] = ["9.1.*", "9.2.*", "9.3.*", "9.4.*"];

/// What became of a case.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    behavior: String,
    behavior_close: String,
}

impl Verdict {
    fn is_good(&self) -> bool {
        matches!(self.behavior.as_str(), "OK" | "NON-STRICT" | "INFORMATIONAL")
            && matches!(self.behavior_close.as_str(), "OK" | "INFORMATIONAL")
    }

    /// The end of the connection took a second, which only a busy machine excuses.
    fn is_late(&self) -> bool {
        self.behavior_close == "FAILED BY CLIENT"
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn autobahns_cases_hold() {
    let Some(suite) = suite() else {
        eprintln!(
            "no kosoku in .venv, so Autobahn's cases are skipped: .ci/install python installs it on Python 3.10"
        );
        return;
    };
    let nats = NatsServer::start().await;
    let url = nats.url();
    let arguments = ["--listen", "127.0.0.1:0", "--nats-url", &url, "--gateway-max-frame-bytes", LONGEST];
    // How much is said is limited elsewhere.
    let unhurried = ["--gateway-messages-per-second", "1000000", "--gateway-message-burst", "1000000"];
    let mut gateway = process::gateway(&[&arguments[..], &unhurried].concat());
    let echo = Echo::before(process::address(&mut gateway).await).await;

    let is_soak = std::env::var_os("STEPCAST_SOAK").is_some();
    let skipped = COMPRESSION.iter().chain(LONG.iter().filter(|_| !is_soak));
    let selection: Vec<&str> = skipped.flat_map(|cases| ["--exclude", cases]).collect();
    let mut cases = run(&suite, echo.address, &selection, "8").await;
    assert!(cases.len() > 200, "only {} cases were run", cases.len());
    let late: Vec<String> =
        cases.iter().filter(|(_, verdict)| verdict.is_late()).map(|(id, _)| id.clone()).collect();
    if !late.is_empty() {
        let selection: Vec<&str> = late.iter().flat_map(|id| ["--include", id]).collect();
        cases.append(&mut run(&suite, echo.address, &selection, "1").await);
    }
    let bad: Vec<_> = cases.iter().filter(|(_, verdict)| !verdict.is_good()).collect();
    assert!(bad.is_empty(), "{} of {} cases do not hold: {bad:?}", bad.len(), cases.len());
    let lenient: Vec<_> =
        cases.iter().filter(|(_, verdict)| verdict.behavior == "NON-STRICT").map(|(id, _)| id).collect();
    // A frame's text is looked at once the frame is whole; Autobahn would have it refused at the first wrong byte.
    assert_eq!(lenient, ["6.4.3", "6.4.4"]);
}

/// Runs cases, so many at a time, and returns what became of each.
async fn run(
    suite: &Path,
    server: SocketAddr,
    selection: &[&str],
    parallel: &str,
) -> BTreeMap<String, Verdict> {
    let reports = tempfile::tempdir().unwrap();
    let running = Command::new(suite)
        .arg(format!("ws://{server}/ws/progress"))
        .args(selection)
        .args(["--parallelism", parallel, "--outdir"])
        .arg(reports.path())
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(200), running).await.expect("the suite ends in time").unwrap();
    let index = std::fs::read(reports.path().join("index.json"))
        .unwrap_or_else(|_| panic!("no reports: {}", String::from_utf8_lossy(&output.stderr)));
    let mut servers: BTreeMap<String, BTreeMap<String, Verdict>> = serde_json::from_slice(&index).unwrap();
    servers.pop_first().expect("one server was tested").1
}

/// Where the suite is, unless Python is too old for it.
fn suite() -> Option<PathBuf> {
    let installed = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.venv/bin/kosoku"));
    installed.is_file().then_some(installed)
}
