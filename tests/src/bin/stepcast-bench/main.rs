//! Measures Stepcast on this machine, one run, nothing compared with a stored figure: the machines that run this are
//! noisy, so only what stands in one report may be compared.
//!
//! Without arguments everything is measured, otherwise what they name: `submit`, `latency`, `throughput`, `tracing`,
//! `idle`, `footprint`.

mod cpu;
mod footprint;
mod idle;
mod latency;
mod played;
mod submit;
mod throughput;

use std::time::Duration;

const ALL: [&str; 6] = ["submit", "latency", "throughput", "tracing", "idle", "footprint"];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let named: Vec<String> = std::env::args().skip(1).collect();
    let unknown = named.iter().find(|name| !ALL.contains(&name.as_str()));
    anyhow::ensure!(unknown.is_none(), "there is no `{}`; there are {}", unknown.unwrap(), ALL.join(", "));
    println!("{:<58} {:>10} {:>10} {:>10}", "", "p50", "p99", "most");
    for name in ALL {
        if !named.is_empty() && !named.iter().any(|wanted| wanted == name) {
            continue;
        }
        match name {
            "submit" => submit::run().await?,
            "latency" => latency::run().await?,
            "throughput" => throughput::run().await?,
            "tracing" => throughput::traced().await?,
            "idle" => idle::run().await?,
            _ => footprint::run().await?,
        }
    }
    Ok(())
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
