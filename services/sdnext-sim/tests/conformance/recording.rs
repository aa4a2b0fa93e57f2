//! Recordings, and what of two runs can be compared.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::server::Observed;

/// Labels that last long enough to be seen in every run.
const LASTING: [&str; 3] = ["Load model", "Inference", "VAE Decode"];

#[derive(Debug, Deserialize)]
pub(crate) struct Recording {
    pub(crate) exchanges: Vec<Exchange>,
    #[serde(default)]
    pub(crate) progress: Option<Vec<Sample>>,
    #[serde(default)]
    pub(crate) history: Vec<(String, String, Vec<String>)>,
    #[serde(default)]
    pub(crate) request: Value,
    #[serde(default)]
    pub(crate) fetched: Vec<Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Exchange {
    pub(crate) path: String,
    pub(crate) request: Value,
    pub(crate) status: u16,
    /// Width and height of each image of the answer.
    #[serde(default)]
    pub(crate) images: Vec<(usize, usize)>,
    #[serde(default)]
    pub(crate) parameters: Value,
    #[serde(default)]
    pub(crate) info: Option<String>,
    #[serde(default)]
    pub(crate) body: Value,
}

/// One poll of `/progress`: id, job, progress, step, steps, interrupted, skipped.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Sample(
    pub(crate) Value,
    pub(crate) String,
    pub(crate) f64,
    pub(crate) u32,
    pub(crate) u32,
    pub(crate) bool,
    pub(crate) bool,
);

impl Sample {
    pub(crate) fn new(body: &Value) -> Self {
        let state = &body["state"];
        let count = |name: &str| u32::try_from(state[name].as_u64().expect("a count")).expect("a small one");
        Self(
            body["id"].clone(),
            state["job"].as_str().expect("a label").to_owned(),
            body["progress"].as_f64().expect("a number"),
            count("sampling_step"),
            count("sampling_steps"),
            state["interrupted"].as_bool().expect("a flag"),
            state["skipped"].as_bool().expect("a flag"),
        )
    }

    pub(crate) fn job(&self) -> &str {
        &self.1
    }

    pub(crate) fn step(&self) -> u32 {
        self.3
    }
}

/// A stage that lasted, as polls saw it.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) job: String,
    pub(crate) samples: Vec<Sample>,
}

pub(crate) fn load<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The lasting stages of a run, told apart by their id.
pub(crate) fn stages(samples: &[Sample]) -> Vec<Seen> {
    let mut stages: Vec<Seen> = Vec::new();
    for sample in samples.iter().filter(|sample| LASTING.contains(&sample.job())) {
        match stages.last_mut() {
            Some(last) if last.samples[0].0 == sample.0 => last.samples.push(sample.clone()),
            _ => stages.push(Seen { job: sample.1.clone(), samples: vec![sample.clone()] }),
        }
    }
    stages
}

/// The lasting stages that the history says began, in order; those that came and went at once are left out.
pub(crate) fn begun(history: &[Value]) -> Vec<(Value, String)> {
    let lasted = |id: &Value| {
        let end = history.iter().find(|row| row["id"] == *id && row["op"] == "end");
        end.is_none_or(|row| row["duration"].as_f64() > Some(0.0))
    };
    let begins = history.iter().filter(|row| row["op"] == "begin" && lasted(&row["id"]));
    begins
        .filter_map(|row| {
            let job =
                LASTING.iter().find(|job| job.to_lowercase() == row["job"].as_str().unwrap_or_default())?;
            Some((row["id"].clone(), (*job).to_owned()))
        })
        .collect()
}

