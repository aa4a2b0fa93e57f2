//! What must hold of whatever a client, or a server of NATS, says: run by cargo-fuzz over bytes that it makes up
//! (`make fuzz`), and by tests over those that are kept in `fuzz/corpus`.
//!
//! Each function takes any bytes and panics where something does not hold. It is compiled for these two alone, and so
//! nothing of the gateway is public for their sake.

use std::collections::HashSet;

use crate::answers::Answer;
use crate::feed::parse::{self, Malformed, Op};
use crate::frame::JobFrame;
use crate::protocol::{self, ClientMessage, Code, Jobs};
use crate::ws::oracle;

pub(crate) mod life;
mod outbox;

pub use crate::hub::course::hub;
pub use outbox::outbox;

/// Longest WebSocket message: short, so that it is exceeded.
const LONGEST: usize = 1_000;
/// How many bytes at the front say in what pieces the others arrive.
const PIECES: usize = 3;

/// WebSocket frames: read the same in whatever pieces they come, within the memory allowed, and as a library reads them.
pub fn ws_decode(data: &[u8]) {
    let (pieces, bytes) = pieces(data);
    oracle::hold(bytes, &pieces, LONGEST);
}

/// Words of a NATS server: read the same in whatever pieces they come, each once and within its bounds.
pub fn nats_parse(data: &[u8]) {
    let (pieces, said) = pieces(data);
    let whole = ops(said, &[said.len().max(1)]);
    assert_eq!(ops(said, &pieces), whole, "in pieces of {pieces:?}");
}

/// A client's message: understood as what it may say, or refused with a code and in words that can be sent.
pub fn client_message(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match protocol::parse(text) {
        Ok(incoming) => {
            let length = incoming.request_id.map_or(0, |id| id.chars().count());
            assert!(length <= protocol::MAX_REQUEST_ID, "a mark of {length} characters");
            check(&incoming.message);
        }
        Err(rejection) => {
            let expected = [Code::InvalidJson, Code::InvalidMessage, Code::UnknownType];
            assert!(expected.contains(&rejection.code), "{rejection:?}");
            assert!((1..500).contains(&rejection.message.chars().count()), "{rejection:?}");
            let code = rejection.code;
            let answer = Answer::from(rejection).encode();
            let answer: serde_json::Value = serde_json::from_slice(answer.payload()).expect("it is JSON");
            assert_eq!(answer["data"]["code"], code.as_str());
        }
    }
}

fn check(message: &ClientMessage) {
    let are_distinct = |jobs: &Jobs| match jobs {
        Jobs::All => true,
        Jobs::Ids(ids) => ids.iter().collect::<HashSet<_>>().len() == ids.len(),
    };
    match message {
        ClientMessage::Subscribe(subscribe) => {
            assert!(are_distinct(&subscribe.jobs));
            assert!(!subscribe.batch || subscribe.jobs == Jobs::All);
            assert!(subscribe.max_rate.is_none_or(|rate| rate > 0.0 && rate <= protocol::MAX_RATE));
        }
        ClientMessage::Unsubscribe(jobs, _) => assert!(are_distinct(jobs)),
        ClientMessage::Ping => {}
        ClientMessage::Submit(jobs) => {
            assert!(!jobs.is_empty() && jobs.iter().all(serde_json::Value::is_object));
        }
        ClientMessage::Cancel(ids) | ClientMessage::Retry(ids) => {
            assert!(!ids.is_empty() && are_distinct(&Jobs::Ids(ids.clone())));
        }
    }
}

/// The lengths in which the bytes behind them arrive, again and again.
fn pieces(data: &[u8]) -> (Vec<usize>, &[u8]) {
    match data.split_at_checked(PIECES) {
        Some((lengths, bytes)) => (lengths.iter().map(|&length| usize::from(length) + 1).collect(), bytes),
        None => (vec![1], data),
    }
}

/// What a server says in pieces, as [`crate::feed::link::Link`] reads it.
fn ops(said: &[u8], pieces: &[usize]) -> (Vec<String>, Option<Malformed>) {
    let (mut ops, mut begin, mut end) = (Vec::new(), 0, 0);
    for piece in pieces.iter().cycle() {
        loop {
            match parse::parse(&said[begin..end]) {
                Ok(Some((op, length))) => {
                    assert!(length > 0 && begin + length <= end, "{length} bytes of {}", end - begin);
                    if let Op::Message { subject, headers, payload } = &op {
                        assert!(subject.len() + headers.len() + payload.len() < length);
                        // Whatever they are, they are read or refused.
                        let _ = JobFrame::live(subject, headers, payload);
                    }
                    ops.push(format!("{op:?}"));
                    begin += length;
                }
                Ok(None) => break,
                Err(malformed) => return (ops, Some(malformed)),
            }
        }
        if end == said.len() {
            break;
        }
        end = said.len().min(end + piece);
    }
    (ops, None)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Runs what is kept of a target: seeds, and what once did not hold.
    fn over_corpus(target: &str, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let files: Vec<_> =
            folder.read_dir().expect("a corpus is kept").map(|file| file.unwrap().path()).collect();
        assert!(!files.is_empty(), "nothing is kept in {}", folder.display());
        for file in files {
            let data = std::fs::read(&file).unwrap();
            let outcome = std::panic::catch_unwind(|| run(&data));
            assert!(outcome.is_ok(), "{} does not hold", file.display());
        }
    }

    #[test]
    fn frames_that_are_kept_hold() {
        over_corpus("ws_decode", ws_decode);
    }

    #[test]
    fn words_of_nats_that_are_kept_hold() {
        over_corpus("nats_parse", nats_parse);
    }

    #[test]
    fn client_messages_that_are_kept_hold() {
        over_corpus("client_message", client_message);
    }

    #[test]
    fn courses_of_an_outbox_that_are_kept_hold() {
        over_corpus("outbox", outbox);
    }

    #[test]
    fn courses_of_a_hub_that_are_kept_hold() {
        over_corpus("hub", hub);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn any_course_of_an_outbox_holds(steps in vec(any::<u8>(), 0..80)) {
            outbox(&steps);
        }

        #[test]
        fn any_course_of_a_hub_holds(steps in vec(any::<u8>(), 0..80)) {
            hub(&steps);
        }
    }
}
