//! Identifiers as types, so that a job is never taken for a connection.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The hyphenated form, in either case.
const UUID_PATTERN: &str = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$";
/// What [`is_slug`] takes.
const SLUG_PATTERN: &str = "^[a-z0-9_-]{1,64}$";

/// Declares an id: a newtype over a UUID, minted as version 7 so that ids sort by the time of their making.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[derive(utoipa::ToSchema, schemars::JsonSchema)]
        #[serde(transparent)]
        #[schemars(extend("format" = "uuid", "pattern" = UUID_PATTERN))]
        pub struct $name(#[schemars(with = "String")] Uuid);

        impl $name {
            /// A fresh id (UUIDv7, RFC 9562 section 5.7).
            pub fn mint() -> Self {
                Self(Uuid::now_v7())
            }

            /// The UUID itself.
            pub fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            /// Reads the hyphenated form, in either case, and no other.
            ///
            /// One form only: an id stands in NATS subjects, and two spellings would be two subjects.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                if text.len() != uuid::fmt::Hyphenated::LENGTH {
                    return Err(Uuid::parse_str("not hyphenated").expect_err("this is not a UUID"));
                }
                Uuid::try_parse(text).map(Self)
            }
        }
    };
}

uuid_id!(
    /// A job, from its submit to its images.
    JobId
);
uuid_id!(
    /// Jobs that were submitted together.
    BatchId
);
uuid_id!(
    /// One WebSocket connection, as told to its client.
    ConnectionId
);
uuid_id!(
    /// One claim of one job by one backend; whoever shows it may act for the job.
    ClaimToken
);

/// A name was not a slug.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a name: 1 to 64 of the characters a-z, 0-9, `_` and `-`")]
pub struct NotASlug(String);

/// Declares a name that may stand in a subject: 1 to 64 characters of `a-z`, `0-9`, `_` and `-`.
macro_rules! slug {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[derive(utoipa::ToSchema, schemars::JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(extend("pattern" = SLUG_PATTERN))]
        pub struct $name(String);

        impl $name {
            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NotASlug;

            fn from_str(text: &str) -> Result<Self, NotASlug> {
                if is_slug(text) { Ok(Self(text.to_owned())) } else { Err(NotASlug(text.to_owned())) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NotASlug;

            fn try_from(text: String) -> Result<Self, NotASlug> {
                if is_slug(&text) { Ok(Self(text)) } else { Err(NotASlug(text)) }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

fn is_slug(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

slug!(
    /// Whose job it is; `default` while authentication is off.
    Owner
);
slug!(
    /// One image-generation server.
    BackendId
);
slug!(
    /// A group of backends that a job may ask for.
    Pool
);

impl Owner {
    /// The owner of everything while authentication is off.
    pub fn anonymous() -> Self {
        Self("default".to_owned())
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_only_its_hyphenated_form() {
        let id = JobId::mint();
        assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
        assert_eq!(id.to_string().to_uppercase().parse::<JobId>().unwrap(), id);
        for wrong in ["", "x", "*", ">", &id.as_uuid().simple().to_string(), &format!("{{{id}}}")] {
            assert!(wrong.parse::<JobId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ids_sort_by_the_time_of_their_making() {
        let ids: Vec<JobId> = (0..100).map(|_| JobId::mint()).collect();
        assert!(ids.is_sorted());
    }

    #[test]
    fn a_slug_cannot_hold_what_a_subject_would_misread() {
        for wrong in ["", "a.b", "a*", ">", "a b", "Ä", &"a".repeat(65)] {
            assert!(wrong.parse::<Owner>().is_err(), "{wrong}");
        }
        assert_eq!("gpu-0".parse::<BackendId>().unwrap().as_str(), "gpu-0");
    }
}
