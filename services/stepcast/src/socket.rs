//! One WebSocket connection to a gateway: what comes over it, and how it ended.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::Value;
use stepcast_shared::address::without_credentials;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use url::Url;

use crate::client::{Error, innermost};

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest wait for a write.
const WRITE: Duration = Duration::from_secs(10);
/// Silence after which the server is taken for gone, until it says how often it pings.
const SILENCE: Duration = Duration::from_secs(75);

/// What came.
#[derive(Debug, PartialEq)]
pub enum Incoming {
    /// A message; the text as it came.
    Text(String),
    /// The connection is over; come back, after this time if the server named one.
    Lost(Option<Duration>),
    /// The connection is over, and there is no point in coming back.
    Refused(String),
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    silence: Duration,
    come_back: Option<Duration>,
}

/// The messages that speak of the connection itself.
#[derive(Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
enum OfConnection {
    Connected {
        heartbeat_seconds: u64,
    },
    GoingAway {
        reconnect_after_ms: u64,
    },
    #[serde(other)]
    Other,
}

impl Connection {
    /// Connects, and sends what is to be subscribed to.
    pub async fn open(url: &Url, messages: &[Value]) -> Result<Self, Error> {
        let shown = without_credentials(url.as_str());
        let away = |reason: String| Error::Unreachable { server: shown.clone(), reason };
        let (stream, _) = match timeout(CONNECT, connect_async(url.as_str())).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(tungstenite::Error::Http(answer))) if !answer.status().is_server_error() => {
                return Err(Error::NotStepcast { url: shown, answer: answer.status().to_string() });
            }
            Ok(Err(error)) => return Err(away(innermost(&error))),
            Err(_) => return Err(away("no answer in time".to_owned())),
        };
        let mut connection = Self { stream, silence: SILENCE, come_back: None };
        for message in messages {
            let sending = connection.stream.send(Message::text(message.to_string()));
            match timeout(WRITE, sending).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(away(innermost(&error))),
                Err(_) => return Err(away("it reads nothing".to_owned())),
            }
        }
        Ok(connection)
    }

    /// The next message, or the end. Cancel-safe.
    pub async fn next(&mut self) -> Incoming {
        loop {
            let Ok(Some(Ok(message))) = timeout(self.silence, self.stream.next()).await else {
                return Incoming::Lost(self.come_back);
            };
            match message {
                Message::Text(text) => {
                    self.note(text.as_str());
                    return Incoming::Text(text.as_str().to_owned());
                }
                Message::Close(frame) => {
                    let (code, reason) =
                        frame.map_or((1005, String::new()), |f| (u16::from(f.code), f.reason.to_string()));
                    return self.closed(code, &reason);
                }
                // Pings are answered by the library; there are no binary messages unless previews are asked for.
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Says good-bye, without waiting long for an answer.
    pub async fn close(mut self) {
        let _ = timeout(Duration::from_secs(1), self.stream.close(None)).await;
    }

    fn note(&mut self, text: &str) {
        match serde_json::from_str(text) {
            // Two pings and a half.
            Ok(OfConnection::Connected { heartbeat_seconds }) => {
                self.silence = Duration::from_secs(heartbeat_seconds.clamp(1, 3600)) * 5 / 2;
            }
            Ok(OfConnection::GoingAway { reconnect_after_ms }) => {
                self.come_back = Some(Duration::from_millis(reconnect_after_ms).min(Duration::from_mins(1)));
            }
            Ok(OfConnection::Other) | Err(_) => {}
        }
    }

    fn closed(&self, code: u16, reason: &str) -> Incoming {
        match code {
            1008 | 4401 | 4403 => {
                Incoming::Refused(format!("the server closed the connection: {reason} ({code})"))
            }
            1013 | 4429 => Incoming::Lost(Some(Duration::from_secs(5))),
            _ => Incoming::Lost(self.come_back),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::net::TcpListener;
    use tokio_tungstenite::accept_async;
    use tokio_tungstenite::tungstenite::protocol::CloseFrame;

    use super::*;

    /// Opens a connection to a server that says these things.
    async fn hear(says: Vec<Message>) -> Vec<Incoming> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("ws://{}/ws/progress", listener.local_addr().unwrap())).unwrap();
        let server = async {
            let mut socket = accept_async(listener.accept().await.unwrap().0).await.unwrap();
            let asked = socket.next().await.unwrap().unwrap().into_text().unwrap();
            assert_eq!(asked.as_str(), r#"{"type":"subscribe"}"#);
            for message in says {
                socket.send(message).await.unwrap();
            }
            while socket.next().await.is_some_and(|message| message.is_ok()) {}
        };
        let client = async {
            let mut connection = Connection::open(&url, &[json!({ "type": "subscribe" })]).await.unwrap();
            let mut heard = Vec::new();
            loop {
                heard.push(connection.next().await);
                if !matches!(heard.last(), Some(Incoming::Text(_))) {
                    return heard;
                }
            }
        };
        tokio::select! { heard = client => heard, () = async { server.await; std::future::pending().await } => unreachable!() }
    }

    fn close(code: u16) -> Message {
        Message::Close(Some(CloseFrame { code: code.into(), reason: "bye".into() }))
    }

    #[tokio::test]
    async fn the_time_to_come_back_is_the_one_the_server_named() {
        let away = Message::text(r#"{"type":"going_away","data":{"reconnect_after_ms":1730}}"#);
        let heard = hear(vec![away, close(1001)]).await;
        assert_eq!(heard.last(), Some(&Incoming::Lost(Some(Duration::from_millis(1730)))));
    }

    #[tokio::test]
    async fn close_codes_say_whether_to_come_back() {
        assert_eq!(hear(vec![close(4408)]).await, [Incoming::Lost(None)]);
        assert!(matches!(hear(vec![close(1008)]).await[..], [Incoming::Refused(_)]));
    }

    #[tokio::test]
    async fn nobody_there_is_told_as_such() {
        let url = Url::parse("ws://127.0.0.1:1/ws/progress").unwrap();
        assert!(matches!(Connection::open(&url, &[]).await, Err(Error::Unreachable { .. })));
    }
}
