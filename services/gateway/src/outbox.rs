//! What waits to be written to one client, and the writing of it.
//!
//! Two lanes. Events and answers are all sent, in order; if too many wait, the client is too slow and is closed.
//! Progress is state: the latest of each job replaces the one not yet sent, so it cannot pile up. Events go first,
//! and an event removes the older progress of its job, so that the order within a job holds across the lanes. Behind
//! both goes what is watched beside jobs, of each matter the latest.
//!
//! What arrives here is news: the hub drops what does not go beyond what it has handed out. Only while a snapshot is
//! taken are live messages held back here, and then those dropped that the snapshot has told.
//!
//! Whoever fills an outbox also writes it, by [`Outbox::flush`]: while the socket takes what is written, no task is
//! woken. Only a socket that is behind is left to its connection's own task, which waits until it takes more.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use stepcast_shared::ids::JobId;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::close::Close;
use crate::frame::JobFrame;
use crate::protocol::Jobs;
use crate::topics::{Matter, Topic};
use crate::ws::Wire;

mod lanes;
mod rates;
mod rounds;

use lanes::Lanes;
pub use rounds::{Batch, Round, Written};

/// Most frames in one write.
const BATCH: usize = 64;

/// Frames of one connection that follow each other within this time could leave together.
const SOON: Duration = Duration::from_millis(20);

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Events and answers.
    pub messages: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// A frame on its way out.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// The frame.
    pub wire: Wire,
    /// Its place in the event stream; 0 if it is not recorded.
    pub place: u64,
}

/// The queue of one connection; the hub fills it, and whoever filled it writes it.
#[derive(Debug)]
pub struct Outbox {
    inner: Mutex<Inner>,
    /// None if somebody takes the frames away by [`Outbox::next`].
    socket: Option<TcpStream>,
    /// Wakes the connection's own task.
    wanted: Notify,
    emptied: Notify,
}

#[derive(Debug)]
struct Inner {
    lanes: Lanes,
    phase: Phase,
    /// Stands in somebody's [`Round`], or is about to be flushed.
    dirty: bool,
    /// Frames that the socket did not take yet, the first of them from `offset` on.
    behind: Vec<Outgoing>,
    offset: usize,
    /// The goodbye, once it is the last of what is to be written.
    goodbye: Option<Close>,
    wake_at: Option<Instant>,
    written_at: Option<Instant>,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The socket takes what is written.
    Open,
    /// It has taken nothing since then.
    Behind(Instant),
    /// The goodbye is written.
    Over(Close),
    /// The peer is gone.
    Lost,
}

/// What a connection's task must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How far it is.
    pub phase: Phase,
    /// When held-back progress may go; flush then.
    pub wake_at: Option<Instant>,
}

impl Outbox {
    /// An empty outbox that is written to a socket.
    pub fn of_socket(bounds: Bounds, socket: TcpStream) -> Self {
        Self::new(bounds, Some(socket))
    }

    /// An empty outbox whose frames are taken by [`Self::next`].
    pub fn of_reader(bounds: Bounds) -> Self {
        Self::new(bounds, None)
    }

    fn new(bounds: Bounds, socket: Option<TcpStream>) -> Self {
        let inner = Inner {
            lanes: Lanes::new(bounds),
            phase: Phase::Open,
            dirty: false,
            behind: Vec::new(),
            offset: 0,
            goodbye: None,
            wake_at: None,
            written_at: None,
        };
        Self { inner: Mutex::new(inner), socket, wanted: Notify::new(), emptied: Notify::new() }
    }

    /// The socket, if it has one.
    pub fn socket(&self) -> Option<&TcpStream> {
        self.socket.as_ref()
    }

    /// Queues an answer of the gateway itself, or a control frame.
    pub fn answer(&self, wire: Wire) {
        self.lock().lanes.push(wire, 0);
    }

    /// Says that everything up to this place in the event stream has been queued. For outboxes without a socket, whose
    /// reader tells it to the client.
    pub fn mark(&self, place: u64) {
        self.lock().lanes.push(Wire::text(""), place);
    }

