//! `POST /sdapi/v1/txt2img` and `img2img`: from a body to a job and from its reply to a response.

use std::sync::Arc;

use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use serde_json::json;
use tokio::sync::oneshot;

use crate::answers::{http_exception, json_response};
use crate::gate;
use crate::job::Job;
use crate::render::{Reply, render};
use crate::requests::{self, Kind};
use crate::sim::Sim;

/// Bodies carry images, but not without end.
const LARGEST_BODY: usize = 256 * 1024 * 1024;
/// What a render costs against the rate limit.
const COST: u32 = 5;

pub(crate) async fn txt2img(State(sim): State<Arc<Sim>>, request: Request) -> Response {
    generate(sim, Kind::Txt2img, request).await
}

pub(crate) async fn img2img(State(sim): State<Arc<Sim>>, request: Request) -> Response {
    generate(sim, Kind::Img2img, request).await
}

async fn generate(sim: Arc<Sim>, kind: Kind, request: Request) -> Response {
    sim.lock().counters.posts_received += 1;
    let connection = gate::connection(&request);
    let client = gate::address(connection.as_ref());
    let is_json = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.to_ascii_lowercase().contains("json"));
    let Ok(body) = to_bytes(request.into_body(), LARGEST_BODY).await else {
        return json_response(
            StatusCode::BAD_REQUEST,
            &json!({"detail": "There was an error parsing the body"}),
        );
    };
    let dialect = sim.config().dialect;
    let mut fields = match requests::parse(kind, is_json, &body) {
        Ok(fields) => fields,
        Err(problems) => return json_response(StatusCode::UNPROCESSABLE_ENTITY, &problems),
    };
    let task = dialect.adapt(kind == Kind::Img2img, &mut fields, &body);
    drop(body);
    let Ok(worker) = sim.workers.clone().acquire_owned().await else {
        return http_exception(StatusCode::SERVICE_UNAVAILABLE, "closing");
    };
    let job = match Job::new(kind, fields, dialect) {
        Ok(job) => job,
        Err(refusal) => return *refusal,
    };
    let parameters = job.parameters.clone();
    // Without a name of its own a task gets one, as there.
    let number = sim.lock().counters.posts_received;
    let task = task.unwrap_or_else(|| format!("task({}-{number})", kind.name()));
    sim.tell(|tasks| tasks.queue(&task));
    // The render outlives a client that goes away, and keeps its worker.
    let (answer, answered) = oneshot::channel();
    let renderer = sim.clone();
    sim.tasks.spawn(async move {
        let rendering = render(&renderer, job, &task, connection);
        if let Some(reply) = renderer.connections.run_until_cancelled(rendering).await {
            let _ = answer.send(reply);
        }
        drop(worker);
    });
    let Ok(reply) = answered.await else {
        return http_exception(StatusCode::SERVICE_UNAVAILABLE, "closing");
    };
    if !sim.admit(client, kind.path(), COST) {
        return gate::too_many(client, kind.path());
    }
    match reply {
        Reply::Images { images, info } => {
            json_response(StatusCode::OK, &json!({"images": images, "parameters": parameters, "info": info}))
        }
        Reply::Exception(name, message) => dialect.exception(name, message),
        Reply::Status(code) => {
            dialect.http_exception(StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY), "simulated")
        }
    }
}
