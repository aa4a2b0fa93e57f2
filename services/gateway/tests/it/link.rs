//! A TCP link between a gateway and NATS that can be cut.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A TCP link that can be cut.
pub struct Link {
    address: SocketAddr,
    server_port: u16,
    open: CancellationToken,
    task: JoinSet<()>,
}

impl Link {
    pub async fn to(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut link = Self { address, server_port, open: CancellationToken::new(), task: JoinSet::new() };
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

    fn serve(&mut self, listener: TcpListener) {
        let (open, port) = (self.open.clone(), self.server_port);
        self.task.spawn(async move {
            let mut pipes = JoinSet::new();
            let accepting = async {
                loop {
                    let (mut near, _) = listener.accept().await.unwrap();
                    pipes.spawn(async move {
                        // A server that is away looks from here like a link that breaks at once.
                        let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    });
                }
            };
            open.run_until_cancelled(accepting).await;
            pipes.shutdown().await;
        });
    }
}