    /// Queues a message that goes beyond all that was told of its job, without writing it.
    #[cfg(any(test, fuzzing))]
    pub fn news(&self, frame: &JobFrame) {
        self.lock().lanes.news(frame);
    }

    /// Queues a message that may have been told, without writing it.
    #[cfg(any(test, fuzzing))]
    pub fn again(&self, frame: &JobFrame) {
        self.lock().lanes.again(frame);
    }

    /// Queues a message of a snapshot, ahead of the live ones that are held back for it.
    pub fn snapshot(&self, frame: &JobFrame) {
        self.lock().lanes.snapshot(frame);
    }

    /// Holds live messages of these jobs back, until [`Self::release`].
    pub fn hold(&self, jobs: &Jobs) {
        self.lock().lanes.hold(jobs);
    }

    /// Queues what was held back.
    pub fn release(&self) {
        self.lock().lanes.release();
    }

    /// Drops unsent progress of these jobs; they are no longer watched.
    pub fn forget(&self, jobs: &Jobs) {
        self.lock().lanes.forget(jobs);
    }

    /// Queues the latest of a matter beside jobs, behind everything about jobs and in place of what is not sent yet.
    pub fn latest(&self, matter: &Matter, wire: &Wire) {
        self.lock().lanes.latest(matter, wire);
    }

    /// Drops what is unsent of other topics; they are no longer watched.
    pub fn keep_latest_of(&self, topics: &BTreeSet<Topic>) {
        self.lock().lanes.keep_latest_of(topics);
    }

    /// The jobs that ended since the last call.
    pub fn take_ended(&self) -> Vec<JobId> {
        self.lock().lanes.take_ended()
    }

    /// Sends at most so many progress updates a second of each of these jobs; `None` for all there are.
    pub fn set_max_rate(&self, jobs: &Jobs, per_second: Option<f64>) {
        let interval = per_second.map(|rate| Duration::from_secs_f64(1.0 / rate));
        self.lock().lanes.set_min_interval(jobs, interval);
    }

    /// Ends the connection once what waits is written; nothing more is taken.
    pub fn close(&self, close: Close) {
        self.lock().lanes.close(close);
    }

    /// Writes what waits, as far as the socket takes it. Safe to call from anywhere, at any time.
    pub fn flush(&self) -> Written {
        let mut scratch = Vec::new();
        self.flush_with(&mut scratch, Instant::now())
    }

    /// How far it is.
    pub fn standing(&self) -> Standing {
        let inner = self.lock();
        Standing { phase: inner.phase, wake_at: inner.wake_at }
    }

    /// Whether the goodbye is written.
    pub fn is_over(&self) -> bool {
        matches!(self.lock().phase, Phase::Over(_))
    }

    /// Waits until the connection's task must look at [`Self::standing`] again. Cancel-safe.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Writes more now that the socket takes it, whatever it did before.
    pub fn resume(&self) -> Written {
        let mut inner = self.lock();
        if let Phase::Behind(_) = inner.phase {
            inner.phase = Phase::Open;
        }
        drop(inner);
        self.flush()
    }

    /// Waits until less than half of what may wait does, or the connection ends. Cancel-safe.
    pub async fn room(&self) {
        while !self.has_room() {
            let emptied = self.emptied.notified();
            self.flush();
            if self.has_room() {
                return;
            }
            emptied.await;
        }
    }

