//! Every recorded answer through the verifier.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Value, json};
use stepcast_poller::{
    plan::{Plan, PlanInput, Size},
    verifier::{Answer, Evidence, Expected, Failure, Image, Verdict, verify},
};
use stepcast_shared::messages::ErrorCode::{
    self, BackendUnavailable, Cancelled, NoImages, OutOfMemory, Rejected, WrongSize,
};

use super::{
    answers::{answer, exchange, specimen},
    recordings::{Exchange, Recording, file, list},
};

/// Nobody of ours interrupted, nothing was seen, and the log was read and told nothing.
const UNDISTURBED: Evidence =
    Evidence { interrupted_by_us: false, interrupted_seen: false, log_says_out_of_memory: Some(false) };
const INTERRUPTED: Evidence = Evidence { interrupted_seen: true, ..UNDISTURBED };
const CANCELLED: Evidence = Evidence { interrupted_by_us: true, ..INTERRUPTED };
const LOG_UNREAD: Evidence = Evidence { log_says_out_of_memory: None, ..INTERRUPTED };
const LOG_TELLS: Evidence = Evidence { log_says_out_of_memory: Some(true), ..INTERRUPTED };

/// Exchanges that did not complete: recording, number of the exchange, evidence, code, whole images kept.
const FAILED: [(&str, usize, Evidence, ErrorCode, usize); 27] = [
    ("interrupt", 0, INTERRUPTED, WrongSize, 0),
    ("interrupt", 0, CANCELLED, Cancelled, 0),
    ("interrupt", 0, LOG_UNREAD, OutOfMemory, 0),
    ("interrupt-no-poll", 0, INTERRUPTED, WrongSize, 0),
    ("interrupt-no-poll", 0, UNDISTURBED, WrongSize, 0),
    ("interrupt-n_iter3", 0, INTERRUPTED, NoImages, 1),
    ("interrupt-n_iter3", 0, CANCELLED, Cancelled, 1),
    ("interrupt-vae-decode", 0, INTERRUPTED, NoImages, 0),
    ("interrupt-vae-decode", 0, CANCELLED, Cancelled, 0),
    ("concurrent-interrupt", 0, INTERRUPTED, WrongSize, 0),
    ("skip", 0, UNDISTURBED, NoImages, 0),
    ("skip-n_iter3", 0, UNDISTURBED, NoImages, 1),
    ("model-switch-while-running", 0, INTERRUPTED, NoImages, 0),
    ("failures/out-of-memory", 0, LOG_TELLS, OutOfMemory, 0),
    ("failures/out-of-memory", 0, LOG_UNREAD, OutOfMemory, 0),
    ("failures/out-of-memory", 0, INTERRUPTED, WrongSize, 0),
    ("failures/out-of-memory-before-first-step", 0, LOG_TELLS, OutOfMemory, 0),
    ("failures/out-of-memory-before-first-step", 0, LOG_UNREAD, OutOfMemory, 0),
    ("failures/out-of-memory-before-first-step", 0, INTERRUPTED, NoImages, 0),
    ("failures/server-killed", 0, UNDISTURBED, BackendUnavailable, 0),
    ("failures/server-killed", 0, CANCELLED, Cancelled, 0),
    ("failures/exception-leaves-running", 0, UNDISTURBED, BackendUnavailable, 0),
    ("control-no-units", 0, UNDISTURBED, BackendUnavailable, 0),
    ("control-img2img", 0, UNDISTURBED, Rejected, 0),
    ("control-img2img", 0, CANCELLED, Cancelled, 0),
    ("upscale-while-running", 1, UNDISTURBED, BackendUnavailable, 0),
    ("save-images", 0, INTERRUPTED, NoImages, 0),
];

