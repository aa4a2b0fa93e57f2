//! Measures Stepcast on this machine, one run, nothing compared with a stored figure: the machines that run this are
//! noisy, so only what stands in one report may be compared.

mod footprint;
mod latency;
mod submit;

use std::time::Duration;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    println!("{:<58} {:>10} {:>10} {:>10}", "", "p50", "p99", "most");
    submit::run().await?;
    latency::run().await?;
    footprint::run().await
}

/// Prints a row of a distribution, in milliseconds.
fn row(name: &str, mut samples: Vec<Duration>) {
    samples.sort();
    let at = |share: f64| {
        let index = (share * (samples.len() - 1) as f64).round();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of the list")]
        let sample = samples[index as usize];
        format!("{:.1} ms", sample.as_secs_f64() * 1000.0)
    };
    println!("{name:<58} {:>10} {:>10} {:>10}", at(0.5), at(0.99), at(1.0));
}

/// Prints a single figure.
fn figure(name: &str, value: &str) {
    println!("{name:<58} {value:>10}");
}
