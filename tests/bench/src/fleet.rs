//! Thousands of clients in one thread: sockets in an epoll, one shared read buffer, frames counted where they lie.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::client::{Client, Heard, Hello};
use crate::histogram::Histogram;
use crate::message::{self, Template};
use crate::publisher::Progress;

/// Sockets looked at per turn.
const EVENTS: usize = 1024;
/// From a refusal to the next try.
const AGAIN: Duration = Duration::from_millis(200);
/// Bytes that a narrow client takes in before it reads.
const NARROW: usize = 4 * 1024;
/// And once it reads on.
const WIDE: usize = 1024 * 1024;
/// Connections from one address: below the number of ports that a system gives out.
const PER_ADDRESS: usize = 20_000;

/// What the clients have received.
#[derive(Debug)]
pub struct Tally {
    /// Published messages that arrived.
    pub delivered: u64,
    /// Their age on arrival.
    pub latency: Histogram,
    /// Their bytes.
    pub bytes: u64,
    /// From the start of opening to when a client had all that it asked for.
    pub opening: Histogram,
    /// Messages that clients which read late were never sent.
    pub missed: u64,
    /// Times that a client had to try again.
    pub refused: u64,
    /// Connections that ended for good.
    pub ended: usize,
    /// Why the last of them did.
    pub reason: String,
}

/// What became of clients that stopped reading and then read on.
#[derive(Debug, Default)]
pub struct Fate {
    /// The server had closed them.
    pub closed: usize,
    /// They got to the newest message.
    pub caught_up: usize,
    /// They were sent no more, and are not at the newest.
    pub behind: usize,
    /// Messages left out before one that came.
    pub missed: u64,
    /// Why the last was closed.
    pub reason: String,
}

/// All clients of one server.
pub struct Fleet {
    epoll: OwnedFd,
    address: SocketAddr,
    template: Template,
    clients: Vec<Client>,
    progress: Progress,
    events: Vec<Event>,
    buffer: Vec<u8>,
    /// Clients to connect, none before its time.
    waiting: VecDeque<(Instant, usize)>,
    /// A client that is refused comes back.
    persistent: bool,
    /// Clients that read late, and the number that each expects next.
    slow: BTreeMap<usize, u64>,
    narrow: usize,
    begun: Instant,
    opening: usize,
    ready: usize,
    /// What was counted since it was last cleared.
    pub tally: Tally,
}

