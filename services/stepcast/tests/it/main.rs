//! The real binary, from its start to its end.

mod cli;
mod harness;
mod up;
