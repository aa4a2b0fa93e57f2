//! Every recorded poll log through the tracker, as recorded and thinned to four polls a second.

use std::time::Duration;

use stepcast_poller::{
    plan::Plan,
    sample::Sample,
    tracker::{Progress, Tracker},
    weights::{Cost, Weights},
};
use stepcast_shared::messages::{Source, Stage};

use super::recordings::{Exchange, Poll, Recording};

/// Jobs that went through undisturbed, with the passes that each of them runs.
const NORMAL: [(&str, u32); 22] = [
    ("txt2img", 1),
    ("txt2img-skip-image", 1),
    ("txt2img-fast-poll", 1),
    ("txt2img-all-endpoints", 1),
    ("txt2img-120-steps", 1),
    ("sampler-heun", 1),
    ("batch-n_iter3", 3),
    ("batch-size2", 1),
    ("batch-n_iter2-size2", 2),
    ("hires", 2),
    ("hires-image-upscaler", 2),
    ("img2img", 1),
    ("save-images", 1),
    ("preview-simple", 1),
    ("preview-approximate", 1),
    ("preview-full", 1),
    ("preview-taesd", 1),
    ("preview-none", 1),
    ("model-switch-field", 1),
    ("model-switch-override", 1),
    ("unload-then-job", 1),
    ("upscale-while-running", 1),
];

/// Its polls made the server lose count of its own steps (preview method Full), so there is no rate to tell time from.
const COUNTERS_LOST: &str = "preview-full";

/// Spacings of polls in seconds, each with the polls left out at the start.
const THINNINGS: [(f64, usize); 7] =
    [(0.0, 0), (0.25, 0), (0.25, 1), (0.25, 2), (0.25, 3), (0.25, 5), (0.5, 2)];

/// What a replay showed: when, and what.
struct Replay {
    shown: Vec<(Duration, Progress)>,
    tracker: Tracker,
}

/// Feeds polls, asks in between as a publisher does, and checks what must hold always.
fn replay(recording: &Recording, exchange: &Exchange, polls: &[Poll], weights: &Weights) -> Replay {
    let plan = Plan::new(&exchange.plan_input());
    let (images, name) = (plan.images, &recording.name);
    let mut tracker = Tracker::new(plan, weights, recording.baseline(exchange.submitted));
    let mut shown: Vec<(Duration, Progress)> = Vec::new();
    let since = |at: f64| Duration::from_secs_f64((at - exchange.submitted).max(0.0));
    let mut show = |tracker: &mut Tracker, at: Duration| {
        let progress = tracker.progress(at);
        let last = shown.last().map(|(_, progress)| progress);
        assert!(progress.fraction.is_finite() && progress.fraction >= 0.0, "{name} at {at:?}: {progress:?}");
        assert!(progress.fraction < 1.0, "{name} at {at:?}: {progress:?}");
        assert!(
            last.is_none_or(|last| last.fraction <= progress.fraction),
            "{name} at {at:?}: {last:?} {progress:?}"
        );
        assert!(
            last.is_none_or(|last| last.step <= progress.step),
            "{name} at {at:?}: {last:?} {progress:?}"
        );
        assert!(
            last.is_none_or(|last| last.image <= progress.image),
            "{name} at {at:?}: {last:?} {progress:?}"
        );
        assert!(progress.step <= progress.steps, "{name} at {at:?}: {progress:?}");
        assert!((1..=images).contains(&progress.image) && progress.images == images, "{name}: {progress:?}");
        assert!(
            progress.steps_per_second.is_none_or(|rate| rate.is_finite() && rate > 0.0),
            "{name}: {progress:?}"
        );
        shown.push((at, progress));
    };
    for (index, poll) in polls.iter().enumerate() {
        let at = since(poll.at);
        tracker.observe(at, &poll.sample);
        show(&mut tracker, at);
        let next = polls.get(index + 1).map(|poll| poll.at).or(exchange.done).map_or(at, since);
        for part in 1..4 {
            show(&mut tracker, at + next.saturating_sub(at) * part / 4);
        }
    }
    Replay { shown, tracker }
}

