//! Scenarios over the whole system: what a person or another service would see, and what must hold behind it.

mod batch;
mod cancel;
mod dispatch;
mod events;
mod failures;
mod faults;
mod http;
mod people;
mod quarantine;
mod shutdown;
mod twelve_jobs;
mod websocket;
