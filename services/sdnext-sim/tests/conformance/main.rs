//! Recorded requests, sent again to the stand-in over HTTP, and its answers held against the recorded ones.
//!
//! The recordings were made at the pace of a real model; the stand-in runs ten times as fast, so times are not
//! compared, but orders, shapes, flags, status codes and bodies are.

mod behind_the_scenes;
mod dialects;
mod failures;
mod recording;
mod replays;
mod server;
