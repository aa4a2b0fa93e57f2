//! What holds whatever a server says.

use std::time::Duration;

use bytes::Bytes;
use proptest::{collection::vec, option, prelude::*};
use serde_json::json;
use stepcast_poller::{
    plan::{Hires, ModelChange, Plan, PlanInput, Size},
    sample::{Observation, Sample},
    tracker::Tracker,
    verifier::{Answer, Evidence, Expected, TransportKind, Verdict, verify},
    weights::{Cost, Weights},
};
use stepcast_shared::messages::ErrorCode;

const LABELS: [&str; 13] = [
    "",
    "Inference",
    "Inference",
    "VAE Decode",
    "Load model",
    "Base",
    "TE Encode",
    "Hires",
    "Upscale",
    "Detailer",
    "Save image",
    "Remove background",
    "scripts_txt2img",
];

/// First bytes of image types, and last ones.
const MAGIC: [&[u8]; 6] =
    [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x20\0\0\0WEBPVP8 ", b"GIF89a", b"BM", b""];
const ENDS: [&[u8]; 3] = [b"\xff\xd9", b"\0\0\0\0IEND\xaeB\x60\x82", b""];

fn sample() -> impl Strategy<Value = Sample> {
    let id = option::weighted(0.9, prop_oneof![Just(String::new()), "[a-e]"]);
    let label = proptest::sample::select(&LABELS);
    let counters = (0..40_u32, prop_oneof![Just(0), Just(8), Just(12), 0..40_u32, Just(u32::MAX)]);
    let batches = (0..5_u32, 0..5_u32);
    let seen =
        (id, label, counters, batches, any::<bool>()).prop_map(|(id, job, steps, batches, interrupted)| {
            Sample::Seen(Observation {
                id,
                job: job.to_owned(),
                sampling_step: steps.0,
                sampling_steps: steps.1,
                job_no: batches.0,
                job_count: batches.1,
                interrupted,
                ..Observation::default()
            })
        });
    prop_oneof![9 => seen, 1 => Just(Sample::Missed)]
}

fn plan_input() -> impl Strategy<Value = PlanInput> {
    let hires = (0..20_u32, 0.0..4.0_f64, 0..2000_u32, 0..2000_u32, option::of(0..3_u32)).prop_map(
        |(steps, scale, resize_x, resize_y, resize_mode)| Hires {
            steps,
            scale,
            resize_x,
            resize_y,
            resize_mode,
        },
    );
    let model =
        proptest::sample::select(&[ModelChange::None, ModelChange::Loads, ModelChange::LoadsAndRestores]);
    let counts = (0..40_u32, 0..5_u32, 0..3_u32);
    (counts, (0..2048_u32, 0..2048_u32), option::of(hires), any::<bool>(), model).prop_map(
        |((steps, n_iter, batch_size), (width, height), hires, detailer, model)| PlanInput {
            steps,
            n_iter,
            batch_size,
            width,
            height,
            hires,
            detailer,
            model,
            ..PlanInput::default()
        },
    )
}

proptest! {
    // A failing case is printed whole, so no file of seeds is kept beside the source.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn progress_grows_and_stays_below_one(
        input in plan_input(),
        baseline in option::of(sample()),
        samples in vec((0..20_000_u64, sample(), 0..5_000_u64), 0..120),
        learnt in vec(any::<u8>(), 0..3),
    ) {
        let plan = Plan::new(&input);
        let images = plan.images;
        let mut weights = Weights::default();
        for _ in learnt {
            let mut taught = Tracker::new(plan.clone(), &weights, None);
            for (at, sample, _) in &samples {
                taught.observe(Duration::from_millis(*at), sample);
            }
            weights.learn(&taught.finish(Duration::from_secs(30)));
            let stored = Weights::from_json(&weights.to_json()).seconds(Cost::Sampling);
            prop_assert!((stored / weights.seconds(Cost::Sampling) - 1.0).abs() < 1e-12);
        }
        let mut tracker = Tracker::new(plan, &weights, baseline.as_ref());
        let (mut fraction, mut step) = (0.0, 0);
        // Times come in any order: a clock that steps back must not.
        for (at, sample, later) in samples {
            let at = Duration::from_millis(at);
            tracker.observe(at, &sample);
            for at in [at, at + Duration::from_millis(later)] {
                let shown = tracker.progress(at);
                prop_assert!(shown.fraction.is_finite() && shown.fraction >= fraction && shown.fraction < 1.0);
                prop_assert!(shown.step >= step && shown.step <= shown.steps);
                prop_assert!(shown.image >= 1 && shown.image <= images);
                prop_assert!(shown.steps_per_second.is_none_or(|rate| rate.is_finite() && rate > 0.0));
                (fraction, step) = (shown.fraction, shown.step);
            }
        }
        tracker.finish(Duration::from_mins(1));
    }

    #[test]
    fn any_bytes_are_a_sample(bytes in vec(any::<u8>(), 0..200), text in ".{0,200}") {
        Sample::from_body(&bytes);
        Sample::from_body(text.as_bytes());
        Weights::from_json(&bytes);
    }

    #[test]
    fn any_bytes_get_a_verdict(
        bytes in vec(any::<u8>(), 0..300),
        status in any::<u16>(),
        images in 0..3_usize,
        flags in any::<(bool, bool, bool, Option<bool>)>(),
    ) {
        let expected = expected(images, flags.0);
        let evidence = evidence(flags.1, flags.2, flags.3);
        let verdict = verify(&expected, Answer::Http { status, body: Bytes::from(bytes.clone()) }, &evidence);
        settled(&verdict, &expected, evidence)?;
        let message = String::from_utf8_lossy(&bytes).into_owned();
        let verdict = verify(&expected, Answer::Transport { kind: TransportKind::Other, message }, &evidence);
        settled(&verdict, &expected, evidence)?;
    }

    #[test]
    fn any_images_get_a_verdict(
        magic in proptest::sample::select(&MAGIC),
        tail in vec(any::<u8>(), 0..200),
        end in proptest::sample::select(&ENDS),
        info in ".{0,60}",
        flags in any::<(bool, bool, bool, Option<bool>)>(),
    ) {
        use base64::Engine as _;
        let image = base64::engine::general_purpose::STANDARD.encode([magic, tail.as_slice(), end].concat());
        let body = json!({"images": [image, 7, null, &info], "info": info, "parameters": {"prompt": "x"}});
        let (expected, evidence) = (expected(1, flags.0), evidence(flags.1, flags.2, flags.3));
        let answer = Answer::Http { status: 200, body: Bytes::from(body.to_string()) };
        settled(&verify(&expected, answer, &evidence), &expected, evidence)?;
    }
}

fn expected(images: usize, images_sent: bool) -> Expected {
    Expected { images, sizes: vec![Size { width: 512, height: 512 }], images_sent }
}

fn evidence(
    interrupted_by_us: bool,
    interrupted_seen: bool,
    log_says_out_of_memory: Option<bool>,
) -> Evidence {
    Evidence { interrupted_by_us, interrupted_seen, log_says_out_of_memory }
}

/// Holds of every verdict.
fn settled(verdict: &Verdict, expected: &Expected, evidence: Evidence) -> Result<(), TestCaseError> {
    match verdict {
        Verdict::Completed { images, .. } => {
            prop_assert!(!evidence.interrupted_by_us);
            prop_assert!(images.len() == expected.images || !expected.images_sent);
        }
        Verdict::Failed { failure, partial } => {
            prop_assert!(partial.len() <= expected.images);
            prop_assert_eq!(failure.code == ErrorCode::Cancelled, evidence.interrupted_by_us);
            prop_assert!(failure.message.ends_with('.'));
            let answer = failure.answer.as_ref().map_or(0, |answer| answer.to_string().len());
            prop_assert!(answer <= 4096, "{} bytes", answer);
        }
    }
    Ok(())
}
