//! Scenarios over the whole system: what a person or another service would see, and what must hold behind it.

mod batch;
mod cancel;
mod cluster;
mod database;
mod dialects;
mod dispatch;
mod events;
mod failures;
mod faults;
mod gap;
mod http;
mod outage;
mod overflow;
mod people;
mod postgres;
mod quarantine;
mod recorded;
mod recovery;
mod retention;
mod secrets;
mod shutdown;
mod sqlite;
mod storage;
mod submits;
mod twelve_jobs;
mod websocket;
