//! Sequences of polls that no recording holds: phases that pass unseen, and servers of another dialect.

use std::time::Duration;

use serde_json::{Value, json};
use stepcast_poller::{
    plan::{Plan, PlanInput},
    sample::Sample,
    tracker::{Progress, Tracker},
    weights::Weights,
};
use stepcast_shared::messages::{Source, Stage};

/// A tracker that is polled four times a second.
struct Watch {
    tracker: Tracker,
    at: Duration,
}

impl Watch {
    fn new(body: &Value) -> Self {
        let plan = Plan::new(&PlanInput::from_body(body, false));
        Self { tracker: Tracker::new(plan, &Weights::default(), Some(&idle())), at: Duration::ZERO }
    }

    fn sees(&mut self, sample: &Sample) -> Progress {
        self.at += Duration::from_millis(250);
        self.tracker.observe(self.at, sample);
        self.tracker.progress(self.at)
    }
}

fn stage(id: &str, job: &str, step: u32, steps: u32) -> Sample {
    let state = json!({"job": job, "sampling_step": step, "sampling_steps": steps, "job_count": 1});
    Sample::from_body(json!({"id": id, "state": state}).to_string().as_bytes())
}

fn idle() -> Sample {
    stage("", "", 0, 0)
}

/// A poll of a server that numbers its batches and has no ids.
fn numbered(number: u32, count: u32, step: u32, steps: u32) -> Sample {
    let state = json!({"job": "scripts_txt2img", "job_no": number, "job_count": count, "sampling_step": step, "sampling_steps": steps});
    Sample::from_body(json!({"state": state}).to_string().as_bytes())
}

#[test]
fn a_pass_that_stands_still_after_few_steps_is_stalled_however_long_it_is_looked_at() {
    let mut watch = Watch::new(&json!({"steps": 20}));
    for step in [1, 2, 4] {
        watch.sees(&stage("a", "Inference", step, 20));
    }
    let mut stands = |seconds: u32| {
        (0..4 * seconds)
            .map(|_| watch.sees(&stage("a", "Inference", 4, 20)))
            .last()
            .expect("it was looked at")
    };
    assert_eq!(stands(14).stalled, None);
    assert!(stands(2).stalled.is_some_and(|age| age > Duration::from_secs(15)));
}

#[test]
fn an_iteration_of_which_only_the_decode_is_seen_counts() {
    let mut watch = Watch::new(&json!({"steps": 12, "n_iter": 3}));
    watch.sees(&stage("a", "Inference", 5, 12));
    watch.sees(&stage("b", "VAE Decode", 0, 0));
    watch.sees(&idle());
    let second = watch.sees(&stage("c", "VAE Decode", 0, 0));
    assert_eq!((second.image, second.step, second.stage), (2, 24, Stage::Decoding));
    let third = watch.sees(&stage("d", "Inference", 3, 12));
    assert_eq!((third.image, third.step, third.stage), (3, 27, Stage::Sampling));
}

#[test]
fn an_iteration_that_passes_unseen_is_not_made_up() {
    let mut watch = Watch::new(&json!({"steps": 12, "n_iter": 3}));
    watch.sees(&stage("a", "Inference", 5, 12));
    let third = watch.sees(&stage("c", "Inference", 4, 12));
    assert_eq!((third.image, third.step), (2, 16), "behind the truth, and never ahead of what was seen");
}

#[test]
fn two_decodes_in_a_row_are_one_pass() {
    // A preview by method Full decodes beside the image's own decode, each under an id of its own.
    let mut watch = Watch::new(&json!({"steps": 12, "n_iter": 2}));
    watch.sees(&stage("a", "Inference", 11, 12));
    watch.sees(&stage("b", "VAE Decode", 0, 0));
    let other = watch.sees(&stage("c", "VAE Decode", 0, 0));
    assert_eq!((other.image, watch.tracker.passes_seen()), (1, 1));
}

#[test]
fn counters_after_the_last_decode_are_no_further_pass() {
    let mut watch = Watch::new(&json!({"steps": 12}));
    watch.sees(&stage("a", "Inference", 11, 12));
    watch.sees(&stage("b", "VAE Decode", 0, 0));
    let after = watch.sees(&stage("", "", 3, 12));
    assert_eq!((after.step, watch.tracker.passes_seen()), (12, 1));
}

