//! Turns the answer of a POST into completed or a classified failure.
//!
//! A 200 is only a claim: interrupted, out of memory and without a model all answer 200, with no image or with a
//! preview in its place, and nothing in `info` marks it. So images are counted, checked for being whole, and measured
//! from their own bytes; what the answer says about itself is never asked.
//!
//! Two causes cannot be told apart on the wire: the recordings show that a person's interrupt and a failed allocation
//! give the same answers and raise the same flag. Only the server's log knows. If it could not be read, an interrupt
//! that was not ours is taken for the allocation, because that is the cause that a retry elsewhere can help.

mod answer;
mod image;

use bytes::Bytes;
use serde_json::Value;
use stepcast_shared::messages::ErrorCode;

pub use self::image::Image;
use self::{answer::Body, image::Found};
pub use crate::plan::Expected;

/// How a POST ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// With an HTTP response.
    Http {
        /// Status code.
        status: u16,
        /// The whole body.
        body: Bytes,
    },
    /// Without one.
    Transport {
        /// What happened to the connection.
        kind: TransportKind,
        /// The client's own words about it.
        message: String,
    },
}

/// Why there was no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportKind {
    /// Nobody listens.
    Refused,
    /// The connection broke; a killed server looks like this.
    Reset,
    /// No response in time.
    TimedOut,
    /// Anything else.
    Other,
}

/// What else is known about an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// We interrupted the job, because it was cancelled.
    pub interrupted_by_us: bool,
    /// The interrupt flag was seen raised while the job ran.
    pub interrupted_seen: bool,
    /// Whether the server's log tells of a failed allocation; [`None`] if it could not be read.
    pub log_says_out_of_memory: Option<bool>,
}

/// What an answer amounts to.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Everything that was asked for is there.
    Completed {
        /// The images in order, grids left out.
        images: Vec<Image>,
        /// The server's description of what it did; a string if it is not JSON.
        info: Value,
    },
    /// Something is not.
    Failed {
        /// What, and whether to try again.
        failure: Failure,
        /// Whole images of the right size that came nevertheless.
        partial: Vec<Image>,
    },
}

/// A classified failure.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Its class.
    pub code: ErrorCode,
    /// A sentence for a person.
    pub message: String,
    /// Whether another attempt, elsewhere if possible, makes sense.
    pub retryable: bool,
    /// The server's own answer, at most 4 KiB, with images cut out.
    pub answer: Option<Value>,
}

/// Judges an answer. Never fails and never panics, whatever the bytes.
pub fn verify(expected: &Expected, answer: Answer, evidence: &Evidence) -> Verdict {
    let (failure, partial) = match answer {
        Answer::Transport { kind, message } => (unreachable_server(kind, &message), Vec::new()),
        Answer::Http { status, body } => {
            let body = Body::parse(&body);
            if (200..300).contains(&status) {
                match judge(expected, &body, *evidence) {
                    Ok((images, info)) if !evidence.interrupted_by_us => {
                        return Verdict::Completed { images, info };
                    }
                    Ok((images, _)) => (cancelled(), images),
                    Err(failed) => *failed,
                }
            } else {
                (refused(status, &body, *evidence), Vec::new())
            }
        }
    };
    // Whatever came back, a job that we interrupted ends as cancelled.
    let failure =
        if evidence.interrupted_by_us { Failure { answer: failure.answer, ..cancelled() } } else { failure };
    Verdict::Failed { failure, partial }
}

type Images = Vec<Image>;

fn judge(
    expected: &Expected,
    body: &Body,
    evidence: Evidence,
) -> Result<(Images, Value), Box<(Failure, Images)>> {
    let code = ErrorCode::BackendUnavailable;
    if !body.is_json {
        let message =
            "The server answered success with something that is not JSON, so it may be no SD.Next server.";
        let failure = Failure { answer: body.shortened(), ..failure(code, message.to_owned(), true) };
        return Err(Box::new((failure, Vec::new())));
    }
    let found = Found::search(body, &expected.sizes);
    let info = body.info();
    // Without sizes to compare, the flag is the only thing that tells a preview from an image.
    let suspect = evidence.interrupted_seen || evidence.log_says_out_of_memory == Some(true);
    let enough = if expected.images_sent {
        found.right.len() >= expected.images && !(suspect && expected.sizes.is_empty())
    } else {
        !suspect && body.lists_images() && !body.lacks_info()
    };
    if enough {
        let mut images = found.right;
        images.truncate(expected.images);
        return Ok((images, info));
    }
    let (code, message, retryable) = shortfall(expected, &found, body, evidence);
    let failure = Failure { answer: body.shortened(), ..failure(code, message, retryable) };
    let mut partial = if expected.sizes.is_empty() && suspect { Vec::new() } else { found.right };
    partial.truncate(expected.images);
    Err(Box::new((failure, partial)))
}

