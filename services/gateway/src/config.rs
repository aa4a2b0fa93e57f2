//! What an operator may set, and the bounds that keep one client from costing the others.

use std::time::Duration;

use clap::ArgMatches;
use stepcast_shared::config::{ListenConfig, NatsConfig, OriginConfig, Program, TelemetryConfig};

/// Everything that the gateway reads when it runs by itself.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "stepcast-gateway", version, about = "Live progress of Stepcast jobs over WebSocket")]
pub struct Config {
    /// Where it listens.
    #[command(flatten)]
    pub listen: ListenConfig,
    /// Where NATS is.
    #[command(flatten)]
    pub nats: NatsConfig,
    /// What it says of itself.
    #[command(flatten)]
    pub telemetry: TelemetryConfig,
    /// The gateway's own section.
    #[command(flatten)]
    pub gateway: GatewayConfig,
}

impl Program for Config {
    fn section(_: &ArgMatches) -> &'static str {
        "gateway"
    }

    fn check(&self) -> anyhow::Result<()> {
        self.listen.check()?;
        self.nats.check()?;
        self.telemetry.check()?;
        self.gateway.check()
    }
}

/// The gateway's own section, also read by a process that runs it beside other services.
#[derive(Clone, Debug, clap::Args)]
pub struct GatewayConfig {
    /// Which pages may connect.
    #[command(flatten)]
    pub origins: OriginConfig,
    /// How much a client may ask for, and how long the gateway waits.
    #[command(flatten)]
    pub limits: Limits,
}

