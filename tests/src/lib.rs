//! The harness of the scenario tests: real binaries, a real `nats-server`, and simulated SD.Next servers whose inner
//! truth a test can compare with what a client was told.

pub mod check;
pub mod client;
pub mod nats;
pub mod process;
pub mod sim;
pub mod stack;
pub mod wait;
pub mod watcher;
