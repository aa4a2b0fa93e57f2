//! Reading a server's history: which render was whose, after the process that posted it has gone.
//!
//! `/sdapi/v1/history` has a `begin` and an `end` row for each stage, and a pair of `api-txt` or `api-img` rows around
//! each render that came over the API (recorded in `save-images` and `disconnect-save-images`). It names no client.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::sdnext::{SdNext, Unusable};

/// How far a render's begin may be from the time at which we noted our POST, in seconds.
const TOLERANCE: f64 = 2.0;
/// What saved files may end in; the history leaves it out.
const EXTENSIONS: [&str; 3] = ["jpg", "png", "webp"];

/// A row of the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Names the stage; its `begin` and `end` share it.
    pub id: String,
    /// The stage, in lower case.
    pub job: String,
    /// `begin`, `output` or `end`.
    pub op: String,
    /// Seconds since 1970 on the server's clock.
    pub timestamp: f64,
    /// Saved files, without their extension.
    #[serde(default)]
    pub outputs: Vec<String>,
}

/// What the history says of a render that we noted before its POST.
#[derive(Clone, Debug, PartialEq)]
pub enum Trace {
    /// No render that could be ours: it never began, or another's might be mistaken for it.
    None,
    /// It is still running.
    Open,
    /// It has ended, and left these files.
    Ended(Vec<String>),
}

/// A place in a server's history: so many renders of ours, each of them answered, after a row of this time.
///
/// A history grows with every render and comes only as a whole, so it is not read again before each of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// The newest row when the history was read, in seconds since 1970 on the server's clock; 0 if there was none.
    #[serde(rename = "history_end")]
    pub end: f64,
    /// Renders of ours that have begun and ended since.
    #[serde(default, rename = "renders_since")]
    pub renders: u32,
}

/// Finds the render that was posted at `posted_at` (seconds since 1970) behind a place in the history.
///
/// It is ours only if it is the next API render that began since then, and the only one that began at that time.
pub fn trace(rows: &[Row], behind: Mark, posted_at: f64) -> Trace {
    let since: Vec<&Row> = rows.iter().filter(|row| row.timestamp > behind.end).collect();
    let mut begins = since.iter().filter(|row| row.op == "begin" && row.job.starts_with("api-"));
    let at_that_time = |row: &&&Row| (row.timestamp - posted_at).abs() <= TOLERANCE;
    let Some(begin) = begins.nth(behind.renders as usize).filter(at_that_time) else { return Trace::None };
    let next = begins.next();
    if next.as_ref().is_some_and(at_that_time) {
        return Trace::None;
    }
    let end = since.iter().find(|row| row.op == "end" && row.id == begin.id);
    // While it runs nothing else can have begun; afterwards others may have.
    match end {
        None if next.is_none() => Trace::Open,
        None => Trace::None,
        Some(end) => {
            let within = |row: &&&Row| (begin.timestamp..=end.timestamp).contains(&row.timestamp);
            let outputs = since.iter().filter(within).filter(|row| row.op == "output");
            Trace::Ended(outputs.flat_map(|row| row.outputs.clone()).collect())
        }
    }
}

impl SdNext {
    /// The history, oldest row first.
    pub async fn history(&self) -> Result<Vec<Row>, Unusable> {
        let rows = self.get("/sdapi/v1/history").await?;
        serde_json::from_slice(&rows).map_err(|_| Unusable::Odd(200))
    }

    /// A file that the server saved, named as the history names it; `None` if it is not there.
    pub async fn saved_file(&self, name: &str) -> Option<Bytes> {
        for extension in EXTENSIONS {
            let file = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
            if let Ok(bytes) = self.get(&format!("/sdapi/v1/file?file={file}.{extension}")).await {
                return Some(bytes);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, job: &str, op: &str, timestamp: f64) -> Row {
        let outputs = if op == "output" { vec![format!("outputs/{id}")] } else { Vec::new() };
        Row { id: id.to_owned(), job: job.to_owned(), op: op.to_owned(), timestamp, outputs }
    }

    fn render(id: &str, from: f64, to: Option<f64>) -> Vec<Row> {
        let mut rows = vec![
            row(id, "api-txt", "begin", from),
            row("s", "inference", "begin", from + 0.1),
            row(&format!("{id}-image"), "save image", "output", from + 0.2),
        ];
        rows.extend(to.map(|to| row(id, "api-txt", "end", to)));
        rows
    }

    fn behind(end: f64) -> Mark {
        Mark { end, renders: 0 }
    }

    #[test]
    fn a_render_that_began_when_we_posted_is_ours() {
        let mut rows = render("theirs", 10.0, Some(12.0));
        rows.extend(render("ours", 100.3, None));
        assert_eq!(trace(&rows, behind(12.0), 100.0), Trace::Open);
        rows.extend([row("ours", "api-txt", "end", 105.0)]);
        rows.extend(render("later", 106.0, None));
        assert_eq!(trace(&rows, behind(12.0), 100.0), Trace::Ended(vec!["outputs/ours-image".to_owned()]));
    }

    #[test]
    fn whatever_could_be_anothers_is_not_ours() {
        assert_eq!(trace(&[], behind(0.0), 100.0), Trace::None, "it never began");
        assert_eq!(
            trace(&render("late", 103.0, None), behind(12.0), 100.0),
            Trace::None,
            "it began at another time"
        );
        assert_eq!(
            trace(&render("old", 99.5, None), behind(99.6), 100.0),
            Trace::None,
            "it began before we looked"
        );
        let mut rows = render("one", 100.1, None);
        rows.extend(render("two", 100.2, None));
        assert_eq!(trace(&rows, behind(12.0), 100.0), Trace::None, "two began");
    }

    #[test]
    fn renders_that_were_ours_since_the_history_was_read_are_passed_over() {
        let mut rows = render("first", 99.0, Some(99.4));
        rows.extend(render("second", 99.5, Some(99.9)));
        let third = Mark { end: 12.0, renders: 2 };
        assert_eq!(trace(&rows, third, 100.0), Trace::None, "the third has not begun");
        rows.extend(render("third", 100.1, None));
        assert_eq!(trace(&rows, third, 100.0), Trace::Open);
        rows.extend([row("third", "api-txt", "end", 105.0)]);
        assert_eq!(trace(&rows, third, 100.0), Trace::Ended(vec!["outputs/third-image".to_owned()]));
        let mut rows = render("first", 99.0, Some(99.4));
        rows.extend(render("theirs", 99.5, Some(99.9)));
        rows.extend(render("ours", 100.1, None));
        assert_eq!(trace(&rows, Mark { end: 12.0, renders: 1 }, 100.0), Trace::None, "one more began");
    }

    #[test]
    fn a_note_without_a_count_is_of_a_history_just_read() {
        let mark: Mark = serde_json::from_str(r#"{"history_end": 12.5}"#).unwrap();
        assert_eq!(mark, behind(12.5));
    }
}