    /// Waits for frames and takes them, with the goodbye once nothing else is left.
    ///
    /// For outboxes without a socket. Not cancel-safe: frames that were taken are gone.
    pub async fn next(&self) -> (Vec<Outgoing>, Option<Close>) {
        loop {
            let wanted = self.wanted.notified();
            let mut taken = Vec::new();
            let left = {
                let mut inner = self.lock();
                inner.dirty = false;
                let left = inner.lanes.take(BATCH, &mut taken);
                self.tell_of_room(&inner);
                left
            };
            if !taken.is_empty() || left.close.is_some() {
                return (taken, left.close);
            }
            match left.wake_at {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at.into(), wanted).await;
                }
                None => wanted.await,
            }
        }
    }

    /// [`Self::flush`] with a list that is used again, at a time that was read before.
    fn flush_with(&self, scratch: &mut Vec<Outgoing>, now: Instant) -> Written {
        let mut written = Written::default();
        let mut inner = self.lock();
        inner.dirty = false;
        let Some(socket) = &self.socket else {
            if !inner.lanes.is_empty() {
                self.wanted.notify_one();
            }
            return written;
        };
        if inner.phase != Phase::Open {
            return written;
        }
        let woken_at = inner.wake_at.take();
        while inner.phase == Phase::Open {
            inner.fill(scratch);
            if scratch.is_empty() {
                break;
            }
            let mut offset = std::mem::take(&mut inner.offset);
            match write(socket, scratch, &mut offset, &mut written) {
                Ok(()) => inner.phase = inner.goodbye.map_or(Phase::Open, Phase::Over),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    inner.behind.append(scratch);
                    inner.offset = offset;
                    inner.phase = Phase::Behind(Instant::now());
                }
                Err(_) => inner.phase = Phase::Lost,
            }
        }
        if written.frames > 0 {
            let soon =
                inner.written_at.replace(now).is_some_and(|at| now.saturating_duration_since(at) < SOON);
            written.joining = written.frames - u64::from(!soon);
        }
        self.tell_of_room(&inner);
        if inner.phase != Phase::Open || inner.wake_at != woken_at {
            self.wanted.notify_one();
        }
        written.conflated = inner.lanes.take_conflated();
        written
    }

    fn has_room(&self) -> bool {
        let inner = self.lock();
        inner.lanes.has_room() || matches!(inner.phase, Phase::Over(_) | Phase::Lost)
    }

    fn tell_of_room(&self, inner: &Inner) {
        if inner.lanes.has_room() || inner.phase == Phase::Lost {
            self.emptied.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no code panics while it holds this lock")
    }
}

impl Inner {
    /// Moves what is to be written next into `frames`: what the socket left, or else what waits, or else the goodbye.
    fn fill(&mut self, frames: &mut Vec<Outgoing>) {
        frames.clear();
        if !self.behind.is_empty() {
            // Kept no longer: few connections are behind, and most of those only once.
            *frames = std::mem::take(&mut self.behind);
            return;
        }
        let left = self.lanes.take(BATCH, frames);
        self.wake_at = left.wake_at;
        if let Some(close) = left.close {
            self.goodbye = Some(close);
            frames.push(Outgoing { wire: Wire::close(close), place: 0 });
        }
    }
}

/// Writes frames until all are written or the socket takes no more, and removes those that are written whole.
fn write(
    socket: &TcpStream,
    frames: &mut Vec<Outgoing>,
    offset: &mut usize,
    written: &mut Written,
) -> io::Result<()> {
    let mut first = 0;
    let outcome = loop {
        if first == frames.len() {
            break Ok(());
        }
        match write_some(socket, &frames[first..], *offset) {
            Ok(bytes) => {
                written.writes += 1;
                let mut left = bytes + *offset;
                while first < frames.len() && left >= frames[first].wire.frame().len() {
                    left -= frames[first].wire.frame().len();
                    first += 1;
                    written.frames += 1;
                }
                *offset = left;
            }
            Err(error) => break Err(error),
        }
    };
    frames.drain(..first);
    outcome
}

/// One call to the system, for the frames from `offset` bytes into the first of them on.
fn write_some(socket: &TcpStream, frames: &[Outgoing], offset: usize) -> io::Result<usize> {
    // The usual case at a moderate rate, and the system takes one slice more cheaply than a list of one.
    if let [frame] = frames {
        return socket.try_write(&frame.wire.frame()[offset..]);
    }
    let mut slices = [IoSlice::new(&[]); BATCH];
    let mut count = 0;
    for (slice, frame) in slices.iter_mut().zip(frames) {
        *slice = IoSlice::new(frame.wire.frame());
        count += 1;
    }
    slices[0].advance(offset);
    socket.try_write_vectored(&slices[..count])
}

#[cfg(test)]
mod tests;
