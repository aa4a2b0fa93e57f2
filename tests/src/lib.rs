//! The harness of the scenario tests: real binaries, a real `nats-server`, and simulated SD.Next servers whose inner
//! truth a test can compare with what a client was told.

pub mod authority;
pub mod bus;
pub mod check;
pub mod client;
pub mod cluster;
pub mod collector;
pub mod contract;
pub mod database;
pub mod deployment;
pub mod edge;
pub mod faults;
pub mod fleet;
pub mod follower;
pub mod guarded;
pub mod ledger;
pub mod life;
pub mod live;
pub mod load;
pub mod names;
pub mod nats;
pub mod operator;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod scrape;
pub mod sim;
pub mod sse;
pub mod stack;
pub mod tap;
pub mod wait;
pub mod watcher;
