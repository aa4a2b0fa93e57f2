//! Tables, on the terminal and in a document between its marks.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

use crate::outcome::Outcome;
use crate::scenario::{Case, Scenario, Shape};

const BEGIN: &str = "<!-- figures: begin -->";
const END: &str = "<!-- figures: end -->";

/// What one scenario gave: a row for each case that could be measured, a reason for each that could not.
#[derive(Debug)]
pub struct Group {
    /// Which.
    pub scenario: Scenario,
    /// Medians.
    pub rows: Vec<(Case, Result<Outcome, String>)>,
}

/// A column: its head, and what it says of an outcome.
type Column = (&'static str, fn(&Outcome) -> String);

const RATE: Column = ("deliveries/s", rate);
const CPU: Column = ("server CPU s/M", |it| number(it.cpu, 2));
const P50: Column = ("p50 ms", |it| millis(it.p50));
const P99: Column = ("p99 ms", |it| millis(it.p99));
const P999: Column = ("p99.9 ms", |it| millis(it.p999));
const BROKER: Column = ("broker CPU s/M", |it| number(it.broker_cpu, 2));
const RESIDENT: Column = ("KiB per connection", |it| number(it.resident, 1));

fn columns(shape: Shape) -> Vec<Column> {
    match shape {
        Shape::Delivery => vec![RATE, CPU, P50, P99, P999, ("left out", left_out), BROKER],
        Shape::Idle => vec![RESIDENT, ("all connected after, s", |it| number(it.opened, 2))],
        Shape::Growth => vec![RATE, CPU, P50, P99, P999, BROKER, RESIDENT],
        Shape::Slow => vec![
            ("p99 ms before", |it| millis(it.p99_before)),
            ("p99 ms while", |it| millis(it.p99)),
            ("messages/s to each before", |it| number(it.rate_before, 0)),
            ("while", |it| number(it.rate, 0)),
            ("memory grown, MiB", |it| mebi(it.grown)),
            ("the slow ones", |it| it.fate.clone().unwrap_or_default()),
        ],
        Shape::Storm => vec![
            ("all back after, s", |it| number(it.opened, 2)),
            ("half, s", |it| number(it.p50.map(seconds), 2)),
            ("99 of 100, s", |it| number(it.p99.map(seconds), 2)),
            ("tried again", |it| number(it.refused, 0)),
            ("server CPU s", |it| number(it.cores, 2)),
            ("broker CPU s", |it| number(it.broker_cpu, 2)),
            ("memory grown, MiB", |it| mebi(it.grown)),
            ("JetStream consumers", |it| number(it.consumers, 0)),
        ],
        Shape::Batch => vec![
            ("server CPU, cores", |it| number(it.cores, 2)),
            ("updates delivered/s", |it| number(it.rate, 0)),
            ("MiB/s", |it| mebi(it.bytes.map(|bytes| bytes / 1_024.0))),
            P50,
            P99,
            ("left out", left_out),
        ],
    }
}

/// One table.
pub fn table(group: &Group) -> String {
    let columns = columns(group.scenario.shape());
    let clients = group.rows.first().map_or(0, |(case, _)| case.clients);
    let heads: Vec<&str> = columns.iter().map(|(head, _)| *head).collect();
    let mut text = format!("### {}\n\n| server | {} |\n", group.scenario.title(clients), heads.join(" | "));
    let _ = writeln!(text, "| --- |{}", " ---: |".repeat(columns.len()));
    for (case, outcome) in &group.rows {
        let cells = match outcome {
            Ok(outcome) => columns.iter().map(|(_, tell)| tell(outcome)).collect::<Vec<_>>().join(" | "),
            Err(reason) => format!("not measured: {reason}{}", " |".repeat(columns.len() - 1)),
        };
        let _ = writeln!(text, "| {} | {cells} |", group.scenario.label(case));
    }
    text
}

fn rate(outcome: &Outcome) -> String {
    // A server that falls behind a fixed rate is measured on other terms, which must show.
    let behind = matches!((outcome.rate, outcome.wanted), (Some(rate), Some(wanted)) if rate < wanted * 0.97);
    format!("{}{}", number(outcome.rate, 0), if behind { " (behind)" } else { "" })
}

fn left_out(outcome: &Outcome) -> String {
    match outcome.conflated {
        // Less is what was on its way at the edges of the measurement.
        Some(share) if share >= 1.0 => format!("{share:.0} %"),
        _ => "-".to_owned(),
    }
}

fn millis(micros: Option<f64>) -> String {
    number(micros.map(|micros| micros / 1_000.0), 2)
}

fn seconds(micros: f64) -> f64 {
    micros / 1e6
}

fn mebi(kibi: Option<f64>) -> String {
    number(kibi.map(|kibi| kibi / 1_024.0), 1)
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
    use clap::ValueEnum as _;

    use super::*;
    use crate::peer::Peer;

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
        for scenario in Scenario::value_variants() {
            let rows =
                scenario.cases(Peer::value_variants(), None).into_iter().enumerate().map(|(at, case)| {
                    (case, if at == 0 { Err("why".to_owned()) } else { Ok(Outcome::default()) })
                });
            let table = table(&Group { scenario: *scenario, rows: rows.collect() });
            let cells: Vec<usize> = table
                .lines()
                .filter(|line| line.starts_with('|'))
                .map(|line| line.matches('|').count())
                .collect();
            assert!(cells.windows(2).all(|two| two[0] == two[1]), "{table}");
        }
    }
}
