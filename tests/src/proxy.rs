//! Links that can be cut or stalled: a TCP proxy between two parts, so that an outage needs no help from either.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes carried at once.
const CARRIED: usize = 16 * 1024;

/// What a link does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Carries them.
    Pass,
    /// Closes every connection, and each new one at once.
    Cut,
    /// Carries nothing, and says nothing of it.
    Stall,
}

/// One link: a port that stays, in front of an address that may change.
pub struct Proxy {
    address: SocketAddr,
    target: Arc<Mutex<String>>,
    state: watch::Sender<State>,
    _serving: JoinSet<()>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    mode: Mode,
    /// Connections of an earlier generation carry nothing any more.
    generation: u64,
}

impl State {
    fn carries(self, generation: u64) -> bool {
        self.mode == Mode::Pass && self.generation == generation
    }
}

impl Proxy {
    /// A link to `target`, `host:port`, on a free loopback port.
    pub async fn to(target: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a loopback port is free")?;
        let address = listener.local_addr()?;
        let target = Arc::new(Mutex::new(target.to_owned()));
        let state = watch::Sender::new(State { mode: Mode::Pass, generation: 0 });
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, target.clone(), state.subscribe()));
        Ok(Self { address, target, state, _serving: serving })
    }

    /// Where it listens, `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Points new connections elsewhere.
    pub fn retarget(&self, target: &str) {
        target.clone_into(&mut self.target.lock().expect("no code panics while it holds this lock"));
    }

    /// Changes what it does, for connections that exist too.
    pub fn set(&self, mode: Mode) {
        self.state.send_modify(|state| state.mode = mode);
    }

    /// Forgets all connections without a word to either end, as when a host is gone: new ones are carried.
    pub fn forget(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }
}

async fn serve(listener: TcpListener, target: Arc<Mutex<String>>, state: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                let target = target.lock().expect("no code panics while it holds this lock").clone();
                connections.spawn(carry(client, target, state.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection until either side closes it or the link is cut.
async fn carry(mut client: TcpStream, target: String, mut state: watch::Receiver<State>) {
    let mut cuts = state.clone();
    let generation = state.borrow().generation;
    let carrying = async {
        // A stalled link accepts, as the listener of a host that stands still does, and goes no further.
        state.wait_for(|state| state.carries(generation)).await.ok()?;
        let mut server = TcpStream::connect(target).await.ok()?;
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            () = pump(from_client, to_server, state.clone(), generation) => {}
            () = pump(from_server, to_client, state.clone(), generation) => {}
        }
        Some(())
    };
    tokio::select! {
        _ = carrying => {}
        _ = cuts.wait_for(|state| state.mode == Mode::Cut) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
    generation: u64,
) {
    let mut bytes = vec![0; CARRIED];
    loop {
        let Ok(count @ 1..) = from.read(&mut bytes).await else { return };
        // What was read waits here for the link, and what follows waits in the sender's socket.
        if state.wait_for(|state| state.carries(generation)).await.is_err() {
            return;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn echo() -> (String, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                open.spawn(async move {
                    let (mut from, mut to) = socket.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        (address, serving)
    }

    #[tokio::test]
    async fn a_link_passes_stalls_and_is_cut() {
        let (address, _echo) = echo().await;
        let link = Proxy::to(&address).await.unwrap();
        let mut client = TcpStream::connect(link.address()).await.unwrap();
        let mut answer = [0; 4];
        client.write_all(b"ping").await.unwrap();
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ping");

        link.set(Mode::Stall);
        client.write_all(b"late").await.unwrap();
        let early = timeout(Duration::from_millis(300), client.read_exact(&mut answer)).await;
        assert!(early.is_err(), "a stalled link carries nothing");
        link.set(Mode::Pass);
        let late = timeout(Duration::from_secs(10), client.read_exact(&mut answer)).await;
        late.expect("a link that passes again carries what waited").unwrap();
        assert_eq!(&answer, b"late");

        link.forget();
        client.write_all(b"lost").await.unwrap();
        let mut other = TcpStream::connect(link.address()).await.unwrap();
        other.write_all(b"next").await.unwrap();
        other.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"next");
        let forgotten = timeout(Duration::from_millis(300), client.read_exact(&mut answer)).await;
        assert!(forgotten.is_err(), "a forgotten connection carries nothing, and does not end");

        link.set(Mode::Cut);
        let end = timeout(Duration::from_secs(10), client.read(&mut answer)).await.expect("a cut is seen");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        let mut refused = TcpStream::connect(link.address()).await.unwrap();
        let end = timeout(Duration::from_secs(10), refused.read(&mut answer)).await.expect("and stays");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
}