/// The request of a recording that its polls are about.
fn first(recording: &Recording) -> Exchange {
    recording.exchanges[0].clone()
}

/// Weights as a backend has them that ran every normal job but one.
fn learnt_without(name: &str) -> Weights {
    let mut weights = Weights::default();
    for (other, _) in NORMAL.iter().filter(|(other, _)| *other != name) {
        let recording = Recording::read(other);
        let exchange = first(&recording);
        let replay = replay(&recording, &exchange, &recording.thinned(&exchange, 0.25, 0), &weights);
        weights.learn(&replay.tracker.finish(exchange.took().expect("a normal job is answered")));
    }
    weights
}

#[test]
fn every_recording_grows_and_never_ends_by_itself() {
    let mut replayed = 0;
    for recording in Recording::all() {
        for exchange in recording.exchanges.iter().take(3) {
            for (spacing, skip) in THINNINGS {
                let polls = recording.thinned(exchange, spacing, skip);
                replay(&recording, exchange, &polls, &Weights::default());
                replayed += usize::from(!polls.is_empty());
            }
        }
    }
    assert!(replayed > 300, "only {replayed} replays had polls");
}

#[test]
fn normal_jobs_are_counted_and_reach_the_end() {
    for (name, passes) in NORMAL {
        let recording = Recording::read(name);
        let exchange = first(&recording);
        let weights = learnt_without(name);
        for (spacing, skip) in THINNINGS {
            let polls = recording.thinned(&exchange, spacing, skip);
            let Replay { shown, tracker } = replay(&recording, &exchange, &polls, &weights);
            let (_, last) = shown.last().expect("a normal job is polled");
            let context = format!("{name} every {spacing} s from {skip}: {last:?}");
            assert_eq!(tracker.passes_seen(), passes, "passes of {context}");
            if spacing > 0.3 {
                continue; // At two polls a second the end of these short jobs passes unseen.
            }
            // Thinned polls may miss a short decode, and with it the last steps, or catch no more than its beginning.
            let (unseen, least) = if spacing > 0.0 { (0.05, 0.85) } else { (0.0, 0.9) };
            assert!(
                f64::from(last.steps - last.step) <= f64::from(last.steps) * unseen,
                "steps of {context}"
            );
            assert!(last.fraction >= least, "{context}");
            assert_eq!(last.stalled, None, "{context}");
            assert!(!tracker.interrupted_seen(), "{context}");
        }
    }
}

#[test]
fn progress_follows_the_time_gone() {
    let mut worst = (0.0, String::new());
    for (name, _) in NORMAL.into_iter().filter(|(name, _)| *name != COUNTERS_LOST) {
        let recording = Recording::read(name);
        let exchange = first(&recording);
        let weights = learnt_without(name);
        let took = exchange.took().expect("a normal job is answered").as_secs_f64();
        for (spacing, skip) in THINNINGS.into_iter().filter(|(spacing, _)| *spacing < 0.3) {
            let replay =
                replay(&recording, &exchange, &recording.thinned(&exchange, spacing, skip), &weights);
            let errors =
                replay.shown.iter().map(|(at, shown)| (shown.fraction - at.as_secs_f64() / took).abs());
            let mean = errors.sum::<f64>() / replay.shown.len() as f64;
            println!("{name:24} every {spacing:4} s from {skip}: mean error {mean:.3}");
            if mean > worst.0 {
                worst = (mean, format!("{name} every {spacing} s from {skip}"));
            }
        }
    }
    assert!(worst.0 < 0.1, "mean error of {worst:?}");
}

#[test]
fn remaining_time_is_told_from_the_jobs_own_rate() {
    for (name, _) in NORMAL.into_iter().filter(|(name, _)| *name != COUNTERS_LOST) {
        let recording = Recording::read(name);
        let exchange = first(&recording);
        let took = exchange.took().expect("a normal job is answered").as_secs_f64();
        let replay =
            replay(&recording, &exchange, &recording.thinned(&exchange, 0.25, 1), &learnt_without(name));
        let half =
            replay.shown.iter().find(|(at, _)| at.as_secs_f64() >= took / 2.0).expect("the job is half over");
        let eta = half.1.eta.expect("half-way there is a rate").as_secs_f64();
        let left = took - half.0.as_secs_f64();
        println!("{name:24} half-way: {eta:.2} s told, {left:.2} s left");
        assert!((eta - left).abs() < f64::max(0.5, 0.45 * took), "{name}: {eta} told, {left} left");
    }
}

