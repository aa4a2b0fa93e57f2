//! Metrics as Prometheus would read them.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::Http;

/// What one process shows at `/metrics`.
#[derive(Debug)]
pub struct Scrape(Vec<Sample>);

/// One line of it.
#[derive(Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Scrape {
    /// Asks a process.
    pub async fn of(http: &Http) -> Self {
        let answer = http.get("/metrics").await;
        assert_eq!(answer.status, 200);
        let text = String::from_utf8(answer.bytes.to_vec()).expect("metrics are text");
        Self(text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(sample).collect())
    }

    /// The sum over every series of this name that has these labels; `None` if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|it| it == value))
        };
        let values: Vec<f64> = self.0.iter().filter(has).map(|sample| sample.value).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// The names of all metrics; a histogram's is that of the whole.
    pub fn names(&self) -> BTreeSet<String> {
        self.0.iter().map(|sample| whole(&sample.name).to_owned()).collect()
    }

    /// Every series.
    pub fn samples(&self) -> &[Sample] {
        &self.0
    }
}

/// The name of a metric without what its parts add to it.
pub fn whole(name: &str) -> &str {
    let parts = ["_bucket", "_sum", "_count"];
    parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name)
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect("a line ends with a value");
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels = labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty());
    let pair = |label: &str| {
        let (label, value) = label.split_once("=\"").expect("a label has a value");
        (label.to_owned(), value.trim_end_matches('"').to_owned())
    };
    let value = value.parse().expect("a value is a number");
    Sample { name: name.to_owned(), labels: labels.map(pair).collect(), value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_into_its_parts() {
        let plain = sample("up 1");
        assert_eq!((plain.name.as_str(), plain.labels.len()), ("up", 0));
        let labelled = sample(r#"a_seconds_bucket{pool="x, y",le="+Inf"} 2.5"#);
        assert_eq!((whole(&labelled.name), labelled.labels["pool"].as_str()), ("a_seconds", "x, y"));
        assert!(labelled.labels["le"] == "+Inf" && (labelled.value - 2.5).abs() < 1e-9);
    }
}
