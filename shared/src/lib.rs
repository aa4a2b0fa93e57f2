//! What two Stepcast services agree on: ids, messages, subjects, and the few helpers that each process needs once.
//!
//! Services depend on this crate and never on each other; they meet in [`messages`] and [`rpc`] alone.

#![warn(missing_docs)]

pub mod address;
pub mod config;
pub mod events;
pub mod health;
pub mod ids;
pub mod job;
pub mod messages;
pub mod meter;
pub mod nats;
pub mod origin;
pub mod problem;
pub mod rpc;
pub mod schema;
pub mod server;
pub mod shutdown;
pub mod storage;
pub mod subjects;
pub mod telemetry;
pub mod trace;