/// Bounds of a connection.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Gateway limits")]
pub struct Limits {
    /// Connections at once; further ones are refused with 503.
    #[arg(
        long = "gateway-max-connections",
        env = "STEPCAST_GATEWAY_MAX_CONNECTIONS",
        default_value_t = 10_000
    )]
    pub max_connections: usize,
    /// Connections at once from one address, which then get 429; 0 for no limit.
    #[arg(
        long = "gateway-max-connections-per-address",
        env = "STEPCAST_GATEWAY_MAX_CONNECTIONS_PER_ADDRESS",
        default_value_t = 0
    )]
    pub max_connections_per_address: usize,
    /// Count connections by the last entry of X-Forwarded-For. Only behind a proxy that sets it.
    #[arg(long = "gateway-trust-forwarded-for", env = "STEPCAST_GATEWAY_TRUST_FORWARDED_FOR")]
    pub trust_forwarded_for: bool,
    /// How long a client may stay that watches nothing and says nothing.
    #[arg(
        long = "gateway-idle",
        env = "STEPCAST_GATEWAY_IDLE",
        default_value = "1h",
        value_parser = humantime::parse_duration
    )]
    pub idle: Duration,
    /// Age, give or take a tenth, at which a connection is asked to come back; without it connections may stay.
    /// It spreads clients over gateways that were added later.
    #[arg(
        long = "gateway-max-age",
        env = "STEPCAST_GATEWAY_MAX_AGE",
        value_parser = humantime::parse_duration
    )]
    pub max_age: Option<Duration>,
    /// Bytes of one message from a client; more closes the connection with 1009.
    #[arg(
        long = "gateway-max-frame-bytes",
        env = "STEPCAST_GATEWAY_MAX_FRAME_BYTES",
        default_value_t = 64 * 1024
    )]
    pub max_frame_bytes: usize,
    /// Jobs that one connection may watch by id.
    #[arg(
        long = "gateway-max-subscriptions",
        env = "STEPCAST_GATEWAY_MAX_SUBSCRIPTIONS",
        default_value_t = 1_000
    )]
    pub max_subscriptions: usize,
    /// Messages a second that a client may send for long.
    #[arg(
        long = "gateway-messages-per-second",
        env = "STEPCAST_GATEWAY_MESSAGES_PER_SECOND",
        default_value_t = 20
    )]
    pub messages_per_second: u32,
    /// Messages that a client may send at once.
    #[arg(long = "gateway-message-burst", env = "STEPCAST_GATEWAY_MESSAGE_BURST", default_value_t = 100)]
    pub message_burst: u32,
    /// Requests of one connection that may wait for their turn.
    #[arg(
        long = "gateway-max-pending-requests",
        env = "STEPCAST_GATEWAY_MAX_PENDING_REQUESTS",
        default_value_t = 32
    )]
    pub max_pending_requests: usize,
    /// Messages that may wait for a slow client before it is closed with 4408; progress does not count.
    #[arg(
        long = "gateway-outbox-messages",
        env = "STEPCAST_GATEWAY_OUTBOX_MESSAGES",
        default_value_t = 4_096
    )]
    pub outbox_messages: usize,
    /// Bytes of them that may wait.
    #[arg(
        long = "gateway-outbox-bytes",
        env = "STEPCAST_GATEWAY_OUTBOX_BYTES",
        default_value_t = 16 * 1024 * 1024
    )]
    pub outbox_bytes: usize,
    /// How long one write may take before the client counts as too slow.
    #[arg(
        long = "gateway-write-deadline",
        env = "STEPCAST_GATEWAY_WRITE_DEADLINE",
        default_value = "10s",
        value_parser = humantime::parse_duration
    )]
    pub write_deadline: Duration,
    /// How often a client is pinged; one that is silent for two of them is closed.
    #[arg(
        long = "gateway-heartbeat",
        env = "STEPCAST_GATEWAY_HEARTBEAT",
        default_value = "25s",
        value_parser = humantime::parse_duration
    )]
    pub heartbeat: Duration,
    /// How long a NATS subscription is kept once nobody needs it.
    #[arg(
        long = "gateway-linger",
        env = "STEPCAST_GATEWAY_LINGER",
        default_value = "2s",
        value_parser = humantime::parse_duration
    )]
    pub linger: Duration,
    /// How often the recorded events of watched jobs are read again.
    #[arg(
        long = "gateway-reread",
        env = "STEPCAST_GATEWAY_REREAD",
        default_value = "30s",
        value_parser = humantime::parse_duration
    )]
    pub reread: Duration,
    /// How long a request to another service may take.
    #[arg(
        long = "gateway-request-timeout",
        env = "STEPCAST_GATEWAY_REQUEST_TIMEOUT",
        default_value = "10s",
        value_parser = humantime::parse_duration
    )]
    pub request_timeout: Duration,
    /// Clients that are let go are told to come back within this time, spread evenly.
    #[arg(
        long = "gateway-reconnect-spread",
        env = "STEPCAST_GATEWAY_RECONNECT_SPREAD",
        default_value = "5s",
        value_parser = humantime::parse_duration
    )]
    pub reconnect_spread: Duration,
    /// Over how long a gateway that stops lets its clients go. Few clients take less: two a millisecond are let go.
    #[arg(
        long = "gateway-drain",
        env = "STEPCAST_GATEWAY_DRAIN",
        default_value = "5s",
        value_parser = humantime::parse_duration
    )]
    pub drain: Duration,
}

impl GatewayConfig {
    /// Refuses values under which nothing would work.
    pub fn check(&self) -> anyhow::Result<()> {
        let limits = &self.limits;
        for (name, zero) in [
            ("--gateway-max-frame-bytes", limits.max_frame_bytes == 0),
            ("--gateway-messages-per-second", limits.messages_per_second == 0),
            ("--gateway-message-burst", limits.message_burst == 0),
            ("--gateway-max-pending-requests", limits.max_pending_requests == 0),
            ("--gateway-outbox-messages", limits.outbox_messages == 0),
            ("--gateway-outbox-bytes", limits.outbox_bytes == 0),
            ("--gateway-heartbeat", limits.heartbeat.is_zero()),
            ("--gateway-max-age", limits.max_age.is_some_and(|age| age.is_zero())),
            ("--gateway-reread", limits.reread.is_zero()),
        ] {
            anyhow::ensure!(!zero, "{name} must be more than 0");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Config::command().debug_assert();
    }

    #[test]
    fn a_bound_of_nothing_is_refused_by_name() {
        let config = Config::parse_from(["gateway", "--gateway-message-burst", "0"]);
        assert!(config.gateway.check().unwrap_err().to_string().contains("--gateway-message-burst"));
        assert!(Config::parse_from(["gateway"]).gateway.check().is_ok());
    }
}
