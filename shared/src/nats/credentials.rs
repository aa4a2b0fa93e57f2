//! A credentials file, as NATS' own tools write it: a token that names a user, and the key that proves it.
//!
//! It is read for every connection, so that one which was renewed is used from the next one on.

use std::fmt;
use std::path::Path;

use anyhow::Context as _;
use nkeys::KeyPair;

/// A user that shows a token and signs what the server asks.
pub struct Credentials {
    jwt: String,
    key: KeyPair,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// What a server is shown.
#[derive(Clone)]
pub struct Proof {
    /// The token.
    pub jwt: String,
    /// The signature of what the server asked.
    pub signature: Vec<u8>,
}

impl Credentials {
    /// Reads a file. Errors name it, and nothing of what it holds.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} holds no credentials of a NATS user", path.display()))
    }

    fn parse(text: &str) -> Option<Self> {
        let jwt = section(text, "NATS USER JWT")?.to_owned();
        let key = KeyPair::from_seed(section(text, "USER NKEY SEED")?).ok()?;
        Some(Self { jwt, key })
    }

    /// Answers a server's question.
    pub fn sign(&self, nonce: &[u8]) -> anyhow::Result<Proof> {
        let signature = self.key.sign(nonce).context("the key of the NATS credentials cannot sign")?;
        Ok(Proof { jwt: self.jwt.clone(), signature })
    }
}

/// What stands between the two lines with this title.
fn section<'a>(text: &'a str, title: &str) -> Option<&'a str> {
    let begin = format!("BEGIN {title}");
    let mut lines =
        text.lines().map(str::trim).skip_while(|line| !(line.starts_with("---") && line.contains(&begin)));
    lines.next()?;
    lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with("---"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seed: &str) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.token\n------END NATS USER JWT------\n\n*** IMPORTANT ***\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }

    #[test]
    fn a_file_is_read_and_signs_for_its_user() {
        let user = KeyPair::new_user();
        let credentials = Credentials::parse(&text(&user.seed().unwrap())).unwrap();
        let proof = credentials.sign(b"a question").unwrap();
        assert_eq!(proof.jwt, "eyJ0.token");
        user.verify(b"a question", &proof.signature).unwrap();
        assert!(user.verify(b"another", &proof.signature).is_err());
    }

    #[test]
    fn what_is_none_is_refused_without_a_word_of_it() {
        for text in [
            "",
            "hunter2",
            &text("hunter2"),
            "-----BEGIN NATS USER JWT-----\n------END NATS USER JWT------\n",
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let error = format!("{:#}", Credentials::read(file.path()).unwrap_err());
            assert!(error.contains("holds no credentials") && !error.contains("hunter2"), "{error}");
        }
        assert!(Credentials::read(Path::new("/nowhere")).unwrap_err().to_string().contains("/nowhere"));
    }
}
