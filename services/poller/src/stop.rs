//! Why a render ends before its time.

/// Why a render is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// The process stops.
    Shutdown,
    /// Its job is cancelled.
    Cancelled,
    /// Its claim is somebody else's.
    Lost,
}
