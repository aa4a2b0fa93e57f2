//! Accepting jobs: all or none, in one transaction with their `queued` events.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use stepcast_shared::events::LifecycleEvent;
use stepcast_shared::ids::{BatchId, JobId, Owner};
use stepcast_shared::job::{INPUT_PREFIX, JobRequest};
use stepcast_shared::messages::{JobMessage, Queued, Status};
use stepcast_shared::problem::FieldError;
use stepcast_shared::rpc::{Accepted, AcceptedUrls};
use stepcast_shared::trace::{SpanExt as _, TraceContext};
use tracing::{Span, debug_span};

use crate::db::idempotency::{self, FirstAnswer};
use crate::db::{inputs, jobs, outbox};
use crate::error::Error;
use crate::images;
use crate::request;
use crate::state::AppState;

/// What a client sent, and how.
pub struct Submission<'a> {
    pub owner: &'a Owner,
    /// The bodies, each with its place in the whole body.
    pub bodies: Vec<(String, Value)>,
    pub batch_id: Option<BatchId>,
    pub idempotency_key: Option<&'a str>,
}

/// What was accepted, in the order in which it was sent.
#[derive(Debug, Serialize, Deserialize)]
pub struct Batch {
    pub batch_id: Option<BatchId>,
    pub jobs: Vec<Accepted>,
}

/// Checks and stores jobs, and tries to publish their `queued` events for a moment.
///
/// An error means that nothing was stored.
pub async fn accept(state: &AppState, submission: Submission<'_>) -> Result<Batch, Error> {
    let Submission { owner, bodies, batch_id, idempotency_key } = submission;
    let key = idempotency_key.map(|key| Key { key, body_hash: hash(&bodies) });
    let mut drafts = Vec::with_capacity(bodies.len());
    for (pointer, body) in bodies {
        drafts.push(draft(state, owner, &pointer, body).await?);
    }
    store(state, owner, drafts, batch_id, key).await
}

/// What a client calls its submit, so that it can repeat it.
pub struct Key<'a> {
    key: &'a str,
    body_hash: String,
}

/// Stores checked jobs, and tries to publish their `queued` events for a moment.
///
/// An error means that nothing was stored.
pub async fn store(
    state: &AppState,
    owner: &Owner,
    drafts: Vec<Draft>,
    batch_id: Option<BatchId>,
    key: Option<Key<'_>>,
) -> Result<Batch, Error> {
    let now = state.db.now().await?;

    let mut transaction = state.db.begin().await?;
    let mut waiting = state.waiting.count(&mut transaction).await?;
    let mut accepted = Vec::with_capacity(drafts.len());
    for draft in &drafts {
        let JobRequest { pool, priority, .. } = &draft.request;
        let position = u64::try_from(waiting.ahead(pool, *priority)).unwrap_or(0) + 1;
        waiting.add(pool, *priority);
        accepted.push(draft.answer(position));
    }
    if let Some(Key { key, body_hash }) = key {
        let batch = Batch { batch_id, jobs: accepted.clone() };
        let answer = serde_json::to_string(&batch).expect("an answer holds only what JSON can say");
        let first = FirstAnswer { body_hash, answer };
        let earlier =
            idempotency::keep_or_find(&mut transaction, state.db.dialect, owner, key, &first).await?;
        if let Some(earlier) = earlier {
            // The first answer may belong to a turn that shares this commit: until then it is not kept.
            transaction.commit().await?;
            return replay(&earlier, &first.body_hash);
        }
    }
    if waiting.all() > state.limits.max_waiting {
        return Err(Error::QueueFull(waiting.all() - i64::try_from(drafts.len()).unwrap_or(0)));
    }
    let mut events = Vec::with_capacity(drafts.len());
    let mut creating = Vec::new();
    for (draft, answer) in drafts.iter().zip(&accepted) {
        let span = draft.creating(drafts.len() > 1);
        let event = span.in_scope(|| draft.queued(owner, answer.position));
        let message = std::str::from_utf8(&event.payload).expect("an envelope is JSON");
        let job = jobs::NewJob {
            id: draft.id,
            owner,
            request: &draft.request,
            params: &draft.params_text,
            batch_id,
            created_at: now,
            message,
            trace: event.trace.as_ref(),
        };
        jobs::insert(&mut transaction, &job).await?;
        outbox::insert(&mut transaction, state.db.dialect, &event).await?;
        events.push(event);
        if !span.is_disabled() {
            creating.push(span);
        }
    }
    transaction.commit().await?;
    drop(creating);

    for draft in &drafts {
        state.waiting.accepted(&draft.request.pool, draft.request.priority);
    }
    metrics::counter!("stepcast_jobs_accepted_total").increment(accepted.len() as u64);
    state.publisher.publish_promptly(events).await;
    Ok(Batch { batch_id, jobs: accepted })
}

