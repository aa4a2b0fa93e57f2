//! What can be made to go wrong with the next jobs.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One way for a job to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Fault {
    /// Memory runs out before the first step: 200 without images.
    OutOfMemoryBeforeFirstStep,
    /// Memory runs out in the second step: 200 with a preview for an image.
    OutOfMemoryAfterStep,
    /// An exception in mid-job: 500, and the state reads running until the next job.
    Http500,
    /// This status code instead of a render.
    HttpStatus(u16),
    /// A whole render, then 200 without images.
    NoImages,
    /// A whole render, then 200 with images of half the size.
    WrongSize,
    /// Sampling stops advancing until it is released or interrupted.
    Hang,
    /// From now on every job answers 200 without images, until the model is reloaded by force.
    Wedged,
    /// The connection of the request closes in mid-job without an answer; the render goes on.
    DropConnection,
    /// The image is cut in half, and does not decode.
    TruncatedImage,
}

const NAMES: [(Fault, &str); 9] = [
    (Fault::OutOfMemoryBeforeFirstStep, "out_of_memory_before_first_step"),
    (Fault::OutOfMemoryAfterStep, "out_of_memory_after_step"),
    (Fault::Http500, "http_500"),
    (Fault::NoImages, "no_images"),
    (Fault::WrongSize, "wrong_size"),
    (Fault::Hang, "hang"),
    (Fault::Wedged, "wedged"),
    (Fault::DropConnection, "drop_connection"),
    (Fault::TruncatedImage, "truncated_image"),
];

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HttpStatus(code) => write!(formatter, "http_status:{code}"),
            named => {
                let name = NAMES.iter().find(|(fault, _)| fault == named).map_or("unknown", |(_, name)| name);
                formatter.write_str(name)
            }
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if let Some(code) = name.strip_prefix("http_status:") {
            let code: u16 = code.parse().map_err(|_| format!("not a status code: {code}"))?;
            return if (100..1000).contains(&code) {
                Ok(Self::HttpStatus(code))
            } else {
                Err(format!("not a status code: {code}"))
            };
        }
        NAMES
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(fault, _)| *fault)
            .ok_or_else(|| format!("unknown fault: {name}"))
    }
}

impl TryFrom<String> for Fault {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        fault.to_string()
    }
}

/// Faults waiting for their jobs, in order.
#[derive(Debug, Default)]
pub(crate) struct Armed {
    queue: VecDeque<(Fault, u32)>,
}

impl Armed {
    pub(crate) fn arm(&mut self, fault: Fault, jobs: u32) {
        if jobs > 0 {
            self.queue.push_back((fault, jobs));
        }
    }

    pub(crate) fn clear(&mut self) {
        self.queue.clear();
    }

    /// The fault of the job that starts now.
    pub(crate) fn take(&mut self) -> Option<Fault> {
        let (fault, jobs) = self.queue.front_mut()?;
        let fault = *fault;
        *jobs -= 1;
        if *jobs == 0 {
            self.queue.pop_front();
        }
        Some(fault)
    }

    pub(crate) fn list(&self) -> Vec<(Fault, u32)> {
        self.queue.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Armed, Fault, NAMES};

    #[test]
    fn names_read_back() {
        for fault in NAMES.map(|(fault, _)| fault).into_iter().chain([Fault::HttpStatus(503)]) {
            assert_eq!(fault.to_string().parse(), Ok(fault));
        }
        assert!("http_status:no".parse::<Fault>().is_err());
        assert!("nonsense".parse::<Fault>().is_err());
    }

    #[test]
    fn faults_last_as_long_as_armed() {
        let mut armed = Armed::default();
        armed.arm(Fault::NoImages, 2);
        armed.arm(Fault::Hang, 1);
        let taken: Vec<_> = std::iter::repeat_with(|| armed.take()).take(4).collect();
        assert_eq!(taken, [Some(Fault::NoImages), Some(Fault::NoImages), Some(Fault::Hang), None]);
    }
}
