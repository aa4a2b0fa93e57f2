//! Where traces go, and how many, as a process is told.

use std::str::FromStr;

use url::Url;

/// Where traces go, and how many.
#[derive(Clone, Debug, clap::Args)]
pub struct TraceConfig {
    /// Send traces to this collector by OTLP over HTTP, such as `http://127.0.0.1:4318`; `off` for none. Unless said, the
    /// standard's `OTEL_EXPORTER_OTLP_ENDPOINT` holds.
    #[arg(long, env = "STEPCAST_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<OtlpEndpoint>,
    /// Which share of the traces that begin here is sent, from 0 to 1; who asks within a trace of its own has decided.
    #[arg(long, env = "STEPCAST_TRACE_SAMPLE_RATIO", default_value = "1", value_name = "SHARE", value_parser = share)]
    pub trace_sample_ratio: f64,
    /// What the standard calls the same.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide = true)]
    pub otel_exporter_otlp_endpoint: Option<OtlpEndpoint>,
}

impl TraceConfig {
    /// Where traces go, if anywhere.
    pub fn endpoint(&self) -> Option<&Url> {
        let named = self.otlp_endpoint.as_ref().or(self.otel_exporter_otlp_endpoint.as_ref())?;
        named.0.as_ref()
    }
}

/// A collector, or none: nothing and `off` both mean that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint(pub Option<Url>);

/// An address that is none of a collector.
#[derive(Debug, thiserror::Error)]
pub enum BadEndpoint {
    /// It cannot be read, or speaks something else.
    #[error(
        "a collector is named by an http:// or https:// address, for OTLP over HTTP (port 4318, not 4317)"
    )]
    Url,
    /// Addresses are shown; headers are not.
    #[error("what logs in at a collector goes into OTEL_EXPORTER_OTLP_HEADERS, not into its address")]
    Credentials,
}

impl FromStr for OtlpEndpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        if matches!(text.trim(), "" | "off") {
            return Ok(Self(None));
        }
        let url = Url::parse(text.trim()).ok();
        let url = url
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some())
            .ok_or(BadEndpoint::Url)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BadEndpoint::Credentials);
        }
        Ok(Self(Some(url)))
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.trim().parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share is a number from 0 to 1".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Program {
        #[command(flatten)]
        trace: TraceConfig,
    }

    fn endpoint(arguments: &[&str]) -> Result<Option<String>, String> {
        let program = Program::try_parse_from([&["program"], arguments].concat());
        let trace = program.map_err(|error| crate::config::without_secrets(error).to_string())?.trace;
        Ok(trace.endpoint().map(ToString::to_string))
    }

    #[test]
    fn our_own_endpoint_goes_before_the_standards() {
        let both =
            ["--otel-exporter-otlp-endpoint", "http://theirs:4318", "--otlp-endpoint", "http://ours:4318"];
        assert_eq!(endpoint(&both), Ok(Some("http://ours:4318/".to_owned())));
        assert_eq!(endpoint(&both[..2]), Ok(Some("http://theirs:4318/".to_owned())));
        assert_eq!(endpoint(&[&both[..2], &["--otlp-endpoint", "off"]].concat()), Ok(None));
        assert_eq!(endpoint(&["--otlp-endpoint", ""]), Ok(None));
    }

    #[test]
    fn an_address_that_is_no_collectors_is_refused_without_its_password() {
        assert!(endpoint(&["--otlp-endpoint", "collector:4317"]).unwrap_err().contains("4318"));
        let refused = endpoint(&["--otlp-endpoint", "http://bob:hunter2@collector:4318"]).unwrap_err();
        assert!(refused.contains("OTEL_EXPORTER_OTLP_HEADERS") && !refused.contains("hunter2"), "{refused}");
        for share in ["2", "-0.1", "NaN", "half"] {
            assert!(endpoint(&[&format!("--trace-sample-ratio={share}")]).is_err(), "{share}");
        }
    }
}
