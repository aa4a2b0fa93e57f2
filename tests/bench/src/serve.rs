//! Peers that are written in Rust, run as processes of their own by the benchmark.

mod axum;
mod floor;

use axum::Subscriptions;

/// A server to compare the gateway with. It prints `ready <port for clients> <port for the feed>` once it listens.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Serve {
    /// Raw TCP: what the sockets themselves cost.
    Floor {
        /// Join what is published together into one write to each client.
        #[arg(long)]
        joined: bool,
    },
    /// A stock gateway: async-nats, axum's WebSocket, a task per client.
    Axum {
        /// The broker.
        #[arg(long)]
        nats_url: String,
        /// How it hears of messages.
        #[arg(long, default_value = "exact")]
        subscriptions: Subscriptions,
    },
}

impl Serve {
    /// Serves until it is killed.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Floor { joined } => floor::run(joined),
            Self::Axum { nats_url, subscriptions } => axum::run(&nats_url, subscriptions),
        }
    }
}
