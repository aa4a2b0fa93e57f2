//! The gateway against a real NATS server: every scenario starts its own, with its own gateway and its own clients.

mod client;
mod jobs;
mod manners;
mod nats_server;
mod outages;
mod process;
mod requests;
mod resume;
mod stage;
mod watching;