/// What each case of `failures/requests.json` amounts to; [`None`] is completed.
const REQUESTS: [(&str, Option<ErrorCode>); 35] = [
    ("unknown sampler", Some(Rejected)),
    ("sampler omitted", None),
    ("sampler lower-case alias", None),
    ("unknown checkpoint in override_settings", None),
    ("sd_model_checkpoint field unknown", Some(NoImages)),
    ("set_checkpoint unknown", Some(NoImages)),
    ("GET checkpoint after", Some(NoImages)),
    ("txt2img after unknown checkpoint was selected", Some(NoImages)),
    ("restore checkpoint", Some(NoImages)),
    ("GET checkpoint after restore", Some(NoImages)),
    ("options: unknown key", Some(NoImages)),
    ("malformed JSON", Some(Rejected)),
    ("not JSON content-type", Some(Rejected)),
    ("empty body", Some(Rejected)),
    ("JSON array body", Some(Rejected)),
    ("wrong type: steps", Some(Rejected)),
    ("wrong type: width", Some(Rejected)),
    ("unknown field", None),
    ("force_task_id (A1111 field)", None),
    ("empty object", None),
    ("steps 0", None),
    ("steps negative", None),
    ("width 0", None),
    ("width negative", Some(NoImages)),
    ("width not a multiple of 8", None),
    ("n_iter 0", Some(BackendUnavailable)),
    ("batch_size 0", Some(BackendUnavailable)),
    ("prompt null", Some(BackendUnavailable)),
    ("unknown script_name", None),
    ("unknown upscaler in hires", None),
    ("img2img without init_images", Some(Rejected)),
    ("img2img with a bad image", Some(BackendUnavailable)),
    ("GET on txt2img", Some(Rejected)),
    ("unknown path", Some(Rejected)),
    ("history with unknown id", Some(NoImages)),
];

#[test]
fn every_exchange_amounts_to_what_it_was() {
    let (mut completed, mut failed) = (0, 0);
    for recording in Recording::all() {
        for (index, exchange) in
            recording.exchanges.iter().enumerate().filter(|(_, exchange)| exchange.done.is_some())
        {
            let name = &recording.name;
            let rows: Vec<_> = FAILED.iter().filter(|row| row.0 == name && row.1 == index).collect();
            for (.., evidence, code, kept) in &rows {
                let (failure, partial) = failed_as(verify(&expected(exchange), answer(exchange), evidence));
                assert_eq!(
                    (failure.code, partial.len()),
                    (*code, *kept),
                    "{name} {index} {evidence:?}: {failure:?}"
                );
                check(&failure);
                failed += 1;
            }
            // A request that sends no images cannot be found short of them, so that row is about its evidence only.
            if rows.is_empty() || name == "save-images" {
                let (images, info) =
                    completed_as(verify(&expected(exchange), answer(exchange), &UNDISTURBED), name);
                let wanted = if name == "save-images" { 0 } else { expected(exchange).images };
                assert_eq!(images.len(), wanted, "{name} {index}");
                assert!(info["all_seeds"].is_array(), "{name} {index}");
                completed += 1;
            }
        }
    }
    assert_eq!(failed, FAILED.len());
    assert!(completed > 110, "only {completed} completed");
}

#[test]
fn every_odd_request_amounts_to_what_it_was() {
    let recorded = file("failures/requests.json");
    let cases = list(&recorded["cases"]);
    assert_eq!(cases.len(), REQUESTS.len());
    for (case, (name, code)) in cases.iter().zip(REQUESTS) {
        assert_eq!(case["case"], name);
        let exchange = exchange(&case["request"], &case["response"]);
        let verdict = verify(&expected(&exchange), answer(&exchange), &UNDISTURBED);
        match code {
            None => drop(completed_as(verdict, name)),
            Some(code) => {
                let (failure, _) = failed_as(verdict);
                assert_eq!(failure.code, code, "{name}: {failure:?}");
                check(&failure);
            }
        }
    }
}

#[test]
fn refused_credentials_limits_and_a_wedged_server_are_told() {
    let auth = file("failures/auth.json");
    for case in list(&auth["cases"]).iter().filter(|case| case["response"]["status"] == 401) {
        let exchange = exchange(&case["request"], &case["response"]);
        let (failure, _) = failed_as(verify(&one(256), answer(&exchange), &UNDISTURBED));
        assert_eq!((failure.code, failure.retryable), (BackendUnavailable, true), "{failure:?}");
        check(&failure);
    }
    let let_in =
        list(&auth["cases"]).iter().find(|case| case["case"] == "txt2img, right password").expect("recorded");
    let exchange_let_in = exchange(&let_in["request"], &let_in["response"]);
    completed_as(verify(&one(256), answer(&exchange_let_in), &UNDISTURBED), "right password");

    let refused = file("failures/rate-limit-txt2img.json");
    let polls = file("failures/rate-limit-default.json");
    for row in list(&refused["refused"]).iter().chain([&polls["first_429"]]) {
        let (failure, _) =
            failed_as(verify(&one(256), answer(&exchange(&json!({"path": ""}), row)), &UNDISTURBED));
        assert_eq!((failure.code, failure.retryable), (BackendUnavailable, true), "{failure:?}");
        assert!(failure.message.contains("rate limit"), "{failure:?}");
    }

    let wedged = file("failures/wedged-after-model-switch.json");
    let posts = list(&wedged["steps"]).iter().filter(|step| step["path"] == "/sdapi/v1/txt2img");
    let verdicts = posts.map(|step| verify(&one(256), answer(&exchange(step, step)), &UNDISTURBED));
    let codes: Vec<_> = verdicts.map(code_of).collect();
    assert_eq!(codes, [Some(NoImages), Some(NoImages), None]);
}

