//! Images in a bucket, over the whole system; `.ci/s3` starts a server and names it in the usual variables.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use stepcast_tests::check;
use stepcast_tests::client::Http;
use stepcast_tests::nats::NatsServer;
use stepcast_tests::process::binary;
use stepcast_tests::proxy::{Mode, Proxy};
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::{Setup, Stack};
use stepcast_tests::wait::{until, within};
use tokio::process::Command;
use url::Url;

use crate::outage::{assert_image, assert_try_later, says, small, upload};

/// Bound on an answer while the bucket does not answer: one request to it may take half a minute.
const ANSWERED_WITHIN: Duration = Duration::from_secs(50);

/// The server that `.ci/s3` has started; `None`, with a word about it, if it has not.
#[expect(clippy::disallowed_methods, reason = "a test has no command line of its own")]
fn endpoint() -> Option<Url> {
    let Ok(url) = std::env::var("AWS_ENDPOINT_URL") else {
        eprintln!("SKIPPED: nothing was tested on a bucket; `make soak` does it");
        return None;
    };
    Some(url.parse().unwrap())
}

fn on_bucket(prefix: &str, settings: &[(&'static str, String)]) -> Setup {
    Setup {
        images_url: Some(format!("s3://stepcast/{prefix}")),
        api: settings.to_vec(),
        poller: settings.to_vec(),
        ..Setup::default()
    }
}

/// Keys of the bucket below a prefix, as the server lists them.
async fn listed(endpoint: &Url, prefix: &str) -> usize {
    let server = Http::to(&format!("{}:{}", endpoint.host_str().unwrap(), endpoint.port().unwrap()));
    let list = server.get(&format!("/stepcast?list-type=2&prefix={prefix}/")).await;
    assert_eq!(list.status, 200);
    String::from_utf8_lossy(&list.bytes).matches("<Key>").count()
}

#[tokio::test]
async fn a_job_on_a_bucket_is_rendered_fetched_and_expired() {
    let Some(endpoint) = endpoint() else { return };
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let short =
        [("STEPCAST_SWEEP_EVERY", "300ms"), ("STEPCAST_RETAIN", "5s"), ("STEPCAST_UNREFERENCED_AFTER", "3s")];
    let short = short.map(|(name, value)| (name, value.to_owned()));
    let stack = Stack::start_on(on_bucket("whole", &short), &[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let input = upload(&http).await;
    assert_eq!(input.status, 201, "{}", input.json);
    let mut body = small("on a bucket");
    body["init_images"] = json!([format!("input:{}", input.json["input_id"].as_str().unwrap())]);
    body["batch_size"] = json!(2);
    let id = http.submit(&body).await;
    let job = http.ended(&id).await;
    assert_eq!(job["images"].as_array().map(Vec::len), Some(2), "{job}");
    assert_image(&http, &job).await;
    assert_eq!(listed(&endpoint, "whole").await, 3, "two images and an input");

    let path = format!("/generation/jobs/{id}/images/1");
    let whole = http.get(&path).await;
    assert_eq!(check::decoded_size(&whole.bytes), (64, 64));
    let part = http.send(Method::GET, &path, "".into(), &[("range", "bytes=10-19")]).await;
    assert_eq!((part.status.as_u16(), &part.bytes[..]), (206, &whole.bytes[10..20]));
    let known = whole.headers["etag"].to_str().unwrap();
    assert_eq!(http.send(Method::GET, &path, "".into(), &[("if-none-match", known)]).await.status, 304);
    assert!(!stack.images().exists(), "nothing is kept in a folder");

    until("the job has expired", async || (http.get(&path).await.status == 410).then_some(())).await;
    until("its objects are gone", async || (listed(&endpoint, "whole").await == 0).then_some(())).await;
}

#[tokio::test]
async fn a_bucket_that_is_away_is_told_within_a_bound_and_waited_for() {
    let Some(endpoint) = endpoint() else { return };
    let address = format!("{}:{}", endpoint.host_str().unwrap(), endpoint.port().unwrap());
    let link = Proxy::to(&address).await.unwrap();
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let behind = [("AWS_ENDPOINT_URL", format!("http://{}", link.address()))];
    let mut stack = Stack::start_on(on_bucket("away", &behind), &[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let before = http.ended(&http.submit(&small("before")).await).await;
    assert_image(&http, &before).await;

    for mode in [Mode::Cut, Mode::Stall] {
        link.set(mode);
        let asked = Instant::now();
        assert_try_later(&upload(&http).await, "storage-unavailable");
        assert!(asked.elapsed() < ANSWERED_WITHIN, "{mode:?}: {:?}", asked.elapsed());
        let asked = Instant::now();
        assert_try_later(&http.get(before["images"][0].as_str().unwrap()).await, "storage-unavailable");
        assert!(asked.elapsed() < ANSWERED_WITHIN, "{mode:?}: {:?}", asked.elapsed());
    }
    let id = http.submit(&small("meanwhile")).await;
    says(&mut stack.poller, "images not stored yet").await;
    assert_eq!(http.job(&id).await["status"], "running");
    link.set(Mode::Pass);
    let job = http.ended(&id).await;
    assert_image(&http, &job).await;
    assert_eq!((&job["attempt"], sim.truth().renders_started), (&json!(1), 2), "{job}");
    assert_eq!(upload(&http).await.status, 201);
}

#[tokio::test]
async fn a_doctor_tries_a_bucket_and_leaves_nothing_in_it() {
    let Some(endpoint) = endpoint() else { return };
    let nats = NatsServer::start().await.unwrap();
    let look = async |images: &str, endpoint: &str| {
        let mut doctor = Command::new(binary("stepcast"));
        doctor.args(["doctor", "--as", "api", "--json", "--images-url", images]).kill_on_drop(true);
        doctor.env("STEPCAST_NATS_URL", nats.url()).env("AWS_ENDPOINT_URL", endpoint);
        let output = within("the doctor comes to an end", doctor.output()).await.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, well) = look("s3://stepcast/doctor", endpoint.as_str()).await;
    assert!(code == Some(0) && well.contains("can be written, read and emptied"), "{well}");
    assert_eq!(listed(&endpoint, "doctor").await, 0);
    let (code, none) = look("s3://another/doctor", endpoint.as_str()).await;
    assert!(code == Some(1) && none.contains("nothing can be written"), "{none}");
    let (code, away) = look("s3://stepcast/doctor", "http://127.0.0.1:1").await;
    assert!(code == Some(1) && away.contains("AWS_ENDPOINT_URL"), "{away}");
}
