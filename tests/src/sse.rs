//! A reader of server-sent events that keeps everything it was told, and comes back where it was when it is cut off.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::client::Http;
use crate::contract::{Contract, Verdict, Violations};
use crate::watcher::Told;

/// Pause before a lost connection is made again.
const AGAIN_AFTER: Duration = Duration::from_millis(300);

/// A reader of all jobs.
pub struct Reader {
    kept: Arc<Mutex<Kept>>,
    _verdict: Verdict,
    _reading: JoinSet<()>,
}

#[derive(Default)]
struct Kept {
    told: Vec<Told>,
    connections: usize,
    /// What the server called the last event that it gave a name.
    last_id: Option<String>,
}

impl Reader {
    /// Reads what is told at this server.
    pub fn start(http: &Http) -> Self {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let mut reading = JoinSet::new();
        let verdict = Verdict::default();
        reading.spawn(read(http.clone(), kept.clone(), verdict.violations()));
        Self { kept, _verdict: verdict, _reading: reading }
    }

    /// Everything so far, in order.
    pub fn told(&self) -> Vec<Told> {
        lock(&self.kept).told.clone()
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        lock(&self.kept).connections
    }

    /// Whether the job's end was told.
    pub fn knows_end(&self, job_id: &str) -> bool {
        lock(&self.kept).told.iter().any(|told| {
            told.message["type"] == "generation_complete" && told.message["data"]["job_id"] == job_id
        })
    }
}

fn lock(kept: &Mutex<Kept>) -> std::sync::MutexGuard<'_, Kept> {
    kept.lock().expect("no code panics while it holds this lock")
}

async fn read(http: Http, kept: Arc<Mutex<Kept>>, violations: Violations) {
    loop {
        // A loss of any kind is answered by coming back.
        let _ = listen(&http, &kept, &violations).await;
        sleep(AGAIN_AFTER).await;
    }
}

async fn listen(http: &Http, kept: &Mutex<Kept>, violations: &Violations) -> reqwest::Result<()> {
    let last_id = lock(kept).last_id.clone();
    let mut answer = http.stream("/sse/progress", last_id.as_deref()).await?;
    lock(kept).connections += 1;
    let mut line = Vec::new();
    while let Some(bytes) = answer.chunk().await? {
        for byte in bytes {
            if byte == b'\n' {
                take(&String::from_utf8_lossy(&line), kept, violations);
                line.clear();
            } else {
                line.push(byte);
            }
        }
    }
    Ok(())
}

fn take(line: &str, kept: &Mutex<Kept>, violations: &Violations) {
    let mut kept = lock(kept);
    if let Some(id) = line.strip_prefix("id:") {
        kept.last_id = Some(id.trim().to_owned());
    } else if let Some(data) = line.strip_prefix("data:") {
        let message = serde_json::from_str(data).expect("the server sends JSON");
        violations.note(Contract::get().check_message(&message));
        kept.told.push(Told { at: Instant::now(), message });
    }
}
