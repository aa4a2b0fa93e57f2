//! What was found, for people and for scripts.

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use serde::Serialize;

use crate::out;
use crate::table::shortened;

/// Longest sentence that is shown: what servers answer is theirs.
const MOST: usize = 600;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, but somebody should know.
    Warning,
    /// It does not work.
    Wrong,
    /// It was not looked at.
    Skipped,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What it belongs to.
    pub part: &'static str,
    /// How it is.
    pub state: State,
    /// What was found.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// Everything that was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// In the order in which it was looked at.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Notes that something is well.
    pub fn ok(&mut self, part: &'static str, message: impl Into<String>) {
        self.add(part, State::Ok, message.into(), None);
    }

    /// Notes that something works, but should be known.
    pub fn warn(&mut self, part: &'static str, message: impl Into<String>, advice: impl Into<String>) {
        self.add(part, State::Warning, message.into(), Some(advice.into()));
    }

    /// Notes that something does not work.
    pub fn wrong(&mut self, part: &'static str, message: impl Into<String>, advice: impl Into<String>) {
        self.add(part, State::Wrong, message.into(), Some(advice.into()));
    }

    /// Notes that something was not looked at.
    pub fn skip(&mut self, part: &'static str, message: impl Into<String>) {
        self.add(part, State::Skipped, message.into(), None);
    }

    fn add(&mut self, part: &'static str, state: State, message: String, advice: Option<String>) {
        let short = |text: String| shortened(&text, MOST);
        // Two parts may lie in one folder.
        let is_told = |finding: &Finding| finding.state == State::Ok && finding.message == message;
        if state == State::Ok && self.findings.iter().any(is_told) {
            return;
        }
        self.findings.push(Finding { part, state, message: short(message), advice: advice.map(short) });
    }

    /// Whether nothing is wrong.
    pub fn is_well(&self) -> bool {
        self.count(State::Wrong) == 0
    }

    /// Prints it.
    pub fn tell(&self, json: bool) -> anyhow::Result<()> {
        if json {
            return out::json(&serde_json::json!({ "well": self.is_well(), "findings": self.findings }));
        }
        out::line(&self.text(std::io::stdout().is_terminal()))
    }

    fn text(&self, colours: bool) -> String {
        let mut text = String::new();
        let width = self.findings.iter().map(|finding| finding.part.len()).max().unwrap_or(0);
        let mut last = "";
        for finding in &self.findings {
            let part = if finding.part == last { "" } else { finding.part };
            last = finding.part;
            let _ = writeln!(text, "{part:<width$}  {}  {}", mark(finding.state, colours), finding.message);
            if let Some(advice) = &finding.advice {
                let _ = writeln!(text, "{:width$}           -> {advice}", "");
            }
        }
        let (wrong, warnings) = (self.count(State::Wrong), self.count(State::Warning));
        let count =
            |count: usize, one: &str, more: &str| format!("{count} {}", if count == 1 { one } else { more });
        let _ = match (wrong, warnings) {
            (0, 0) => write!(text, "\nAll is well"),
            (0, _) => write!(text, "\nIt works, with {}", count(warnings, "warning", "warnings")),
            (_, 0) => write!(text, "\n{} wrong", count(wrong, "thing is", "things are")),
            _ => write!(
                text,
                "\n{} wrong, and there {}",
                count(wrong, "thing is", "things are"),
                if warnings == 1 { "is 1 warning".to_owned() } else { format!("are {warnings} warnings") }
            ),
        };
        text
    }

    fn count(&self, state: State) -> usize {
        self.findings.iter().filter(|finding| finding.state == state).count()
    }
}

/// Words rather than signs, which not every terminal and no log shows; all of the same width.
fn mark(state: State, colours: bool) -> String {
    let (word, colour) = match state {
        State::Ok => ("ok     ", "32"),
        State::Warning => ("warning", "33"),
        State::Wrong => ("WRONG  ", "31"),
        State::Skipped => ("skipped", "2"),
    };
    if colours { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_from_top_to_bottom_and_ends_with_what_it_amounts_to() {
        let mut report = Report::default();
        assert!(report.text(false).ends_with("All is well"));
        report.ok("nats", "there");
        report.ok("database", "there");
        report.warn("nats", "slow", "wait");
        assert!(report.is_well() && report.text(false).ends_with("It works, with 1 warning"));
        report.wrong("database", "gone\x1b[2J", "find it");
        report.skip("storage", "not asked");
        assert!(!report.is_well());
        let expected = "\
nats      ok       there
          warning  slow
                   -> wait
database  WRONG    gone [2J
                   -> find it
storage   skipped  not asked

1 thing is wrong, and there is 1 warning";
        assert_eq!(report.text(false), expected);
        assert!(report.text(true).contains("\x1b[31mWRONG  \x1b[0m"));
    }
}
