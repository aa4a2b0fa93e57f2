//! A WebSocket client that fails rather than waits for ever.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use stepcast_shared::ids::JobId;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async, connect_async};

use crate::stage::PATIENCE;

pub struct WsClient {
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl WsClient {
    pub async fn connect(address: SocketAddr) -> Self {
        let connecting = connect_async(format!("ws://{address}/ws/progress"));
        let (socket, _) =
            timeout(PATIENCE, connecting).await.expect("a timely answer").expect("a connection");
        Self { socket }
    }

    /// A client whose machine takes in only a few kilobytes that the client has not read.
    pub async fn connect_narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4 * 1024).unwrap();
        let stream = MaybeTlsStream::Plain(socket.connect(address).await.unwrap());
        let (socket, _) = client_async(format!("ws://{address}/ws/progress"), stream).await.unwrap();
        Self { socket }
    }

    /// Connects as a page of an origin would; returns the status of the answer.
    pub async fn status_for(address: SocketAddr, origin: Option<&str>) -> StatusCode {
        let mut request = format!("ws://{address}/ws/progress").into_client_request().unwrap();
        if let Some(origin) = origin {
            request.headers_mut().insert("Origin", HeaderValue::from_str(origin).unwrap());
        }
        match connect_async(request).await {
            Ok((_, answer)) => answer.status(),
            Err(tungstenite::Error::Http(answer)) => answer.status(),
            Err(error) => panic!("no HTTP answer: {error}"),
        }
    }

    pub async fn say(&mut self, message: &Value) {
        self.say_text(&message.to_string()).await;
    }

    pub async fn say_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.expect("the connection takes a message");
    }

    /// The next text frame, as it came.
    pub async fn text(&mut self) -> String {
        loop {
            match self.frame().await {
                Message::Text(text) => return text.to_string(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("not a text frame: {other:?}"),
            }
        }
    }

    /// The next message, which must be of this type.
    pub async fn expect(&mut self, kind: &str) -> Value {
        let message: Value = serde_json::from_str(&self.text().await).unwrap();
        assert_eq!(message["type"], kind, "{message}");
        assert!(message["timestamp"].is_string(), "{message}");
        message["data"].clone()
    }

    /// The next message, which must be of this type and of this job.
    pub async fn expect_of(&mut self, kind: &str, id: JobId) -> Value {
        let data = self.expect(kind).await;
        assert_eq!(data["job_id"], json!(id), "{data}");
        data
    }

    /// Reads on until the end of this job, and returns what came before it.
    pub async fn until_complete(&mut self, id: JobId) -> Vec<Value> {
        let mut before = Vec::new();
        loop {
            let message: Value = serde_json::from_str(&self.text().await).unwrap();
            if message["type"] == "generation_complete" && message["data"]["job_id"] == json!(id) {
                return before;
            }
            before.push(message);
        }
    }

    /// Everything that was sent so far has been read: the next message is the answer to a ping.
    pub async fn expect_nothing_more(&mut self) {
        self.say(&json!({"type": "ping", "request_id": "nothing more"})).await;
        assert_eq!(self.expect("pong").await["request_id"], "nothing more");
    }

    /// Reads on until the goodbye, and returns its code.
    pub async fn close_code(&mut self) -> CloseCode {
        loop {
            match self.frame().await {
                Message::Close(Some(close)) => return close.code,
                Message::Close(None) => panic!("a goodbye without a code"),
                _ => {}
            }
        }
    }

    async fn frame(&mut self) -> Message {
        let frame = timeout(PATIENCE, self.socket.next()).await.expect("a timely message");
        frame.expect("an open connection").expect("a whole frame")
    }
}
