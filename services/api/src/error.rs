//! What can go wrong with a request, and what its client is told.

use axum::response::{IntoResponse, Response};
use stepcast_shared::ids::{BackendId, BatchId, JobId};
use stepcast_shared::messages::Status;
use stepcast_shared::problem::{FieldError, Problem};
use tracing::error;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The body is not what it should be.
    #[error("the body has {} faults", .0.len())]
    Invalid(Vec<FieldError>),
    /// The body did not arrive whole, or is not JSON at all.
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    /// The body is larger than allowed.
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    /// A path or query parameter cannot be read.
    #[error("{0}")]
    BadParameter(String),
    /// No such job.
    #[error("no job {0}")]
    JobNotFound(String),
    /// No such batch.
    #[error("no batch {0}")]
    BatchNotFound(BatchId),
    /// No such backend; those that are known.
    #[error("no backend {0}")]
    BackendNotFound(BackendId, Vec<String>),
    /// The job was removed for its age.
    #[error("job {0} has expired")]
    JobExpired(JobId),
    /// No such image.
    #[error("job {0} has no image {1}")]
    ImageNotFound(JobId, usize),
    /// No such part of an image.
    #[error("the image has {0} bytes")]
    RangeNotSatisfiable(u64),
    /// The job is not in a state for this.
    #[error("the job is {0}")]
    WrongState(Status),
    /// No job of the batch ended without its images.
    #[error("no job of batch {0} has failed or was cancelled")]
    NothingToRetry(BatchId),
    /// The key was used before, for something else.
    #[error("the idempotency key was used for another body")]
    KeyReused,
    /// Too much is waiting.
    #[error("{0} jobs are waiting")]
    QueueFull(i64),
    /// The database did not answer.
    #[error("the database did not answer")]
    Database(#[from] sqlx::Error),
    /// The image store did not answer.
    #[error("the image store did not answer")]
    Storage(#[from] object_store::Error),
}

/// Seconds after which a client may try again what failed for our own reasons.
const RETRY_AFTER: u64 = 2;

impl Error {
    /// What the client is told; our own detail stays in the log.
    pub fn problem(&self) -> Problem {
        match self {
            Self::Invalid(faults) => Problem::new(422, "invalid-request", "The request cannot be accepted")
                .detail(all(faults))
                .errors(faults.clone()),
            Self::NotJson(detail) => {
                Problem::new(400, "not-json", "The body is not JSON").detail(detail.clone())
            }
            Self::TooLarge(limit) => Problem::new(413, "too-large", "The body is too large")
                .detail(format!("A body may have at most {limit} bytes.")),
            Self::BadParameter(detail) => {
                Problem::new(400, "bad-parameter", "A parameter cannot be read").detail(detail.clone())
            }
            Self::JobNotFound(id) => {
                Problem::new(404, "job-not-found", "Job not found").detail(format!("There is no job {id}."))
            }
            Self::BatchNotFound(id) => Problem::new(404, "batch-not-found", "Batch not found")
                .detail(format!("There is no batch {id}.")),
            Self::BackendNotFound(id, known) => Problem::new(404, "backend-not-found", "Backend not found")
                .detail(match known.as_slice() {
                    [] => format!("No backend is called {id}; none has been heard of yet."),
                    known => format!("No backend is called {id}; known are {}.", known.join(", ")),
                }),
            Self::JobExpired(id) => Problem::new(410, "job-expired", "Job expired")
                .detail(format!("Job {id} ended too long ago to be kept.")),
            Self::ImageNotFound(..) => {
                Problem::new(404, "image-not-found", "Image not found").detail(sentence(self))
            }
            Self::RangeNotSatisfiable(_) => {
                Problem::new(416, "range-not-satisfiable", "No such range").detail(sentence(self))
            }
            Self::WrongState(status) => {
                Problem::new(409, "wrong-state", "The job is not in a state for this")
                    .detail(format!("The job is {status}."))
            }
            Self::NothingToRetry(_) => {
                Problem::new(409, "nothing-to-retry", "Nothing to retry").detail(sentence(self))
            }
            Self::KeyReused => Problem::new(409, "idempotency-key-reused", "Idempotency key reused")
                .detail("This Idempotency-Key came with another body before."),
            Self::QueueFull(waiting) => Problem::new(429, "queue-full", "Too many jobs are waiting")
                .detail(format!("{waiting} jobs are waiting; nothing was stored."))
                .retry_after(30),
            Self::Database(_) => Problem::new(503, "database-unavailable", "Try again later")
                .detail("The database did not answer.")
                .retry_after(RETRY_AFTER),
            Self::Storage(_) => Problem::new(503, "storage-unavailable", "Try again later")
                .detail("The image store did not answer.")
                .retry_after(RETRY_AFTER),
        }
    }
}

/// All faults of a body in one line.
pub fn all(faults: &[FieldError]) -> String {
    let faults: Vec<String> =
        faults.iter().map(|fault| format!("{}: {}", fault.pointer, fault.detail)).collect();
    faults.join("; ")
}

fn sentence(error: &Error) -> String {
    format!("{error}.")
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let problem = self.problem();
        if problem.status >= 500 {
            error!(error = &self as &dyn std::error::Error, "request failed");
        }
        problem.into_response()
    }
}
