//! Client connections that can be cut, by a fault or a kill, and that close after standing idle.
//!
//! The web framework offers neither, so a thin layer under it does: it fails reads once its connection is to be
//! dropped, and reports the end of the stream when no request came for the keep-alive time.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::sim::Sim;

/// What a handler knows about the connection it serves.
#[derive(Debug)]
pub(crate) struct Connection {
    address: SocketAddr,
    cut: CancellationToken,
    /// Requests under way.
    busy: AtomicUsize,
}

impl Connection {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the connection without an answer.
    pub(crate) fn drop_now(&self) {
        self.cut.cancel();
    }

    /// Keeps the connection from counting as idle while the guard lives.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }
}

pub(crate) struct Busy(Arc<Connection>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The connect info of each request.
#[derive(Clone, Debug)]
pub(crate) struct Peer(pub(crate) Arc<Connection>);

impl Connected<IncomingStream<'_, Door>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        Self(stream.io().connection.clone())
    }
}

/// Accepts connections and wraps them.
pub(crate) struct Door {
    pub(crate) listener: TcpListener,
    pub(crate) sim: Arc<Sim>,
}

impl Listener for Door {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // Small answers to polls must not wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let connection =
            Connection { address, cut: self.sim.connections.child_token(), busy: AtomicUsize::new(0) };
        let keep_alive = self.sim.config().keep_alive;
        (Wire::new(stream, Arc::new(connection), keep_alive), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection's bytes.
pub(crate) struct Wire {
    stream: TcpStream,
    connection: Arc<Connection>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    keep_alive: Duration,
    idle: Pin<Box<Sleep>>,
}

impl Wire {
    fn new(stream: TcpStream, connection: Arc<Connection>, keep_alive: Duration) -> Self {
        let cut = Box::pin(connection.cut.clone().cancelled_owned());
        Self { stream, connection, cut, keep_alive, idle: Box::pin(sleep(keep_alive)) }
    }

    fn is_cut(&mut self, context: &mut Context<'_>) -> bool {
        self.cut.as_mut().poll(context).is_ready()
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "connection cut")
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_cut(context) {
            return Poll::Ready(Err(gone()));
        }
        let next = Instant::now() + self.keep_alive;
        if let Poll::Ready(result) = Pin::new(&mut self.stream).poll_read(context, buffer) {
            self.idle.as_mut().reset(next);
            return Poll::Ready(result);
        }
        loop {
            ready!(self.idle.as_mut().poll(context));
            if self.connection.busy.load(Ordering::Relaxed) == 0 {
                // Nothing read: the end of the stream.
                return Poll::Ready(Ok(()));
            }
            self.idle.as_mut().reset(next);
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_cut(context) {
            return Poll::Ready(Err(gone()));
        }
        let next = Instant::now() + self.keep_alive;
        self.idle.as_mut().reset(next);
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_cut(context) {
            return Poll::Ready(Err(gone()));
        }
        let next = Instant::now() + self.keep_alive;
        self.idle.as_mut().reset(next);
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
