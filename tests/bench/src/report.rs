//! Tables, on the terminal and in a document between its marks.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

use crate::cell::Outcome;
use crate::peer::Peer;
use crate::scenario::{Load, Scenario};

const BEGIN: &str = "<!-- figures: begin -->";
const END: &str = "<!-- figures: end -->";

/// What one scenario gave: a row for each server that could be measured, a reason for each that could not.
#[derive(Debug)]
pub struct Group {
    /// Which.
    pub scenario: Scenario,
    /// With so many clients.
    pub clients: usize,
    /// Medians.
    pub rows: Vec<(Peer, Result<Outcome, String>)>,
}

/// One table.
pub fn table(group: &Group) -> String {
    let idle = group.scenario.load() == Load::Idle;
    let mut text = format!("### {}\n\n", group.scenario.title(group.clients));
    text += if idle {
        "| server | KiB per connection | all connected after, s |\n| --- | ---: | ---: |\n"
    } else {
        "| server | deliveries/s | server CPU s/M | p50 ms | p99 ms | p99.9 ms | left out | broker CPU s/M |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    };
    for (peer, outcome) in &group.rows {
        let row = match outcome {
            Ok(outcome) if idle => {
                format!("{} | {}", number(outcome.resident, 1), number(outcome.opened, 2))
            }
            Ok(outcome) => delivery(outcome, peer.is_floor()),
            Err(reason) => format!("not measured: {reason}{}", if idle { " |" } else { " | | | | | |" }),
        };
        let _ = writeln!(text, "| {} | {row} |", peer.title());
    }
    text
}

fn delivery(outcome: &Outcome, is_floor: bool) -> String {
    let millis = |micros: Option<f64>| number(micros.map(|micros| micros / 1_000.0), 2);
    let left_out = match outcome.conflated {
        // Less is what was on its way at the edges of the measurement.
        Some(share) if share >= 1.0 => format!("{share:.0} %"),
        Some(_) => "-".to_owned(),
        None => String::new(),
    };
    // A server that falls behind a fixed rate is measured on other terms, which must show.
    let behind = matches!((outcome.rate, outcome.wanted), (Some(rate), Some(wanted)) if rate < wanted * 0.97);
    format!(
        "{}{} | {} | {} | {} | {} | {left_out} | {}",
        number(outcome.rate, 0),
        if behind { " (behind)" } else { "" },
        number(outcome.cpu, 2),
        millis(outcome.p50),
        millis(outcome.p99),
        millis(outcome.p999),
        if is_floor { "-".to_owned() } else { number(outcome.broker_cpu, 2) },
    )
}

fn number(value: Option<f64>, digits: usize) -> String {
    let Some(value) = value else { return "-".to_owned() };
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_once('.').map_or((&*text, None), |(whole, rest)| (whole, Some(rest)));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place) % 3 == 0 && digit.is_ascii_digit() && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    fraction.map_or(grouped.clone(), |fraction| format!("{grouped}.{fraction}"))
}

/// Puts the text between the marks of a document.
pub fn write(document: &Path, text: &str) -> anyhow::Result<()> {
    let old =
        std::fs::read_to_string(document).with_context(|| format!("cannot read {}", document.display()))?;
    let new = between(&old, text)
        .with_context(|| format!("{} lacks the lines `{BEGIN}` and `{END}`", document.display()))?;
    std::fs::write(document, new).with_context(|| format!("cannot write {}", document.display()))
}

fn between(old: &str, text: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(number(Some(1_234_567.8), 0), "1,234,568");
        assert_eq!(number(Some(1_234.567), 2), "1,234.57");
        assert_eq!(number(Some(123.0), 0), "123");
        assert_eq!(number(Some(0.5), 1), "0.5");
        assert_eq!(number(None, 1), "-");
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let old = format!("head\n{BEGIN}\nold\n{END}\ntail\n");
        let new = between(&old, "new\n").unwrap();
        assert_eq!(new, format!("head\n{BEGIN}\n\nnew\n\n{END}\ntail\n"));
        assert_eq!(between(&new, "new").as_ref(), Some(&new));
        assert_eq!(between("no marks", "new"), None);
    }

    #[test]
    fn every_row_has_as_many_cells_as_its_head() {
        for scenario in [Scenario::IdleOne, Scenario::OneFull] {
            let rows = vec![
                (Peer::Gateway, Ok(Outcome::default())),
                (Peer::Floor, Ok(Outcome::default())),
                (Peer::Axum, Err("why".to_owned())),
            ];
            let table = table(&Group { scenario, clients: 10, rows });
            let cells: Vec<usize> = table
                .lines()
                .filter(|line| line.starts_with('|'))
                .map(|line| line.matches('|').count())
                .collect();
            assert!(cells.windows(2).all(|two| two[0] == two[1]), "{table}");
        }
    }
}