/// Asserts that `here` went through the stages of `there`, that polls showed each climbing as it should, and that the
/// last poll showed the same.
///
/// A busy machine may make polls miss a stage, so which stages there were is taken from the history; what was polled
/// must belong to them.
pub(crate) fn assert_same_course(there: &[Sample], here: &Observed) {
    let recorded = stages(there);
    let begun = begun(&here.history);
    let labels: Vec<_> = recorded.iter().map(|stage| stage.job.clone()).collect();
    assert_eq!(labels, begun.iter().map(|(_, job)| job.clone()).collect::<Vec<_>>(), "order of stages");
    let mut last = None;
    for observed in stages(&here.samples) {
        let id = &observed.samples[0].0;
        let index =
            begun.iter().position(|(begun, _)| begun == id).expect("polled stages are in the history");
        assert!(Some(index) > last, "stages come one after the other");
        last = Some(index);
        assert_eq!(recorded[index].job, observed.job);
        let steps = |stage: &Seen| stage.samples.iter().map(|sample| sample.4).max();
        if let (Some(recorded @ 1..), Some(steps @ 1..)) = (steps(&recorded[index]), steps(&observed)) {
            assert_eq!(recorded, steps, "steps of {}", observed.job);
        }
        assert_climbs(&observed);
    }
    let (recorded, observed) = (there.last().expect("polled"), here.samples.last().expect("polled"));
    assert_eq!(recorded.job(), observed.job(), "last label");
    assert_eq!((recorded.5, recorded.6), (observed.5, observed.6), "flags that linger");
    assert_eq!(recorded.3 == 0, observed.3 == 0, "last step: {recorded:?}, {observed:?}");
    assert_eq!(recorded.4, observed.4, "last steps: {recorded:?}, {observed:?}");
}

/// Both counters are 0 until the first step is done; then progress is step of steps, in two decimals, and only grows.
fn assert_climbs(stage: &Seen) {
    for pair in stage.samples.windows(2) {
        assert!(pair[0].2 <= pair[1].2, "progress fell within a stage: {pair:?}");
    }
    for Sample(_, job, progress, step, steps, ..) in &stage.samples {
        assert_eq!(*step == 0, *steps == 0, "{job} shows step {step} of {steps}");
        let exact = if *steps == 0 { 0.0 } else { f64::from(*step) / f64::from(*steps) };
        assert!((progress - exact).abs() <= 0.005 + 1e-9, "{job} shows {progress} at step {step} of {steps}");
        let cents = progress * 100.0;
        assert!((cents - cents.round()).abs() < 1e-6, "two decimals: {progress}");
    }
}

/// Asserts that the answer `body` carries what the recorded one did.
pub(crate) fn assert_same_answer(recorded: &Exchange, status: u16, body: &Value) {
    assert_eq!(recorded.status, status, "{body}");
    let Some(recorded_info) = &recorded.info else {
        assert_eq!(&recorded.body, body);
        return;
    };
    let sizes: Vec<_> = body["images"].as_array().expect("a list").iter().map(image_size).collect();
    assert_eq!(recorded.images, sizes, "images");
    assert_same_info(
        recorded_info,
        body["info"].as_str().expect("a text"),
        !recorded.request["seed"].is_null(),
    );
    assert_eq!(recorded.parameters, body["parameters"]);
}

/// Compares two `info` texts, but for what is random; seeds only where the request named one.
pub(crate) fn assert_same_info(recorded: &str, observed: &str, seeded: bool) {
    if recorded.is_empty() {
        assert_eq!(observed, "");
        return;
    }
    let parse = |text: &str| {
        let mut info: Value = serde_json::from_str(text).expect("JSON in a text");
        let fields = info.as_object_mut().expect("an object");
        let random = ["subseed", "all_subseeds", "job_timestamp"];
        let by_seed = ["seed", "all_seeds", "infotexts"];
        for name in random.into_iter().chain(by_seed.into_iter().filter(|_| !seeded)) {
            assert!(fields.insert(name.to_owned(), Value::Null).is_some(), "no {name}");
        }
        if let Some(texts) = info["infotexts"].as_array_mut() {
            for text in texts {
                *text = Value::from(without_details(text.as_str().expect("a text")));
            }
        }
        info
    };
    assert_eq!(parse(recorded), parse(observed));
}

/// Cuts the hash of an init image and the place in a batch, whose count is off in recorded jobs that were cut short.
fn without_details(text: &str) -> String {
    let text = text.split(", Index: ").next().unwrap_or_default();
    match text.split_once("Init image hash: ") {
        Some((before, after)) => format!("{before}Init image hash{}", after.get(8..).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Width and height of an image of an answer, which must decode.
pub(crate) fn image_size(image: &Value) -> (usize, usize) {
    let bytes = decode(image.as_str().expect("a text"));
    let mut decoder = zune_jpeg::JpegDecoder::new(std::io::Cursor::new(&bytes));
    decoder.decode().expect("a picture that decodes");
    let size = imagesize::blob_size(&bytes).expect("a known format");
    (size.width, size.height)
}

pub(crate) fn decode(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).expect("bare base64")
}
