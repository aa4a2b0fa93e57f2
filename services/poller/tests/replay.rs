//! Replays what a real SD.Next said through the tracker and the verifier.

mod replay {
    pub(crate) mod answers;
    pub(crate) mod made_up;
    pub(crate) mod moments;
    pub(crate) mod properties;
    pub(crate) mod recordings;
    pub(crate) mod tracker;
    pub(crate) mod verifier;
}
