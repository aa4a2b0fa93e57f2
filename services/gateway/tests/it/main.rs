//! The gateway against a real NATS server: every scenario starts its own, with its own gateway and its own clients.

mod autobahn;
mod behind;
mod chaos;
mod client;
mod drain;
mod echo;
mod events;
mod handshake;
mod jobs;
mod ledger;
mod link;
mod manners;
mod nats_server;
mod outages;
mod process;
mod replicas;
mod requests;
mod resume;
mod stage;
mod storm;
mod tap;
mod topics;
mod watcher;
mod watching;
