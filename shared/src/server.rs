//! Serving a router until the process stops.

use std::future::pending;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Uri;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::{debug, error};

use crate::problem::Problem;
use crate::shutdown::Supervisor;

/// Longest time until a new connection has asked for something. Until then it costs a client nothing.
const FIRST_HEAD: Duration = Duration::from_secs(10);
/// Longest time between two requests of one connection. Longer than a proxy keeps one that it does not use (nginx: 60 s):
/// whoever ends it first, the proxy should, since a request that crosses our end is lost.
const NEXT_HEAD: Duration = Duration::from_secs(75);

/// Serves `router` on `listener` as a task of `supervisor`, until it stops.
///
/// Requests in flight are finished; upgraded sockets are not waited for and must end themselves.
pub fn serve(router: Router, listener: TcpListener, supervisor: &Supervisor) -> anyhow::Result<SocketAddr> {
    serve_until(router, listener, supervisor, supervisor.stopping().clone())
}

/// Like [`serve`], but until `end`, which must come some time after the process begins to stop.
///
/// For a service that says goodbye for a while: probes and newcomers are told so rather than refused.
pub fn serve_until(
    router: Router,
    listener: TcpListener,
    supervisor: &Supervisor,
    end: CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let address = listener.local_addr().context("a bound listener has an address")?;
    supervisor.spawn("http", accept(router, listener, end, FIRST_HEAD));
    Ok(address)
}

/// Takes connections until `end`, and waits for those that it has.
///
/// In place of `axum::serve`, which waits for ever for a client that connects and says nothing.
async fn accept(
    router: Router,
    listener: TcpListener,
    end: CancellationToken,
    first_head: Duration,
) -> anyhow::Result<()> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(NEXT_HEAD);
    let connections = TaskTracker::new();
    while let Some(accepted) = end.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                let (builder, router, end) = (builder.clone(), router.clone(), end.clone());
                connections.spawn(connection(builder, router, stream, peer, end, first_head));
            }
            // It has left already.
            Err(error)
                if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
            Err(error) => {
                error!(%error, "cannot take a connection");
                // Most likely for want of file descriptors, which others give back.
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
    Ok(())
}

/// Serves one connection: to its end, until it may be ended, or until it has been silent for too long.
async fn connection(
    builder: Builder<TokioExecutor>,
    router: Router,
    stream: TcpStream,
    peer: SocketAddr,
    end: CancellationToken,
    first_head: Duration,
) {
    let asked = CancellationToken::new();
    let asking = asked.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        asking.cancel();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request)
    });
    let mut serving = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let impatience = async {
        if timeout(first_head, asked.cancelled()).await.is_ok() {
            pending::<()>().await;
        }
    };
    let mut impatience = pin!(impatience);
    let mut is_ending = false;
    loop {
        tokio::select! {
            served = serving.as_mut() => {
                if let Err(error) = served {
                    debug!(error = format!("{error:#}"), "a connection broke off");
                }
                return;
            }
            () = impatience.as_mut() => {
                debug!(%peer, "a connection asked for nothing");
                return;
            }
            () = end.cancelled(), if !is_ending => {
                is_ending = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// What any process answers to a path that nothing serves.
#[expect(clippy::unused_async, reason = "handlers are async")]
pub async fn not_found(uri: Uri) -> Problem {
    Problem::new(404, "not-found", "Not found").detail(format!("Nothing is served at {}.", uri.path()))
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const HELLO: &[u8] = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n";
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A server that waits so long for a first request.
    async fn server(first_head: Duration) -> (SocketAddr, Supervisor) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string()));
        let supervisor = Supervisor::new(PATIENCE);
        supervisor.spawn("http", accept(router, listener, supervisor.stopping().clone(), first_head));
        (address, supervisor)
    }

    async fn ask(stream: &mut TcpStream) -> String {
        stream.write_all(HELLO).await.unwrap();
        let me = stream.local_addr().unwrap().to_string();
        let mut answer = Vec::new();
        while !answer.ends_with(me.as_bytes()) {
            let read =
                timeout(PATIENCE, stream.read_buf(&mut answer)).await.expect("a timely answer").unwrap();
            assert!(read > 0, "it hung up after {}", String::from_utf8_lossy(&answer));
        }
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn who_asks_for_nothing_is_hung_up_on() {
        let (address, _supervisor) = server(Duration::from_millis(200)).await;
        for said in [&b""[..], b"GET / HT", &HELLO[..HELLO.len() - 2], b"PRI * HTTP/2.0\r\n"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(said).await.unwrap();
            let mut answer = Vec::new();
            timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("a timely end").unwrap();
            assert_eq!(answer, b"", "after {:?}", String::from_utf8_lossy(said));
        }
    }

    #[tokio::test]
    async fn who_has_asked_may_take_time_for_the_next_question() {
        let patience = Duration::from_millis(500);
        let (address, supervisor) = server(patience).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200"));
        sleep(2 * patience).await;
        assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200"));
        timeout(PATIENCE, supervisor.finish()).await.expect("an end in time").unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the connection is ended with the process");
    }
}