/// A job that is checked and not yet stored.
pub struct Draft {
    id: JobId,
    request: JobRequest,
    /// The request as sent, input images replaced.
    params: Value,
    params_text: String,
}

/// Checks one body, which stands at `pointer` of what was sent, and stores the images that lie in it.
pub async fn draft(state: &AppState, owner: &Owner, pointer: &str, mut body: Value) -> Result<Draft, Error> {
    let mut request = request::parse(&body, pointer, &state.limits).map_err(Error::Invalid)?;
    store_inputs(state, owner, pointer, &mut request).await?;
    if let Value::Object(fields) = &mut body {
        if fields.get("init_images").is_some_and(|images| !images.is_null()) {
            fields.insert("init_images".to_owned(), request.init_images.clone().into());
        }
        if let Some(mask) = &request.mask {
            fields.insert("mask".to_owned(), mask.clone().into());
        }
    }
    let params_text = body.to_string();
    request::check_event_size(&params_text, pointer).map_err(|fault| Error::Invalid(vec![fault]))?;
    Ok(Draft { id: JobId::mint(), request, params: body, params_text })
}

impl Draft {
    fn answer(&self, position: u64) -> Accepted {
        Accepted {
            job_id: self.id,
            delivery_id: self.id,
            status: Status::Pending,
            position,
            urls: AcceptedUrls::of(self.id),
        }
    }

    /// The span of its making, which its whole life goes on from. Many that come in one request have a trace each, which
    /// only says where it comes from: a trace is read as the life of one job.
    fn creating(&self, is_one_of_many: bool) -> Span {
        let JobRequest { pool, priority, .. } = &self.request;
        let span = debug_span!("create job", otel.kind = "producer", job_id = %self.id, %pool, ?priority);
        if is_one_of_many { span.linked(TraceContext::current().as_ref()).continues(None) } else { span }
    }

    fn queued(&self, owner: &Owner, position: u64) -> LifecycleEvent {
        let message = JobMessage::Queued(Queued {
            job_id: self.id,
            status: Status::Pending,
            attempt: 0,
            seq: 0,
            params: self.params.clone(),
            position: Some(position),
            priority: self.request.priority,
            pool: self.request.pool.clone(),
            label: self.request.label.clone(),
        });
        LifecycleEvent::new(owner.clone(), message, outbox::mint_author(), 0)
    }
}

/// Stores inline images and checks references, so that the request holds `input:<id>` alone.
async fn store_inputs(
    state: &AppState,
    owner: &Owner,
    pointer: &str,
    request: &mut JobRequest,
) -> Result<(), Error> {
    let mut faults = Vec::new();
    let mut inline = Vec::new();
    let mut seen = BTreeSet::new();
    let places = (0..request.init_images.len()).map(|index| format!("{pointer}/init_images/{index}"));
    let places: Vec<String> = places.chain([format!("{pointer}/mask")]).collect();
    for (place, image) in places.iter().zip(request.init_images.iter_mut().chain(request.mask.as_mut())) {
        if let Some(id) = image.strip_prefix(INPUT_PREFIX) {
            let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !is_id || (seen.insert(id.to_owned()) && !inputs::exists(state.db.read(), owner, id).await?) {
                faults.push(FieldError::new(place, format!("there is no input image {id}")));
            }
            continue;
        }
        match images::decode_inline(image).and_then(|bytes| Ok((images::inspect(&bytes)?, bytes))) {
            Ok((input, bytes)) => {
                *image = format!("{INPUT_PREFIX}{}", input.id);
                inline.push((input, bytes));
            }
            Err(error) => faults.push(FieldError::new(place, error.to_string())),
        }
    }
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }
    for (input, bytes) in inline {
        keep_input(state, owner, &input, bytes).await?;
    }
    Ok(())
}

/// Stores one input image and notes whose it is.
pub async fn keep_input(
    state: &AppState,
    owner: &Owner,
    input: &inputs::Input,
    bytes: bytes::Bytes,
) -> Result<(), Error> {
    images::store(&*state.images, input, bytes).await?;
    let mut transaction = state.db.begin().await?;
    inputs::insert(&mut transaction, state.db.dialect, owner, input).await?;
    transaction.commit().await?;
    Ok(())
}

fn replay(earlier: &FirstAnswer, body_hash: &str) -> Result<Batch, Error> {
    if earlier.body_hash != body_hash {
        return Err(Error::KeyReused);
    }
    Ok(serde_json::from_str(&earlier.answer).expect("the answer column holds what accept writes"))
}

/// A hash of the bodies that does not depend on the order of their fields: `serde_json` sorts them.
fn hash(bodies: &[(String, Value)]) -> String {
    let mut hash = Sha256::new();
    for (pointer, body) in bodies {
        hash.update(pointer);
        hash.update(body.to_string());
    }
    images::hex(&hash.finalize())
}
