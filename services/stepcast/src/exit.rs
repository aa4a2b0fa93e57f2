//! How the process ends, so that a script can tell what happened.

use std::io;
use std::process::ExitCode;

use stepcast_shared::messages::Status;

use crate::client;

/// What the exit code says. The numbers are a contract with scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Something failed.
    Failed = 1,
    /// A watched job failed.
    JobFailed = 3,
    /// A watched job was cancelled.
    JobCancelled = 4,
    /// The server cannot be reached.
    Unreachable = 5,
}

impl Exit {
    /// What the ends of all watched jobs amount to: one failure outweighs everything else.
    pub fn of_jobs(ends: impl IntoIterator<Item = Status>) -> Self {
        let mut exit = Self::Done;
        for end in ends {
            match end {
                Status::Failed => return Self::JobFailed,
                Status::Cancelled => exit = Self::JobCancelled,
                Status::Completed | Status::Pending | Status::Running => {}
            }
        }
        exit
    }

    /// What an error amounts to.
    pub fn of_error(error: &anyhow::Error) -> Self {
        if is_closed_pipe(error) {
            return Self::Done;
        }
        match error.downcast_ref() {
            Some(client::Error::Unreachable { .. }) => Self::Unreachable,
            _ => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Whether nobody reads our output any more, as after `| head`; that is no failure of ours.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use stepcast_shared::problem::Problem;

    use super::*;

    #[test]
    fn a_failure_outweighs_a_cancel_and_a_cancel_outweighs_success() {
        use Status::{Cancelled, Completed, Failed};
        assert_eq!(Exit::of_jobs([]), Exit::Done);
        assert_eq!(Exit::of_jobs([Completed, Completed]), Exit::Done);
        assert_eq!(Exit::of_jobs([Cancelled, Completed]), Exit::JobCancelled);
        assert_eq!(Exit::of_jobs([Cancelled, Failed, Cancelled]), Exit::JobFailed);
    }

    #[test]
    fn errors_are_told_apart_through_their_context() {
        let away: anyhow::Error =
            client::Error::Unreachable { server: "http://x/".to_owned(), reason: "refused".to_owned() }
                .into();
        assert_eq!(Exit::of_error(&away.context("cannot submit")), Exit::Unreachable);
        let refused: anyhow::Error = client::Error::Refused(Box::new(Problem::new(422, "a", "b"))).into();
        assert_eq!(Exit::of_error(&refused), Exit::Failed);
        let closed =
            Err::<(), _>(io::Error::from(io::ErrorKind::BrokenPipe)).context("printing").unwrap_err();
        assert_eq!(Exit::of_error(&closed), Exit::Done);
    }
}