/// Names what is missing from a 200.
fn shortfall(
    expected: &Expected,
    found: &Found,
    body: &Body,
    evidence: Evidence,
) -> (ErrorCode, String, bool) {
    let wanted = expected.images;
    let got = found.right.len();
    match evidence.log_says_out_of_memory {
        Some(true) => return (ErrorCode::OutOfMemory, "The server ran out of memory.".to_owned(), true),
        None if evidence.interrupted_seen => {
            let message = "The server stopped the job, most likely because it ran out of memory; somebody pressing \
                           interrupt on the server's own page looks the same.";
            return (ErrorCode::OutOfMemory, message.to_owned(), true);
        }
        _ => {}
    }
    if found.total == 0 && body.lacks_info() {
        let message = "The server rendered nothing and said nothing: it has no model loaded, or does not know the \
                       checkpoint that was asked for.";
        return (ErrorCode::NoImages, message.to_owned(), true);
    }
    let stopped =
        if evidence.interrupted_seen { "; the job was interrupted on the server itself" } else { "" };
    if found.total >= wanted && wanted > 0 && found.broken == 0 && !found.wrong.is_empty() {
        let size = found.wrong[0];
        let right = expected.sizes.first().copied().unwrap_or(size);
        let message = format!(
            "The server sent an image of {}x{} pixels in place of {}x{}{stopped}.",
            size.width, size.height, right.width, right.height
        );
        // A stopped job hands out its preview, and may go through next time. Otherwise the sizes disagree for good.
        return (ErrorCode::WrongSize, message, evidence.interrupted_seen);
    }
    let message = match (found.total, found.broken) {
        (0, _) => format!("The server answered success without any image{stopped}."),
        (_, 0) => format!("The server sent {got} of {wanted} images{stopped}."),
        (_, broken) => {
            format!(
                "The server sent {got} of {wanted} images whole, and {broken} cut short or unreadable{stopped}."
            )
        }
    };
    (ErrorCode::NoImages, message, true)
}

/// Classifies an HTTP error.
fn refused(status: u16, body: &Body, evidence: Evidence) -> Failure {
    let said = body.said();
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    let (code, message, retryable) = match status {
        401 | 403 => {
            let message = format!("The server refused our credentials ({status}){said}.");
            (ErrorCode::BackendUnavailable, message, true)
        }
        // The limit is checked after the work, so the image of a refused request is rendered and lost.
        429 => {
            let message = format!("The server's rate limit was hit{said}.");
            (ErrorCode::BackendUnavailable, message, true)
        }
        400..500 => {
            (ErrorCode::Rejected, format!("The server rejected the request ({status}){said}."), false)
        }
        // SD.Next hides a failed allocation behind a 200; A1111 and Forge answer 500 and name it.
        500..600 if evidence.log_says_out_of_memory == Some(true) || body.names_out_of_memory() => {
            (ErrorCode::OutOfMemory, "The server ran out of memory.".to_owned(), true)
        }
        500..600 => (
            ErrorCode::BackendUnavailable,
            format!("The server failed on the request ({status}){said}."),
            true,
        ),
        _ => {
            let message = format!("The server answered with the unexpected status {status}{said}.");
            (ErrorCode::BackendUnavailable, message, true)
        }
    };
    Failure { answer: body.shortened(), ..failure(code, message, retryable) }
}

fn unreachable_server(kind: TransportKind, message: &str) -> Failure {
    let what = match kind {
        TransportKind::Refused => "The server does not accept connections",
        TransportKind::Reset => "The server closed the connection before it answered",
        TransportKind::TimedOut => "The server did not answer in time",
        TransportKind::Other => "The server could not be reached",
    };
    let message = answer::first_line(message);
    let message = if message.is_empty() { format!("{what}.") } else { format!("{what}: {message}.") };
    failure(ErrorCode::BackendUnavailable, message, true)
}

fn cancelled() -> Failure {
    failure(ErrorCode::Cancelled, "The job was cancelled.".to_owned(), false)
}

fn failure(code: ErrorCode, message: String, retryable: bool) -> Failure {
    Failure { code, message, retryable, answer: None }
}