#[test]
fn images_are_read_from_their_bytes() {
    let exchange = Recording::read("txt2img").exchanges.remove(0);
    let (images, _) = completed_as(verify(&expected(&exchange), answer(&exchange), &UNDISTURBED), "txt2img");
    let image = &images[0];
    assert_eq!(
        (image.content_type, image.extension, image.width, image.height),
        ("image/jpeg", "jpg", 512, 512)
    );
    assert_eq!((image.bytes.len(), image.seed), (131_094, Some(42)));
}

#[test]
fn seeds_are_those_of_the_images_that_came() {
    let seeds = |name: &str| {
        let exchange = Recording::read(name).exchanges.remove(0);
        match verify(&expected(&exchange), answer(&exchange), &UNDISTURBED) {
            Verdict::Completed { images, .. } | Verdict::Failed { partial: images, .. } => {
                images.iter().map(|image| image.seed).collect::<Vec<_>>()
            }
        }
    };
    assert_eq!(seeds("batch-n_iter2-size2"), [Some(42), Some(43), Some(44), Some(45)]);
    // The first iteration was skipped, and the one image left of three is that of the third seed.
    assert_eq!(seeds("skip-n_iter3"), [Some(44)]);
    assert_eq!(seeds("interrupt-n_iter3"), [Some(42)]);
}

#[test]
fn an_image_cut_short_is_no_image() {
    let exchange = Recording::read("txt2img").exchanges.remove(0);
    let whole = exchange.body["images"][0].as_str().expect("an image").to_owned();
    let mut cut = exchange.clone();
    for length in [0, 4, 48, whole.len() / 2 / 4 * 4, whole.len() - 4] {
        cut.body["images"][0] = whole[..length].into();
        let body = Bytes::from(cut.body.to_string());
        let (failure, partial) =
            failed_as(verify(&expected(&exchange), Answer::Http { status: 200, body }, &UNDISTURBED));
        assert_eq!((failure.code, partial.len()), (NoImages, 0), "{length} characters");
        assert!(failure.message.contains("cut short"), "{failure:?}");
    }
}

#[test]
fn data_uris_and_grids_ahead_are_tolerated() {
    let (grid, image) = (specimen(1024, 512), specimen(512, 512));
    let body = json!({
        "images": [grid, format!("data:image/jpeg;base64,{image}"), image.trim_end_matches('=')],
        "info": json!({"all_seeds": [7, 8], "index_of_first_image": 1}).to_string(),
    });
    let expected = Expected { images: 2, ..one(512) };
    let answer = Answer::Http { status: 200, body: Bytes::from(body.to_string()) };
    let (images, _) = completed_as(verify(&expected, answer, &UNDISTURBED), "a grid ahead");
    assert_eq!(images.iter().map(|image| image.seed).collect::<Vec<_>>(), [Some(7), Some(8)]);
}

