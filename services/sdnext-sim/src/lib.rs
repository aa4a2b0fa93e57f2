//! A stand-in SD.Next: the HTTP API of a real server, without its models.
//!
//! It behaves as a real server was recorded to behave, awkward parts included: one global state that nested stages
//! overwrite, an interrupt that the next stage forgets, answers that say 200 and carry no image. Pictures are real
//! files of the right size. `/sim/*` and [`Handle`] show what truly happens and make things go wrong on purpose.
//!
//! It depends on nothing of this workspace, so that a misunderstanding cannot be shared.

mod answers;
mod clock;
mod config;
mod connection;
mod control;
mod dialect;
mod encode;
mod faults;
mod gate;
mod generate;
mod handle;
mod history;
mod info;
mod job;
mod json_error;
mod limiter;
mod loading;
mod log;
mod models;
mod picture;
mod preview;
mod render;
mod requests;
mod routes;
mod sampling;
mod serve;
mod sim;
mod state;
mod tasks;
mod truth;
mod webui;

pub use config::Config;
pub use dialect::Dialect;
pub use faults::Fault;
pub use handle::{Handle, Held};
pub use serve::{build, serve, start};
pub use truth::{Finished, Running, Truth};
