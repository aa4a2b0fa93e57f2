//! The moments that a tracker notes, held against the recordings as they were polled ten times a second.

use std::time::Duration;

use stepcast_poller::{
    plan::Plan,
    tracker::{Seen, Tracker},
    weights::Weights,
};

use super::recordings::Recording;

const JOBS: [&str; 12] = [
    "txt2img",
    "txt2img-120-steps",
    "sampler-heun",
    "batch-n_iter3",
    "batch-size2",
    "batch-n_iter2-size2",
    "hires",
    "img2img",
    "save-images",
    "model-switch-field",
    "model-switch-override",
    "unload-then-job",
];

/// What is seen of the first job of a recording when it is polled with this spacing in seconds, and how long it took.
fn seen(recording: &Recording, spacing: f64, skip: usize) -> (Seen, Duration) {
    let exchange = &recording.exchanges[0];
    let plan = Plan::new(&exchange.plan_input());
    let mut tracker = Tracker::new(plan, &Weights::default(), recording.baseline(exchange.submitted));
    for poll in recording.thinned(exchange, spacing, skip) {
        tracker.observe(Duration::from_secs_f64((poll.at - exchange.submitted).max(0.0)), &poll.sample);
    }
    (tracker.seen(), exchange.took().expect("a normal job is answered"))
}

fn moments(seen: &Seen) -> [(&'static str, Option<Duration>); 4] {
    let Seen { loaded, first_step, sampled, decoded, .. } = *seen;
    [("loaded", loaded), ("first step", first_step), ("sampled", sampled), ("decoded", decoded)]
}

#[test]
fn a_job_goes_from_moment_to_moment() {
    for name in JOBS {
        let (seen, took) = seen(&Recording::read(name), 0.0, 0);
        let there: Vec<Duration> = moments(&seen).into_iter().filter_map(|(_, moment)| moment).collect();
        assert!(there.is_sorted(), "{name}: {seen:?}");
        assert!(there.last().is_some_and(|last| *last <= took), "{name}: {seen:?}");
        assert!(seen.first_step.is_some() && seen.sampled.is_some(), "{name}: {seen:?}");
        let loads = ["model-switch-field", "model-switch-override", "unload-then-job"].contains(&name);
        assert_eq!(seen.loaded.is_some(), loads, "{name}: {seen:?}");
    }
}

#[test]
fn fewer_polls_show_a_moment_later_by_no_more_than_is_said_and_never_earlier() {
    let mut compared = 0;
    for name in JOBS {
        let recording = Recording::read(name);
        let (exact, _) = seen(&recording, 0.0, 0);
        for (spacing, skip) in [(0.25, 0), (0.25, 1), (0.25, 2), (0.5, 1), (1.0, 0)] {
            let (seen, _) = seen(&recording, spacing, skip);
            for ((what, exact), (_, late)) in moments(&exact).into_iter().zip(moments(&seen)) {
                let (Some(exact), Some(late)) = (exact, late) else { continue };
                let context = format!("{what} of {name} every {spacing} s from {skip}: {exact:?}, {seen:?}");
                assert!(late >= exact, "{context}");
                assert!(late <= exact + seen.resolution, "{context}");
                compared += 1;
            }
        }
    }
    assert!(compared > 120, "only {compared} moments were compared");
}
