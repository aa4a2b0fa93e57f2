//! Publishes the messages of a scenario from a thread of its own, paced or as fast as the slowest client reads.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::net::RecvFlags;
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::subjects;

use crate::message::{self, PLACE_WIDTH, Template};
use crate::pace::{Pace, Window};

/// Messages that are written at once at most.
const BATCH: u64 = 128;
/// How long to wait for clients that are behind.
const BEHIND: Duration = Duration::from_micros(100);
/// Longest wait for a server to take the last write, before the connection ends.
const LAST_WRITE: Duration = Duration::from_millis(200);
/// How often the broker's pings are looked for; it sends one every two minutes, and one soon after the connect.
const LISTEN: Duration = Duration::from_secs(1);

/// What is published, where, and how fast.
#[derive(Debug)]
pub struct Plan {
    /// Jobs, taken in turn.
    pub jobs: Vec<JobId>,
    /// The message.
    pub template: Template,
    /// How fast.
    pub pace: Pace,
    /// Messages of one job that follow each other directly.
    pub burst: u64,
    /// Messages that the slowest client may be behind.
    pub window: u64,
    /// Where to.
    pub feed: Feed,
}

/// How messages reach a server.
#[derive(Clone, Debug)]
pub enum Feed {
    /// Published on NATS, core, at this port of this machine: what pollers do.
    Nats(u16),
    /// The same without headers, for clients that could make nothing of them.
    BareNats(u16),
    /// A POST for each message over one connection to this port, none waiting for the answer to another; for nchan.
    Post {
        /// Where.
        port: u16,
        /// To the one channel that everybody listens to, or to a channel for each job.
        to_all: bool,
    },
    /// Length, job id and message over one connection to this port, for servers that do not speak NATS: cheaper than
    /// any client of a broker.
    Records(u16),
}

/// What each client has seen, shared with the thread that reads for them: the number after the last message, or
/// `u64::MAX` for a client that holds nobody.
pub type Progress = Arc<[AtomicU64]>;

/// A running publisher; stopped when dropped.
#[derive(Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
    stream: TcpStream,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    published: AtomicU64,
}

impl Publisher {
    /// Connects, and begins.
    pub fn start(plan: Plan, progress: Progress) -> anyhow::Result<Self> {
        let stream = plan.feed.connect()?;
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name("publisher".to_owned()).spawn({
            let (shared, stream) = (Arc::clone(&shared), stream.try_clone()?);
            move || match run(plan, stream, &progress, &shared) {
                // It was told to end while it waited for a server that no longer reads.
                Err(_) if shared.stop.load(Relaxed) => Ok(()),
                result => result,
            }
        })?;
        Ok(Self { shared, stream, thread: Some(thread) })
    }

    /// Messages published so far.
    pub fn published(&self) -> u64 {
        self.shared.published.load(Relaxed)
    }

    /// Ends it; errors if it had failed before. What it has written still reaches the server.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.shared.stop.store(true, Relaxed);
        let thread = self.thread.take().context("stopped once")?;
        let asked = Instant::now();
        while !thread.is_finished() && asked.elapsed() < LAST_WRITE {
            std::thread::sleep(BEHIND);
        }
        if !thread.is_finished() {
            self.shared.end(&self.stream);
        }
        thread.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))?
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.shared.end(&self.stream);
    }
}

impl Shared {
    /// Has the thread end, also one that waits in a write.
    fn end(&self, stream: &TcpStream) {
        self.stop.store(true, Relaxed);
        // Fails if the server is gone, which ends it as well.
        let _ = stream.shutdown(Shutdown::Write);
    }
}

impl Feed {
    fn connect(&self) -> anyhow::Result<TcpStream> {
        let (Self::Nats(port) | Self::BareNats(port) | Self::Post { port, .. } | Self::Records(port)) = *self;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).context("the publisher cannot connect")?;
        stream.set_nodelay(true)?;
        match self {
            Self::Nats(_) | Self::BareNats(_) => greet(&mut stream)?,
            Self::Post { .. } => drain(stream.try_clone()?)?,
            Self::Records(_) => {}
        }
        Ok(stream)
    }

    /// One of each job's records, but for what the template fills in.
    fn prefix(&self, job: JobId, template: &Template) -> Vec<u8> {
        match self {
            Self::Nats(_) => {
                let subject = subjects::job(&Owner::anonymous(), job, template.lane().kind());
                let header = NATS_HEADER.len() + PLACE_WIDTH + NATS_HEADER_END.len();
                format!("HPUB {subject} {header} {}\r\n{NATS_HEADER}", header + template.len()).into_bytes()
            }
            Self::BareNats(_) => {
                let subject = subjects::job(&Owner::anonymous(), job, template.lane().kind());
                format!("PUB {subject} {}\r\n", template.len()).into_bytes()
            }
            Self::Post { to_all, .. } => {
                let channel = if *to_all { ALL.to_owned() } else { job.to_string() };
                let length = template.len();
                format!("POST /pub/{channel} HTTP/1.1\r\nHost: bench\r\nContent-Length: {length}\r\n\r\n")
                    .into_bytes()
            }
            Self::Records(_) => {
                let id = job.to_string();
                let length = u32::try_from(id.len() + template.len()).expect("messages are small");
                [&length.to_be_bytes()[..], id.as_bytes()].concat()
            }
        }
    }
}