#[test]
fn no_rate_means_no_remaining_time() {
    let recording = Recording::read("txt2img");
    let exchange = first(&recording);
    let replay =
        replay(&recording, &exchange, &recording.thinned(&exchange, 0.0, 0)[..6], &Weights::default());
    assert!(replay.shown.iter().all(|(_, shown)| shown.eta.is_none() && shown.steps_per_second.is_none()));
}

#[test]
fn learning_moves_the_estimate_towards_the_truth() {
    for (name, _) in NORMAL {
        let exchange = first(&Recording::read(name));
        let took = exchange.took().expect("a normal job is answered").as_secs_f64();
        let weights = learnt_without(name);
        let estimate = weights.estimate(&Plan::new(&exchange.plan_input())).as_secs_f64();
        println!("{name:24} estimated {estimate:.2} s, took {took:.2} s");
        assert!(estimate > took * 0.3 && estimate < took * 3.0, "{name}: {estimate} against {took}");
        assert!(weights.is_learnt(Cost::Sampling) && weights.is_learnt(Cost::Decoding));
    }
}

#[test]
fn iterations_are_one_count_of_steps() {
    let recording = Recording::read("batch-n_iter3");
    let exchange = first(&recording);
    let replay = replay(&recording, &exchange, &recording.thinned(&exchange, 0.0, 0), &Weights::default());
    assert!(replay.shown.iter().all(|(_, shown)| shown.steps == 36));
    let second =
        replay.shown.iter().find(|(_, shown)| shown.image == 2 && shown.step == 17).expect("step 17 is seen");
    assert_eq!(second.1.stage, Stage::Sampling);
    assert_eq!(replay.shown.last().map(|(_, shown)| shown.image), Some(3));
}

#[test]
fn stages_follow_each_other() {
    for (name, expected) in [
        ("txt2img", [Stage::Preparing, Stage::Sampling, Stage::Decoding].as_slice()),
        ("hires", &[Stage::Preparing, Stage::Sampling, Stage::Hires, Stage::Decoding]),
        (
            "model-switch-override",
            &[Stage::Loading, Stage::Preparing, Stage::Sampling, Stage::Decoding, Stage::Loading],
        ),
    ] {
        let recording = Recording::read(name);
        let exchange = first(&recording);
        let replay =
            replay(&recording, &exchange, &recording.thinned(&exchange, 0.0, 0), &Weights::default());
        let mut stages: Vec<_> = replay.shown.iter().map(|(_, shown)| shown.stage).collect();
        stages.dedup();
        assert_eq!(stages, expected, "{name}");
    }
}

#[test]
fn leftovers_of_an_earlier_job_are_not_ours() {
    // Step 9 of 40 on an idle server: what the skip before this job left behind.
    let recording = Recording::read("skip-n_iter3");
    let exchange = first(&recording);
    let baseline = recording.baseline(exchange.submitted).expect("polled before").clone();
    assert!(matches!(&baseline, Sample::Seen(seen) if seen.sampling_step == 9));
    let mut tracker = Tracker::new(Plan::new(&exchange.plan_input()), &Weights::default(), Some(&baseline));
    tracker.observe(Duration::from_millis(5), &baseline);
    let shown = tracker.progress(Duration::from_secs(9));
    assert_eq!((shown.fraction, shown.step, shown.source), (0.0, 0, Source::Held));

    // A stage that an exception left running.
    let recording = Recording::read("failures/exception-leaves-running");
    let second = recording.exchanges[1].clone();
    let baseline = recording.baseline(second.submitted).expect("polled before").clone();
    let mut tracker = Tracker::new(Plan::new(&second.plan_input()), &Weights::default(), Some(&baseline));
    for ms in 0..50 {
        tracker.observe(Duration::from_millis(ms), &baseline);
    }
    assert_eq!(tracker.progress(Duration::from_millis(50)).source, Source::Held);
    let polls = recording.thinned(&second, 0.25, 0);
    let Replay { shown, tracker } = replay(&recording, &second, &polls, &Weights::default());
    assert_eq!((tracker.passes_seen(), shown.last().expect("polled").1.step), (1, 4));
}

