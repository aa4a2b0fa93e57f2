//! Runs claimed jobs on SD.Next and publishes their progress.

pub mod plan;
pub mod sample;
pub mod tracker;
pub mod verifier;
pub mod weights;