/// The topic of those who want all jobs, where a server knows but topics.
pub const ALL: &str = "*";
const NATS_HEADER: &str = "NATS/1.0\r\nStepcast-Seq: ";
const NATS_HEADER_END: &str = "\r\n\r\n";

/// The greeting of NATS; the data path needs no more of a client than to write.
fn greet(stream: &mut TcpStream) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(
        b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"protocol\":1,\"echo\":false,\
          \"name\":\"bench-publisher\",\"lang\":\"rust\",\"version\":\"1\"}\r\nPING\r\n",
    )?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    // Other lines may come before and after.
    while !answer.windows(6).any(|six| six == b"PONG\r\n") {
        let read = stream.read(&mut part).context("NATS did not answer")?;
        ensure!(read > 0, "NATS refused: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&part[..read]);
    }
    Ok(())
}

/// Reads the answers to what is posted, all of which say the same, until the connection ends: a server that cannot
/// send its answers takes no further requests. One that refuses is found out by its clients, who hear nothing.
fn drain(mut stream: TcpStream) -> anyhow::Result<()> {
    std::thread::Builder::new().name("answers".to_owned()).spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
    })?;
    Ok(())
}

fn run(mut plan: Plan, mut stream: TcpStream, progress: &Progress, shared: &Shared) -> anyhow::Result<()> {
    // Otherwise a tick would come late by the system's own leisure.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    let jobs: Vec<([u8; 36], Vec<u8>)> = plan
        .jobs
        .iter()
        .map(|job| {
            let id = job.to_string().into_bytes().try_into().expect("an id has 36 characters");
            (id, plan.feed.prefix(*job, &plan.template))
        })
        .collect();
    let mut window = Window::new(plan.window);
    let mut out = Vec::new();
    let mut published = 0;
    let begun = Instant::now();
    let mut listened = begun;
    while !shared.stop.load(Relaxed) {
        let elapsed = begun.elapsed();
        let due = plan.pace.due(elapsed).saturating_sub(published);
        let open = window
            .open(published, || progress.iter().map(|seen| seen.load(Relaxed)).min().unwrap_or(u64::MAX));
        let batch = due.min(open).min(BATCH);
        if batch == 0 {
            let pause = if due == 0 { plan.pace.next(elapsed).saturating_sub(elapsed) } else { BEHIND };
            std::thread::sleep(pause);
            continue;
        }
        plan.template.stamp(message::now());
        for number in published..published + batch {
            let job = usize::try_from(number / plan.burst % jobs.len() as u64).expect("an index");
            encode(&mut plan.template, &plan.feed, &jobs[job], number, &mut out);
        }
        stream.write_all(&out).context("the publisher's connection broke")?;
        out.clear();
        published += batch;
        shared.published.store(published, Relaxed);
        if matches!(plan.feed, Feed::Nats(_) | Feed::BareNats(_)) && listened.elapsed() > LISTEN {
            listened = Instant::now();
            listen(&stream, &mut out)?;
        }
    }
    Ok(())
}

fn encode(
    template: &mut Template,
    feed: &Feed,
    (id, prefix): &([u8; 36], Vec<u8>),
    number: u64,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(prefix);
    template.fill(id, number);
    match feed {
        Feed::Nats(_) => {
            template.place(out);
            out.extend_from_slice(NATS_HEADER_END.as_bytes());
            out.extend_from_slice(template.text());
            out.extend_from_slice(b"\r\n");
        }
        Feed::BareNats(_) => {
            out.extend_from_slice(template.text());
            out.extend_from_slice(b"\r\n");
        }
        Feed::Post { .. } | Feed::Records(_) => out.extend_from_slice(template.text()),
    }
}

/// Answers the broker's pings with the next write, and fails on its complaints.
fn listen(stream: &TcpStream, out: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut buffer = [0_u8; 1024];
    match rustix::net::recv(stream, &mut buffer[..], RecvFlags::DONTWAIT) {
        Ok((read, _)) => {
            let said = String::from_utf8_lossy(&buffer[..read]);
            ensure!(!said.contains("-ERR"), "NATS complains: {said}");
            if said.contains("PING") {
                out.extend_from_slice(b"PONG\r\n");
            }
            Ok(())
        }
        Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(error) => bail!("the publisher's connection broke: {error}"),
    }
}
