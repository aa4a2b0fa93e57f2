//! The floor: records in, frames out, on one thread and with blocking sockets. Nothing that delivers over TCP and
//! system calls does less.
//!
//! A client says a job's id, or `*`, and a newline; from then on it gets that job's messages as WebSocket frames,
//! without a handshake. A record of the feed is a length, a job's id (36 bytes) and a message.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use anyhow::Context as _;

use crate::websocket::{self, TEXT};

const ID: usize = 36;
const ALL: &[u8] = b"*";

/// Sockets by the job that they want.
type Topics = Arc<Mutex<HashMap<Vec<u8>, Topic>>>;

#[derive(Default)]
struct Topic {
    sockets: Vec<TcpStream>,
    /// Frames not yet written.
    pending: Vec<u8>,
}

pub(super) fn run(joined: bool) -> anyhow::Result<()> {
    let clients = TcpListener::bind("127.0.0.1:0")?;
    let feed = TcpListener::bind("127.0.0.1:0")?;
    println!("ready {} {}", clients.local_addr()?.port(), feed.local_addr()?.port());
    let topics = Topics::default();
    std::thread::Builder::new().name("accept".to_owned()).spawn({
        let topics = Arc::clone(&topics);
        move || {
            for socket in clients.incoming().flatten() {
                // A client that left again is nobody's loss.
                let _ = welcome(socket, &topics);
            }
        }
    })?;
    let (mut feed, _) = feed.accept()?;
    let mut buffer = vec![0; 64 * 1024];
    let mut filled = 0;
    loop {
        let read = feed.read(&mut buffer[filled..])?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let mut topics = topics.lock().expect("no code panics while it holds this lock");
        let used = deliver(&buffer[..filled], &mut topics, joined);
        drop(topics);
        buffer.copy_within(used..filled, 0);
        filled -= used;
    }
}

fn welcome(mut socket: TcpStream, topics: &Topics) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    let mut line = Vec::new();
    BufReader::with_capacity(64, &socket).read_until(b'\n', &mut line)?;
    let topic = line.strip_suffix(b"\n").context("no line")?.to_vec();
    let mut answer = Vec::new();
    websocket::server_frame(TEXT, b"subscription_confirmed", &mut answer);
    let mut topics = topics.lock().expect("no code panics while it holds this lock");
    socket.write_all(&answer)?;
    topics.entry(topic).or_default().sockets.push(socket);
    Ok(())
}

/// Writes out all whole records; returns how many bytes they are.
fn deliver(records: &[u8], topics: &mut HashMap<Vec<u8>, Topic>, joined: bool) -> usize {
    let mut rest = records;
    let mut touched = Vec::new();
    while let Some((id, message, after)) = record(rest) {
        for key in [id, ALL] {
            let Some(topic) = topics.get_mut(key) else { continue };
            if topic.pending.is_empty() {
                touched.push(key);
            }
            websocket::server_frame(TEXT, message, &mut topic.pending);
            if !joined {
                topic.flush();
            }
        }
        rest = after;
    }
    for key in touched {
        topics.get_mut(key).expect("a touched topic exists").flush();
    }
    records.len() - rest.len()
}

/// Id, message, and what follows.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (length, rest) = records.split_first_chunk()?;
    let (record, after) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    let (id, message) = record.split_at_checked(ID)?;
    Some((id, message, after))
}

impl Topic {
    fn flush(&mut self) {
        if !self.pending.is_empty() {
            self.sockets.retain_mut(|socket| socket.write_all(&self.pending).is_ok());
            self.pending.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_records_are_taken_and_the_rest_is_left() {
        let mut records = Vec::new();
        for message in [&b"one"[..], b"two!"] {
            records.extend_from_slice(&u32::try_from(ID + message.len()).unwrap().to_be_bytes());
            records.extend_from_slice(&[b'i'; ID]);
            records.extend_from_slice(message);
        }
        let whole = records.len();
        records.extend_from_slice(&[0, 0, 0, 99, b'i']);
        let mut topics = HashMap::from([(vec![b'i'; ID], Topic::default())]);
        assert_eq!(deliver(&records, &mut topics, true), whole);
        let (id, message, rest) = record(&records).unwrap();
        assert_eq!((id, message), (&[b'i'; ID][..], &b"one"[..]));
        assert_eq!(record(rest).unwrap().1, b"two!");
    }
}