#[test]
fn other_types_are_known_by_their_bytes() {
    let png = |end: &[u8]| {
        let size = [0, 0, 2, 0, 0, 0, 2, 0, 8, 2, 0, 0, 0, 1, 2, 3, 4];
        [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".as_slice(), &size, end].concat()
    };
    // A VP8X chunk holds the edges less one in three bytes each.
    let webp = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x01\0\xff\x01\0".as_slice();
    let verdict = |bytes: &[u8]| {
        let body = json!({"images": [STANDARD.encode(bytes)], "info": "{}"});
        verify(&one(512), Answer::Http { status: 200, body: Bytes::from(body.to_string()) }, &UNDISTURBED)
    };
    let type_of = |verdict| completed_as(verdict, "another type").0[0].content_type;
    assert_eq!(type_of(verdict(&png(b"\0\0\0\0IEND\xaeB\x60\x82"))), "image/png");
    assert_eq!(type_of(verdict(webp)), "image/webp");
    assert_eq!(code_of(verdict(&png(b"\0\0\0\x09IDAT"))), Some(NoImages));
    assert_eq!(code_of(verdict(&webp[..webp.len() - 1])), Some(NoImages));
    assert_eq!(code_of(verdict(b"GIF89a\0\x02\0\x02\0\0\0")), Some(NoImages), "a type that nobody asked for");
}

#[test]
fn an_allocation_failure_named_by_a_500_is_told() {
    let body =
        br#"{"error":"OutOfMemoryError","detail":"","body":"","errors":"CUDA out of memory."}"#.as_slice();
    let answer = Answer::Http { status: 500, body: Bytes::from_static(body) };
    assert_eq!(code_of(verify(&one(512), answer, &UNDISTURBED)), Some(OutOfMemory));
}

#[test]
fn no_model_is_said() {
    let recorded = file("failures/requests.json");
    let case =
        list(&recorded["cases"]).iter().find(|case| case["case"] == "sd_model_checkpoint field unknown");
    let case = case.expect("recorded");
    let exchange = exchange(&case["request"], &case["response"]);
    for images_sent in [true, false] {
        let expected = Expected { images_sent, ..one(256) };
        let (failure, _) = failed_as(verify(&expected, answer(&exchange), &UNDISTURBED));
        assert!(failure.code == NoImages && failure.message.contains("no model"), "{failure:?}");
    }
}

#[test]
fn an_unknown_size_completes_only_undisturbed() {
    let exchange = Recording::read("interrupt").exchanges.remove(0);
    let anything = Expected { sizes: Vec::new(), ..one(512) };
    completed_as(verify(&anything, answer(&exchange), &UNDISTURBED), "any size");
    let (failure, partial) = failed_as(verify(&anything, answer(&exchange), &INTERRUPTED));
    assert_eq!((failure.code, partial.len()), (NoImages, 0));
}

#[test]
fn what_is_not_json_is_not_the_server() {
    let body = Bytes::from_static(b"<html>Sign in</html>");
    let (failure, _) = failed_as(verify(&one(512), Answer::Http { status: 200, body }, &UNDISTURBED));
    assert_eq!((failure.code, failure.retryable), (BackendUnavailable, true));
}

/// Holds of every failure: words for a person, and an answer that is short and free of images.
fn check(failure: &Failure) {
    assert!(failure.message.ends_with('.') && failure.message.len() < 500, "{}", failure.message);
    assert_eq!(failure.retryable, !is_final(failure), "{failure:?}");
    if let Some(answer) = &failure.answer {
        let text = answer.to_string();
        assert!(text.len() <= 4096, "{} bytes", text.len());
        assert!(!text.contains("/9j/4AAQ"), "{text}");
    }
}

/// Retrying changes nothing about a rejected or cancelled job, nor about sizes that disagree without an interrupt.
fn is_final(failure: &Failure) -> bool {
    matches!(failure.code, Rejected | Cancelled)
        || (failure.code == WrongSize && !failure.message.contains("interrupted"))
}

fn completed_as(verdict: Verdict, name: &str) -> (Vec<Image>, Value) {
    match verdict {
        Verdict::Completed { images, info } => (images, info),
        Verdict::Failed { failure, .. } => panic!("{name}: {failure:?}"),
    }
}

fn failed_as(verdict: Verdict) -> (Failure, Vec<Image>) {
    match verdict {
        Verdict::Failed { failure, partial } => (failure, partial),
        Verdict::Completed { info, .. } => panic!("completed: {info}"),
    }
}

fn code_of(verdict: Verdict) -> Option<ErrorCode> {
    match verdict {
        Verdict::Completed { .. } => None,
        Verdict::Failed { failure, .. } => Some(failure.code),
    }
}

fn one(edge: u32) -> Expected {
    Expected { images: 1, sizes: vec![Size { width: edge, height: edge }], images_sent: true }
}

fn expected(exchange: &Exchange) -> Expected {
    let images_sent = exchange.request["send_images"].as_bool().unwrap_or(true);
    // A script by name may do anything to the size; the one that was asked for does not exist.
    let input = PlanInput { exact_size: true, ..exchange.plan_input() };
    Plan::new(&input).expected(images_sent)
}