#[test]
fn a_stage_that_ran_before_the_post_is_never_ours() {
    let recording = Recording::read("concurrent-two");
    let second = recording.exchanges[1].clone();
    let polls = recording.thinned(&second, 0.0, 0);
    let Replay { shown, tracker } = replay(&recording, &second, &polls, &Weights::default());
    // The first job's answer came at 11.69 s, the second was posted at 0.5 s.
    let waiting = shown.iter().filter(|(at, _)| at.as_secs_f64() < 11.6 - 0.5);
    assert!(waiting.into_iter().all(|(_, shown)| shown.fraction == 0.0 && shown.source == Source::Held));
    assert_eq!(tracker.passes_seen(), 1);
    assert_eq!(shown.last().map(|(_, shown)| (shown.step, shown.steps)), Some((12, 12)));
}

#[test]
fn a_job_too_short_to_be_seen_stays_at_nothing() {
    let recording = Recording::read("txt2img-tiny");
    let exchange = first(&recording);
    let Replay { shown, tracker } =
        replay(&recording, &exchange, &recording.thinned(&exchange, 0.0, 0), &Weights::default());
    assert_eq!(tracker.passes_seen(), 0);
    assert!(shown.iter().all(|(_, shown)| shown.fraction == 0.0));
}

#[test]
fn interrupts_are_noticed_and_those_from_before_are_not() {
    for (name, expected) in [
        ("interrupt", true),
        ("interrupt-n_iter3", true),
        ("interrupt-vae-decode", true),
        ("failures/out-of-memory", true),
        ("failures/out-of-memory-before-first-step", true),
        ("model-switch-while-running", true),
        ("interrupt-while-idle", false),
        ("failures/out-of-memory-then-small", false),
        ("skip", false),
    ] {
        let recording = Recording::read(name);
        let exchange = first(&recording);
        for (spacing, skip) in THINNINGS {
            let polls = recording.thinned(&exchange, spacing, skip);
            let replay = replay(&recording, &exchange, &polls, &Weights::default());
            assert_eq!(replay.tracker.interrupted_seen(), expected, "{name} every {spacing} s from {skip}");
        }
    }
}

#[test]
fn silence_is_held_and_then_stalled() {
    let recording = Recording::read("failures/server-killed");
    let exchange = first(&recording);
    let polls = recording.thinned(&exchange, 0.0, 0);
    let mut tracker = replay(&recording, &exchange, &polls, &Weights::default()).tracker;
    let mut late = |seconds: u64| {
        tracker.observe(Duration::from_secs(seconds), &Sample::Missed);
        tracker.progress(Duration::from_secs(seconds))
    };
    let held = late(8);
    assert_eq!((held.source, held.stalled), (Source::Held, None));
    let stalled = late(60);
    assert!(
        stalled.stalled.is_some_and(|age| age > Duration::from_secs(55)) && stalled.eta.is_none(),
        "{stalled:?}"
    );
    assert_eq!(stalled.fraction.to_bits(), held.fraction.to_bits(), "an estimate never leaves its step");
}

#[test]
fn estimates_stay_within_the_step() {
    let recording = Recording::read("txt2img");
    let exchange = first(&recording);
    let polls = recording.thinned(&exchange, 0.0, 0);
    let half = &polls[..polls.len() / 2];
    let mut tracker = replay(&recording, &exchange, half, &Weights::default()).tracker;
    let at = Duration::from_secs_f64(half.last().expect("polled").at - exchange.submitted);
    let before = tracker.progress(at);
    let soon = tracker.progress(at + Duration::from_millis(150));
    let late = tracker.progress(at + Duration::from_secs(10));
    assert_eq!(late.source, Source::Held);
    assert!(soon.fraction >= before.fraction && late.fraction >= soon.fraction);
    assert!(late.fraction - before.fraction < 1.0 / 40.0, "{} to {}", before.fraction, late.fraction);
}
