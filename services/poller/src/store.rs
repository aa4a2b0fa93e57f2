//! Storing an attempt's images under keys that no other attempt can write.

use futures_util::StreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use stepcast_shared::ids::{ClaimToken, JobId};
use stepcast_shared::messages::{Output, image_url};
use stepcast_shared::trace::SpanExt as _;
use tracing::{Instrument as _, debug_span};

use crate::verifier::Image;

/// Stores images, and says where they are.
///
/// The claim's token is part of the key, so that a poller that has lost its claim cannot overwrite what its successor
/// stored.
pub async fn store_images(
    store: &dyn ObjectStore,
    job_id: JobId,
    attempt: u32,
    token: ClaimToken,
    images: Vec<Image>,
    partial: bool,
) -> object_store::Result<Vec<Output>> {
    if images.is_empty() {
        return Ok(Vec::new());
    }
    let span = debug_span!("store images", otel.kind = "client", images = images.len(), partial);
    let stored = put(store, job_id, attempt, token, images, partial).instrument(span.clone()).await;
    if stored.is_err() {
        span.fail("storage");
    }
    stored
}

async fn put(
    store: &dyn ObjectStore,
    job_id: JobId,
    attempt: u32,
    token: ClaimToken,
    images: Vec<Image>,
    partial: bool,
) -> object_store::Result<Vec<Output>> {
    let mut outputs = Vec::with_capacity(images.len());
    for (index, image) in images.into_iter().enumerate() {
        let key = format!("{job_id}/{attempt}-{token}/{index}.{}", image.extension);
        let bytes = image.bytes.len() as u64;
        store.put(&key.as_str().into(), PutPayload::from_bytes(image.bytes)).await?;
        outputs.push(Output {
            url: image_url(job_id, index),
            content_type: image.content_type.to_owned(),
            width: image.width,
            height: image.height,
            bytes,
            seed: image.seed,
            key,
            partial,
        });
    }
    Ok(outputs)
}

/// Whether the store holds nothing at all.
pub async fn is_empty(store: &dyn ObjectStore) -> bool {
    store.list(None).next().await.is_none()
}
