//! One connection of a client, over WebSocket or as server-sent events, that may end at any moment.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// Longest wait for an answer to a request; a gateway that is just being replaced may not answer at all.
const ANSWER: Duration = Duration::from_secs(5);
/// What a client's machine takes in that the client has not read, if it is narrow.
const NARROW: u32 = 4 * 1024;
/// What a library's client keeps for reading: the usual 128 KiB are too much for thousands of them.
const READ_BUFFER: usize = 4 * 1024;

/// A connection that reads.
pub enum Tap {
    Socket(Box<WebSocketStream<TcpStream>>),
    Events {
        lines: Lines<BufReader<TcpStream>>,
        /// Of the event that is being read.
        id: Option<u64>,
    },
}

/// One message of the server.
#[derive(Debug)]
pub struct Heard {
    /// What a client of server-sent events would resume with.
    pub id: Option<u64>,
    pub message: Value,
}

impl Tap {
    /// Connects to `/ws/progress`; `None` if the gateway is not there or lets nobody in.
    pub async fn socket(address: SocketAddr, is_narrow: bool) -> Option<Self> {
        let stream = connect(address, is_narrow).await?;
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER);
        let shaking = client_async_with_config(format!("ws://{address}/ws/progress"), stream, Some(config));
        let (socket, _) = timeout(ANSWER, shaking).await.ok()?.ok()?;
        Some(Self::Socket(Box::new(socket)))
    }

    /// Asks for `/sse/progress`; `None` if the gateway is not there or lets nobody in.
    pub async fn events(
        address: SocketAddr,
        query: &str,
        last_event_id: Option<u64>,
        is_narrow: bool,
    ) -> Option<Self> {
        let mut stream = connect(address, is_narrow).await?;
        let last = last_event_id.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let request = format!("GET /sse/progress{query} HTTP/1.1\r\nHost: {address}\r\n{last}\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut lines = BufReader::new(stream).lines();
        let status = timeout(ANSWER, lines.next_line()).await.ok()?.ok()??;
        assert!(["HTTP/1.1 200", "HTTP/1.1 503"].iter().any(|it| status.starts_with(it)), "{status}");
        status.starts_with("HTTP/1.1 200").then_some(Self::Events { lines, id: None })
    }

    /// Says something over a WebSocket; the connection may end instead.
    pub async fn say(&mut self, message: &Value) {
        let Self::Socket(socket) = self else { panic!("server-sent events go one way") };
        let _ = socket.send(Message::text(message.to_string())).await;
    }

    /// The next message; `None` once the connection has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Heard> {
        match self {
            Self::Socket(socket) => loop {
                match socket.next().await?.ok()? {
                    Message::Text(text) => {
                        return Some(Heard { id: None, message: serde_json::from_str(&text).unwrap() });
                    }
                    Message::Close(frame) => {
                        let code = frame.map(|frame| u16::from(frame.code));
                        // Come back, or come back faster: nothing here is the client's fault.
                        assert!([Some(1001), Some(4408)].contains(&code), "closed with {code:?}");
                        return None;
                    }
                    _ => {}
                }
            },
            Self::Events { lines, id } => loop {
                let line = lines.next_line().await.ok()??;
                if line == "0" {
                    // The last chunk of the answer, on a connection that could take another request.
                    return None;
                } else if let Some(value) = line.strip_prefix("id: ") {
                    *id = Some(value.parse().unwrap());
                } else if let Some(data) = line.strip_prefix("data: ") {
                    return Some(Heard { id: *id, message: serde_json::from_str(data).unwrap() });
                }
            },
        }
    }
}

async fn connect(address: SocketAddr, is_narrow: bool) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    if is_narrow {
        socket.set_recv_buffer_size(NARROW).unwrap();
    }
    timeout(ANSWER, socket.connect(address)).await.ok()?.ok()
}
