//! A TCP link between a gateway and NATS that can be cut, or hear nothing.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A TCP link that can be cut.
pub struct Link {
    address: SocketAddr,
    server_port: u16,
    open: CancellationToken,
    /// Whether what the gateway says gets through.
    is_heard: watch::Sender<bool>,
    task: JoinSet<()>,
}

impl Link {
    pub async fn to(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, is_heard) = (CancellationToken::new(), watch::Sender::new(true));
        let mut link = Self { address, server_port, open, is_heard, task: JoinSet::new() };
        link.serve(listener);
        link
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Ends every connection and takes no new one.
    pub async fn cut(&mut self) {
        self.open.cancel();
        while self.task.join_next().await.is_some() {}
    }

    pub async fn mend(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.open = CancellationToken::new();
        self.serve(listener);
    }

    /// Holds back what the gateway says, or lets it go on; what the server says gets through.
    pub fn mute(&self, is_muted: bool) {
        self.is_heard.send_replace(!is_muted);
    }

    fn serve(&mut self, listener: TcpListener) {
        let (open, port, is_heard) = (self.open.clone(), self.server_port, self.is_heard.subscribe());
        self.task.spawn(async move {
            let mut pipes = JoinSet::new();
            let accepting = async {
                loop {
                    let (mut near, _) = listener.accept().await.unwrap();
                    let is_heard = is_heard.clone();
                    pipes.spawn(async move {
                        // A server that is away looks from here like a link that breaks at once.
                        let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                        let ((near_reads, mut near), (mut far_reads, far)) = (near.split(), far.split());
                        tokio::select! {
                            _ = say(near_reads, far, is_heard) => {}
                            _ = tokio::io::copy(&mut far_reads, &mut near) => {}
                        }
                    });
                }
            };
            open.run_until_cancelled(accepting).await;
            pipes.shutdown().await;
        });
    }
}

async fn say(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut is_heard: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut words = Vec::with_capacity(64 * 1024);
    while from.read_buf(&mut words).await? > 0 {
        let _ = is_heard.wait_for(|is_heard| *is_heard).await;
        to.write_all(&words).await?;
        words.clear();
    }
    Ok(())
}
