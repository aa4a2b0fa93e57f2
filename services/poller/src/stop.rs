//! Why a render ends before its time.

/// Why a render is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// The process stops.
    Shutdown,
    /// Nothing has changed for too long.
    Stalled,
    /// Its job's time is up.
    Deadline,
    /// Its job is cancelled.
    Cancelled,
    /// Its claim is somebody else's.
    Lost,
}