#[test]
fn full_at_rest_is_neither_the_end_nor_a_new_pass() {
    let mut watch = Watch::new(&json!({"steps": 12, "n_iter": 2}));
    watch.sees(&stage("a", "Inference", 11, 12));
    for _ in 0..5 {
        let full = watch.sees(&stage("", "", 12, 12));
        assert_eq!((full.step, full.image), (12, 1));
        assert!(full.fraction < 0.6, "{full:?}");
    }
    assert_eq!(watch.sees(&idle()).step, 12);
    let second = watch.sees(&stage("", "", 2, 12));
    assert_eq!(
        (second.step, second.image),
        (14, 2),
        "counters that fell after a full pass are those of the next"
    );
}

#[test]
fn a_counter_that_moves_back_is_held() {
    let mut watch = Watch::new(&json!({"steps": 12}));
    watch.sees(&stage("a", "Inference", 6, 12));
    let back = watch.sees(&stage("", "", 2, 12));
    assert_eq!(back.step, 6);
    assert_eq!(watch.tracker.passes_seen(), 1);
}

#[test]
fn a_load_that_nobody_planned_is_shown_and_weighed() {
    let mut watch = Watch::new(&json!({"steps": 12}));
    let loading = watch.sees(&stage("a", "Load model", 0, 0));
    assert_eq!((loading.stage, loading.step), (Stage::Loading, 0));
    let sampling = watch.sees(&stage("b", "Inference", 0, 0));
    assert!(sampling.fraction > 0.05, "{sampling:?}");
}

#[test]
fn passes_beyond_the_plan_hold_the_bar() {
    let mut watch = Watch::new(&json!({"steps": 12, "detailer_enabled": true}));
    watch.sees(&stage("a", "Inference", 11, 12));
    watch.sees(&stage("b", "VAE Decode", 0, 0));
    let detailing = watch.sees(&stage("c", "Inference", 1, 10));
    assert_eq!((detailing.stage, detailing.step, detailing.steps), (Stage::Detailing, 12, 12));
    let again = watch.sees(&stage("d", "Inference", 1, 10));
    assert!(again.fraction >= detailing.fraction && again.fraction < 1.0);
    assert_eq!(watch.tracker.passes_seen(), 3);
}

#[test]
fn steps_are_what_the_server_says() {
    let mut watch = Watch::new(&json!({"steps": 20, "n_iter": 2}));
    let shown = watch.sees(&stage("a", "Inference", 5, 10));
    assert_eq!((shown.step, shown.steps), (5, 20), "both iterations turn out to have 10 steps");
}

#[test]
fn servers_that_number_batches_are_followed() {
    let mut watch = Watch::new(&json!({"steps": 20, "n_iter": 3}));
    let mut last = 0.0;
    for (number, step) in [(0, 0), (0, 7), (0, 19), (1, 0), (1, 12), (2, 3), (2, 20), (3, 20)] {
        let shown = watch.sees(&numbered(number, 3, step, 20));
        assert_eq!(shown.step, number.min(2) * 20 + step, "batch {number}");
        assert!(shown.fraction >= last && shown.fraction < 1.0);
        last = shown.fraction;
    }
    assert_eq!(watch.tracker.passes_seen(), 3);
    assert_eq!(watch.sees(&numbered(0, 0, 20, 20)).step, 60, "counters linger once nothing runs");
}

#[test]
fn a_server_without_numbers_falls_back_on_its_counters() {
    let mut watch = Watch::new(&json!({"steps": 20, "n_iter": 2}));
    for (step, done) in [(3, 3), (18, 18), (2, 22), (20, 40)] {
        assert_eq!(watch.sees(&numbered(0, 1, step, 20)).step, done);
    }
}

#[test]
fn missed_polls_hold_and_change_nothing() {
    let mut watch = Watch::new(&json!({"steps": 20}));
    let waiting = watch.sees(&Sample::Missed);
    assert_eq!((waiting.source, waiting.stage), (Source::Held, Stage::Preparing));
    let measured = watch.sees(&stage("a", "Inference", 5, 20));
    assert_eq!(measured.source, Source::Measured);
    let mut missed = watch.sees(&Sample::Missed);
    for _ in 0..20 {
        missed = watch.sees(&Sample::Missed);
    }
    assert_eq!((missed.source, missed.step), (Source::Held, 5));
    assert!(missed.fraction < measured.fraction + 0.05);
}