impl Fleet {
    /// Clients that will say these words to the server at `address`; nothing is connected yet.
    pub fn new(address: SocketAddr, template: Template, hellos: Vec<Hello>) -> anyhow::Result<Self> {
        let progress = hellos.iter().map(|_| AtomicU64::new(0)).collect::<Arc<[_]>>();
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            address,
            template,
            clients: hellos.into_iter().map(Client::new).collect(),
            progress,
            events: Vec::with_capacity(EVENTS),
            buffer: Vec::new(),
            waiting: VecDeque::new(),
            persistent: false,
            slow: BTreeMap::new(),
            narrow: 0,
            begun: Instant::now(),
            opening: 0,
            ready: 0,
            tally: Tally::new(),
        })
    }

    /// What each client has seen, for the publisher.
    pub fn progress(&self) -> Progress {
        Arc::clone(&self.progress)
    }

    /// From now on a client that is refused, or cut off before it has all that it asked for, tries again.
    pub fn persist(&mut self) {
        self.persistent = true;
    }

    /// Connects all clients, at most `at_once` at a time, until each has all that it asked for first.
    ///
    /// Errors if one is cut off, unless it may try again, or if it takes longer than `patience`.
    pub fn open(&mut self, at_once: usize, patience: Duration) -> anyhow::Result<()> {
        self.begun = Instant::now();
        let deadline = self.begun + patience;
        self.waiting = (0..self.clients.len()).map(|index| (self.begun, index)).collect();
        (self.opening, self.ready) = (0, 0);
        self.tally.opening.clear();
        while self.ready < self.clients.len() {
            while self.opening < at_once
                && let Some((_, index)) = self.waiting.pop_front_if(|(from, _)| *from <= Instant::now())
            {
                self.connect(index)?;
                self.opening += 1;
            }
            self.turn(Duration::from_millis(50))?;
            ensure!(self.tally.ended == 0, "a client was cut off: {}", self.tally.reason);
            if Instant::now() > deadline {
                let stuck = self.clients.iter().find(|client| !client.is_ready());
                bail!(
                    "{} of {} clients were ready in {patience:?}; one {}",
                    self.ready,
                    self.clients.len(),
                    stuck.map(Client::describe).unwrap_or_default()
                );
            }
        }
        Ok(())
    }

    /// Reads what comes for so long.
    pub fn run(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.turn(left)?;
        }
    }

    /// Counts from nothing again.
    pub fn clear(&mut self) {
        self.tally.delivered = 0;
        self.tally.bytes = 0;
        self.tally.latency.clear();
    }

    /// Gives every connection up, with a reset.
    pub fn cut(&mut self) {
        self.clients.iter_mut().for_each(Client::close);
    }

    /// These clients stop reading; they hold the publisher no longer.
    pub fn pause(&mut self, clients: Range<usize>) -> anyhow::Result<()> {
        for index in clients {
            if let Some(socket) = self.clients[index].socket() {
                epoll::delete(&self.epoll, socket)?;
            }
            self.slow.insert(index, self.progress[index].swap(u64::MAX, Relaxed));
        }
        Ok(())
    }

    /// Those that had stopped read again, and nothing else, until each has seen all that was published, has been cut
    /// off, or has heard nothing for so long. What they read is not counted.
    pub fn resume(&mut self, published: u64, patience: Duration) -> anyhow::Result<Fate> {
        let (mut fate, mut heard) = (Fate::default(), Instant::now());
        for &index in self.slow.keys() {
            if let Some(socket) = self.clients[index].socket() {
                // Whoever reads on is slow no more.
                sockopt::set_socket_recv_buffer_size(socket, WIDE)?;
                epoll::add(&self.epoll, socket, EventData::new_u64(index as u64), EventFlags::IN)?;
            }
        }
        let behind = |fleet: &Self| {
            let mut slow = fleet.slow.iter();
            slow.any(|(index, next)| *next < published && fleet.clients[*index].socket().is_some())
        };
        let mut seen = 0;
        while behind(self) && heard.elapsed() < patience {
            self.turn(Duration::from_millis(50))?;
            let now = self.slow.values().sum();
            if now != seen {
                (seen, heard) = (now, Instant::now());
            }
        }
        for (index, next) in &self.slow {
            match self.clients[*index].socket() {
                None => fate.closed += 1,
                Some(_) if *next >= published => fate.caught_up += 1,
                Some(_) => fate.behind += 1,
            }
        }
        fate.missed = self.tally.missed;
        fate.reason.clone_from(&self.tally.reason);
        Ok(fate)
    }

    /// The last `count` clients get a small receive buffer, so that what they do not read stays with the server.
    pub fn narrow(&mut self, count: usize) {
        self.narrow = count;
    }

    fn connect(&mut self, index: usize) -> anyhow::Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
            .context("no socket; is the limit of open files too low?")?;
        // Closed with a reset, so that no port is kept waiting.
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        if index >= self.clients.len() - self.narrow {
            sockopt::set_socket_recv_buffer_size(&socket, NARROW)?;
        }
        if let Some(from) = u8::try_from(index / PER_ADDRESS).ok().filter(|from| *from > 0) {
            rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::new(127, 0, 1, from), 0))?;
        }
        match rustix::net::connect(&socket, &self.address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => bail!("cannot connect to {}: {error}", self.address),
        }
        epoll::add(&self.epoll, &socket, EventData::new_u64(index as u64), EventFlags::OUT)?;
        self.clients[index].connecting(socket);
        Ok(())
    }

    /// Handles what is ready, waiting at most `patience` (whole milliseconds, at least one) for something.
    fn turn(&mut self, patience: Duration) -> anyhow::Result<()> {
        let millis = i64::try_from(patience.as_millis()).unwrap_or(1_000).clamp(1, 1_000);
        let timeout = Timespec { tv_sec: millis / 1_000, tv_nsec: millis % 1_000 * 1_000_000 };
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for sockets"),
        }
        for at in 0..self.events.len() {
            let Event { data, flags } = self.events[at];
            let index = usize::try_from(data.u64()).expect("we wrote an index");
            self.handle(index, flags)?;
        }
        Ok(())
    }

    fn handle(&mut self, index: usize, flags: EventFlags) -> anyhow::Result<()> {
        let client = &mut self.clients[index];
        let Some(socket) = client.socket() else { return Ok(()) };
        if flags.contains(EventFlags::OUT) {
            epoll::modify(&self.epoll, socket, EventData::new_u64(index as u64), EventFlags::IN)?;
            if let Err(reason) = client.connected() {
                self.end(index, reason);
            }
            return Ok(());
        }
        let (template, tally, seen) = (&self.template, &mut self.tally, &self.progress[index]);
        let mut slow = self.slow.get_mut(&index);
        let now = message::now();
        let mut single = |payload: &[u8]| {
            let Some(message) = template.read(payload) else { return false };
            if let Some(expected) = &mut slow {
                tally.missed += message.number.saturating_sub(**expected);
                **expected = message.number + 1;
                return true;
            }
            tally.delivered += 1;
            tally.bytes += payload.len() as u64;
            tally.latency.add(message::age(message.sent, now));
            seen.store(message.number + 1, Relaxed);
            true
        };
        let heard = client.read(&mut self.buffer, |payload| {
            single(payload)
                || template.in_batch(payload).map(|batch| batch.for_each(|it| _ = single(it))).is_some()
        });
        match heard {
            Ok(Heard::Nothing) => {}
            Ok(Heard::Ready) => {
                let waited = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.tally.opening.add(waited);
                self.ready += 1;
                self.opening -= 1;
            }
            Err(reason) => self.end(index, reason),
        }
        Ok(())
    }

    fn end(&mut self, index: usize, reason: String) {
        let client = &mut self.clients[index];
        if self.persistent && !client.is_ready() {
            self.tally.refused += 1;
            self.opening -= 1;
            self.waiting.push_back((Instant::now() + AGAIN, index));
        } else {
            self.tally.ended += 1;
            // A client that is gone holds nobody.
            self.progress[index].store(u64::MAX, Relaxed);
        }
        self.tally.reason = reason;
        client.close();
    }
}

impl Tally {
    fn new() -> Self {
        Self {
            delivered: 0,
            latency: Histogram::new(),
            bytes: 0,
            opening: Histogram::new(),
            missed: 0,
            refused: 0,
            ended: 0,
            reason: String::new(),
        }
    }
}
