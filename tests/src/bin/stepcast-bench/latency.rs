//! From a step of the render to the frame at a client, and from a submit to the start of its render.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;
use stepcast_sdnext_sim::{Handle, Truth};
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::{Setup, Stack};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::row;

const JOBS: usize = 4;
const STEPS: u32 = 60;
const STEP_TIME: Duration = Duration::from_millis(173);
const QUICK_JOBS: usize = 300;

/// When each step of each prompt was done.
type Steps = Arc<Mutex<HashMap<(String, u32), Instant>>>;

pub(crate) async fn run() -> anyhow::Result<()> {
    let sim = Sim::start(STEP_TIME).await?;
    let stack = Stack::start_on(Setup::unchecked(), &[("gpu", sim.url())]).await?;
    let http = stack.http();
    let mut watcher = stack.watcher().await?;
    watcher.subscribe(None).await;
    let steps = Steps::default();
    let mut observing = JoinSet::new();
    observing.spawn(observe(sim.handle.clone(), steps.clone()));
    let mut prompts = HashMap::new();
    for n in 0..JOBS {
        let prompt = format!("latency {n}");
        let body = json!({"prompt": prompt, "steps": STEPS, "width": 512, "height": 512});
        let id = http.submit(&body).await;
        watcher.ended(&id).await;
        prompts.insert(id, prompt);
    }
    observing.abort_all();
    let mut samples = Vec::new();
    let done = steps.lock().expect("the observer has ended").clone();
    for (id, prompt) in &prompts {
        let mut known = 0;
        for told in watcher.about(id) {
            let step =
                told.message["data"]["current_step"].as_u64().and_then(|step| u32::try_from(step).ok());
            let Some(step) = step.filter(|step| *step > known) else { continue };
            known = step;
            if let Some(at) = done.get(&(prompt.clone(), step)) {
                samples.push(told.at.saturating_duration_since(*at));
            }
        }
    }
    row(&format!("step to frame, polled every 250 ms ({} steps seen)", samples.len()), samples);

    sim.handle.configure(|config| config.step_time = Duration::from_millis(1));
    let mut samples = Vec::new();
    let mut posted = Vec::new();
    for _ in 0..QUICK_JOBS {
        // The backend settles what it has just done before it is idle.
        sleep(Duration::from_millis(100)).await;
        let (begun, begun_there) = (Instant::now(), sim.truth().now);
        let id = http.submit(&json!({"prompt": "quick", "steps": 1, "width": 64, "height": 64})).await;
        watcher.ended(&id).await;
        let started =
            watcher.about(&id).into_iter().find(|told| told.message["type"] == "generation_started");
        samples.extend(started.map(|told| told.at.saturating_duration_since(begun)));
        let render = sim.truth().finished.pop().context("a job that has ended was rendered")?;
        posted.push(Duration::from_micros(u64::try_from(render.started_at - begun_there)?));
    }
    row("submit to the POST at its server, idle backend", posted);
    row("submit to `started` at a client, idle backend", samples);
    Ok(())
}

/// Looks at the simulator's truth every millisecond.
async fn observe(handle: Handle, steps: Steps) {
    loop {
        let truth: Truth = handle.truth();
        if let Some(running) = truth.running.filter(|running| running.step > 0) {
            let age = u64::try_from(truth.now - running.step_changed_at).unwrap_or(0);
            let mut steps = steps.lock().expect("no code panics while it holds this lock");
            steps.entry((running.prompt, running.step)).or_insert_with(|| {
                Instant::now().checked_sub(Duration::from_micros(age)).unwrap_or_else(Instant::now)
            });
        }
        sleep(Duration::from_millis(1)).await;
    }
}
