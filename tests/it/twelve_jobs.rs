//! The main job: twelve jobs of every kind, over two backends, with four watchers.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use stepcast_tests::check;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;
use stepcast_tests::wait::until;
use stepcast_tests::watcher::Watcher;

/// A job, and what its answer must hold.
struct Case {
    body: Value,
    images: usize,
    size: (u32, u32),
    /// Steps over all passes.
    steps: u64,
}

fn picture() -> String {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 256, 192);
    encoder.set_color(png::ColorType::Rgb);
    let pixels: Vec<u8> = (0..256 * 192 * 3).map(|n| u8::try_from(n % 251).expect("below 251")).collect();
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels)).expect("a PNG in memory");
    STANDARD.encode(bytes)
}

fn cases() -> Vec<Case> {
    let base = |prompt: String, more: Value| {
        let mut body = json!({"prompt": prompt, "steps": 8, "width": 256, "height": 192, "label": "twelve"});
        let Value::Object(more) = more else { unreachable!("written as objects below") };
        body.as_object_mut().expect("an object").extend(more);
        body
    };
    let hires = json!({"sdnext": {"enable_hr": true, "hr_scale": 1.5, "hr_upscaler": "Latent Nearest",
        "hr_second_pass_steps": 6, "hr_denoising_strength": 0.5, "hr_force": true}});
    let mut cases = Vec::new();
    for n in 0..4 {
        cases.push(Case {
            body: base(format!("plain {n}"), json!({"seed": n})),
            images: 1,
            size: (256, 192),
            steps: 8,
        });
    }
    for n in 0..2 {
        // Recorded: without `hr_resize_mode` the second pass keeps the size.
        cases.push(Case {
            body: base(format!("hires {n}"), hires.clone()),
            images: 1,
            size: (256, 192),
            steps: 14,
        });
        cases.push(Case {
            body: base(format!("iterations {n}"), json!({"n_iter": 3})),
            images: 3,
            size: (256, 192),
            steps: 24,
        });
        cases.push(Case {
            body: base(format!("batch {n}"), json!({"batch_size": 2})),
            images: 2,
            size: (256, 192),
            steps: 8,
        });
        let from = json!({"init_images": [picture()], "denoising_strength": 0.6});
        cases.push(Case {
            body: base(format!("from an image {n}"), from),
            images: 1,
            size: (256, 192),
            steps: 8,
        });
    }
    cases
}

#[tokio::test]
async fn twelve_jobs_of_every_kind_reach_four_watchers_in_order_and_whole() {
    let sims = [
        Sim::start(Duration::from_millis(600)).await.unwrap(),
        Sim::start(Duration::from_secs(1)).await.unwrap(),
    ];
    let stack = Stack::start(&[("fast", sims[0].url()), ("slow", sims[1].url())]).await.unwrap();
    let http = stack.http();

    let mut all = stack.watcher().await.unwrap();
    all.subscribe(None).await;
    let cases = cases();
    let mut ids = Vec::new();
    for case in &cases {
        ids.push(http.submit(&case.body).await);
    }
    let mut one = stack.watcher().await.unwrap();
    one.subscribe(Some(&ids[2..3])).await;
    let mut three = stack.watcher().await.unwrap();
    three.subscribe(Some(&ids[5..8])).await;
    until("half of the jobs have ended", async || {
        let done = http.get("/generation/jobs?status=completed").await.json["jobs"].as_array()?.len();
        (done >= 4).then_some(())
    })
    .await;
    let mut late = stack.watcher().await.unwrap();
    late.subscribe(None).await;

    for id in &ids {
        all.ended(id).await;
    }
    one.ended(&ids[2]).await;
    for id in &ids[5..8] {
        three.ended(id).await;
    }
    let active_when_late = jobs_of(&late);
    for id in &active_when_late {
        late.ended(id).await;
    }

    assert_eq!(jobs_of(&all).len(), 12);
    assert_eq!(jobs_of(&one), ids[2..3]);
    let mut expected = ids[5..8].to_vec();
    expected.sort();
    assert_eq!(jobs_of(&three), expected);
    assert!((1..12).contains(&active_when_late.len()), "{active_when_late:?}");
    for (watcher, ids) in
        [(&all, &ids[..]), (&one, &ids[2..3]), (&three, &ids[5..8]), (&late, &active_when_late[..])]
    {
        for id in ids {
            check::messages(id, &watcher.about(id));
        }
    }

    let finished: BTreeMap<String, (usize, i64, i64)> = sims
        .iter()
        .enumerate()
        .flat_map(|(index, sim)| {
            sim.truth()
                .finished
                .into_iter()
                .map(move |job| (job.prompt, (index, job.started_at, job.ended_at)))
        })
        .collect();
    assert_eq!(finished.len(), 12, "every job was rendered once");
    for (case, id) in cases.iter().zip(&ids) {
        let job = http.job(id).await;
        assert_eq!(job["status"], "completed", "{job}");
        let prompt = case.body["prompt"].as_str().unwrap();
        let (backend, ..) = finished[prompt];
        assert_eq!(job["backend"], ["fast", "slow"][backend], "the job ran where it was said to run");
        check_progress(case, &all, id);
        check_images(&stack, case, &job).await;
    }
    assert!(
        ["fast", "slow"]
            .iter()
            .all(|name| { all.told().iter().any(|told| told.message["data"]["backend"] == *name) })
    );
}

fn jobs_of(watcher: &Watcher) -> Vec<String> {
    let mut ids: Vec<String> = watcher
        .told()
        .iter()
        .filter_map(|told| told.message["data"]["job_id"].as_str().map(str::to_owned))
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

/// The steps are those of this job and of no other: every kind has another number of them.
fn check_progress(case: &Case, watcher: &Watcher, id: &str) {
    let told = watcher.about(id);
    let updates: Vec<&Value> = told
        .iter()
        .filter(|told| told.message["type"] == "progress_update")
        .map(|told| &told.message["data"])
        .collect();
    assert!(!updates.is_empty(), "{id} has progress");
    for update in &updates {
        assert_eq!(update["total_steps"], case.steps, "{update}");
        assert_eq!(update["images"], case.images, "{update}");
    }
    let most = updates.iter().filter_map(|update| update["current_step"].as_u64()).max();
    assert!(
        most.is_some_and(|most| most * 2 >= case.steps),
        "the steps were followed: {most:?} of {}",
        case.steps
    );
}

async fn check_images(stack: &Stack, case: &Case, job: &Value) {
    let images = job["images"].as_array().unwrap();
    assert_eq!(images.len(), case.images, "{job}");
    for (url, output) in images.iter().zip(job["outputs"].as_array().unwrap()) {
        let answer = stack.http().get(url.as_str().unwrap()).await;
        assert_eq!(answer.status, 200);
        assert_eq!(check::decoded_size(&answer.bytes), case.size, "{job}");
        assert_eq!(output["bytes"], answer.bytes.len());
        assert_eq!((&output["width"], &output["height"]), (&json!(case.size.0), &json!(case.size.1)));
        assert_eq!(answer.headers["content-type"], output["content_type"].as_str().unwrap());
    }
}
