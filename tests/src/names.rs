//! A name server, so that a proxy finds replicas by name here as it does where containers have one.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Largest question that is read.
const LONGEST: usize = 512;
/// Length of what stands before the question.
const HEADER: usize = 12;
/// Seconds for which an answer holds.
const HOLDS: [u8; 4] = [0, 0, 0, 1];

/// Answers questions for IPv4 addresses, on a free loopback port.
pub struct Names {
    known: Known,
    address: SocketAddr,
    _serving: JoinSet<()>,
}

type Known = Arc<Mutex<BTreeMap<String, Vec<Ipv4Addr>>>>;

impl Names {
    /// Starts it; it knows no name yet.
    pub async fn start() -> anyhow::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        let address = socket.local_addr()?;
        let known = Known::default();
        let mut serving = JoinSet::new();
        serving.spawn(serve(socket, known.clone()));
        Ok(Self { known, address, _serving: serving })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says where a name is found from now on.
    pub fn set(&self, name: &str, addresses: Vec<Ipv4Addr>) {
        self.known
            .lock()
            .expect("no code panics while it holds this lock")
            .insert(name.to_owned(), addresses);
    }
}

async fn serve(socket: UdpSocket, known: Known) {
    let mut bytes = [0; LONGEST];
    while let Ok((length, asker)) = socket.recv_from(&mut bytes).await {
        if let Some(answer) = answer(&bytes[..length], &known) {
            // Who hears nothing asks again.
            let _ = socket.send_to(&answer, asker).await;
        }
    }
}

/// The answer to one question (RFC 1035); a name that is not known does not exist.
fn answer(message: &[u8], known: &Known) -> Option<Vec<u8>> {
    let question = message.get(HEADER..)?;
    let (name, length) = name(question)?;
    let known = known.lock().expect("no code panics while it holds this lock");
    let addresses = known.get(&name);
    // An answer, by who is asked, recursion available; the code 3 says that there is no such name.
    let code = if addresses.is_some() { 0x80 } else { 0x83 };
    let addresses = addresses.map_or(&[][..], Vec::as_slice);
    let mut answer = message.get(..2)?.to_vec();
    answer.extend([0x81, code, 0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0]);
    answer.extend(question.get(..length + 4)?);
    for address in addresses {
        // The name as in the question, type A, class IN.
        answer.extend([0xc0, u8::try_from(HEADER).ok()?, 0, 1, 0, 1]);
        answer.extend(HOLDS);
        answer.extend([0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

/// The name that a question begins with, and how many bytes it takes.
fn name(question: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = 0;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(std::str::from_utf8(question.get(at..at + length)?).ok()?.to_lowercase());
        at += length;
    }
}
