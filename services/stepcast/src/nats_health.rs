//! Whether our NATS server still stores what it is given.
//!
//! Once a write has failed, a stream takes nothing more, room or not, until its server is started again. The server
//! knows, and says so where it is asked for its health.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};

/// How often it is asked.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often in a row it must say so: a stream that is just being made or read is not healthy either.
const LOOKS: u32 = 3;
/// Longest wait for its answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Room below which a start would lead to the same again.
const ROOM: usize = 1024 * 1024;

/// Resolves once the server is not healthy and there is room for what it stores, to what it says. Cancel-safe.
pub async fn stuck(monitoring: &str, store: &Path) -> String {
    let url = format!("{monitoring}/healthz");
    let client = reqwest::Client::builder().no_proxy().timeout(ANSWER).build();
    let client = client.expect("a plain client can be built");
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut bad = 0;
    loop {
        ticks.tick().await;
        // A server that does not answer is busy, or ends: that is seen elsewhere.
        let Some(trouble) = trouble(&client, &url).await else {
            bad = 0;
            continue;
        };
        bad += 1;
        if bad >= LOOKS && has_room(store).await {
            return trouble;
        }
    }
}

/// What is wrong; `None` if nothing is, or if nothing is said.
async fn trouble(client: &reqwest::Client, url: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Health {
        #[serde(default)]
        error: String,
    }
    let answer = client.get(url).send().await.ok()?;
    if answer.status().is_success() {
        return None;
    }
    let health: Option<Health> = answer.json().await.ok();
    Some(health.map_or_else(|| "it is not healthy".to_owned(), |health| health.error))
}

/// Whether something can be written to a folder.
async fn has_room(folder: &Path) -> bool {
    let file = folder.join("stepcast-room");
    let tried = tokio::task::spawn_blocking(move || {
        let written = fill(&file);
        fs::remove_file(&file).and(written)
    });
    tried.await.is_ok_and(|tried| tried.is_ok())
}

fn fill(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&vec![0; ROOM])?;
    file.sync_all()
}
