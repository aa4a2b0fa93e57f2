//! NATS: whether it answers, is new enough, lets us in, keeps what it should, and lets us do what we must.

use std::time::Duration;

use async_nats::Client;
use futures_util::future::join_all;
use stepcast_shared::config::NatsConfig;
use stepcast_shared::nats::inspect::{self, Introduction, Standing};
use stepcast_shared::nats::{OLDEST, Part, Servers, open_within};

use super::report::Report;
use super::{needs, skew};
use crate::cli::Service;

const PART: &str = "nats";
/// Longest wait for the log-in: the server has spoken by then.
const LOG_IN: Duration = Duration::from_secs(5);

/// Looks at NATS, as a service or, without one, as all of them.
pub async fn look(config: &NatsConfig, service: Option<Service>, report: &mut Report) {
    let servers = match Servers::of(config) {
        Ok(servers) => servers,
        Err(error) => return report.wrong(PART, format!("{error:#}"), "correct --nats-url"),
    };
    let heard = join_all(servers.addresses.iter().map(inspect::introduction)).await;
    let mut reached = Vec::new();
    for (server, heard) in servers.addresses.iter().zip(heard) {
        let shown = format!("{}:{}", server.host(), server.port());
        match heard {
            Ok(introduction) => reached.push((shown, introduction)),
            Err(error) if servers.addresses.len() > 1 => report.warn(
                PART,
                format!("{shown}: {error:#}"),
                "start this server again; the others do its work meanwhile",
            ),
            Err(error) => report.wrong(
                PART,
                format!("{shown}: {error:#}"),
                "start nats-server there (deploy/nats has its configuration), or name another with --nats-url",
            ),
        }
    }
    if reached.is_empty() {
        if servers.addresses.len() > 1 {
            report.wrong(
                PART,
                format!("none of {} answers", servers.shown),
                "start them, or correct --nats-url",
            );
        }
        return;
    }
    if !reached.iter().all(|(shown, introduction)| is_usable(shown, introduction, report)) {
        return;
    }
    let inbox = service.map_or("up", Service::name);
    match open_within(LOG_IN, inbox, config).await {
        Ok(connection) => {
            let secure = config.wants_tls()
                || reached.iter().any(|(_, introduction)| introduction.tls_required)
                || servers.addresses.iter().any(async_nats::ServerAddr::tls_required);
            let how = if secure { "over TLS" } else { "without TLS" };
            let as_whom = if servers.login.is_some() { "logged in" } else { "nobody has to log in" };
            report.ok(PART, format!("{as_whom}, {how}"));
            look_inside(&connection.client, service, inbox, report).await;
        }
        Err(error) => report.wrong(
            PART,
            format!("{error:#}"),
            "compare these settings with those of the server (deploy/nats/users.conf for its users)",
        ),
    }
}

fn is_usable(shown: &str, introduction: &Introduction, report: &mut Report) -> bool {
    let version = &introduction.version;
    if let Err(error) = inspect::check_version(version) {
        let advice =
            format!("install nats-server {}.{} or later; what it stores is kept", OLDEST.0, OLDEST.1);
        report.wrong(PART, format!("{shown}: {error:#}"), advice);
        return false;
    }
    if !introduction.jetstream {
        let advice =
            "start it with JetStream: `jetstream { store_dir: … }` in its configuration, or --jetstream";
        report.wrong(PART, format!("{shown}: version {version}, which stores nothing"), advice);
        return false;
    }
    report.ok(PART, format!("{shown}: version {version}, with JetStream"));
    true
}

async fn look_inside(client: &Client, service: Option<Service>, inbox: &str, report: &mut Report) {
    match inspect::user(client).await {
        Ok(user) => {
            if let Some(skew) = skew(user.time) {
                report.warn(PART, skew, "let both machines take their time from the network (NTP)");
            }
            let services = service.map_or(Service::ALL.to_vec(), |service| vec![service]);
            let missing = needs::missing(&services, inbox, &user.permissions);
            let name = if user.name.is_empty() { "everybody" } else { &user.name };
            if missing.is_empty() {
                report.ok(PART, format!("{name} may do all that is needed"));
            } else {
                let message = format!("{name} may not do all that is needed: {}", missing.join(", "));
                report.wrong(PART, message, "permit it, as deploy/nats/users.conf does");
            }
        }
        Err(_) => report.warn(
            PART,
            "what this user may do could not be found out",
            "permit it to publish $SYS.REQ.USER.INFO, as deploy/nats/users.conf does; it changes nothing",
        ),
    }
    let part = if service == Some(Service::Gateway) { Part::Reads } else { Part::Records };
    let streams = inspect::streams(client, part).await;
    let count = streams.len();
    let (missing, found): (Vec<_>, Vec<_>) =
        streams.into_iter().partition(|(_, standing)| *standing == Standing::Missing);
    if !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(|(name, _)| name.as_str()).collect();
        let verb = if names.len() == 1 { "does" } else { "do" };
        let message = format!("{} {verb} not exist yet", names.join(", "));
        report.warn(PART, message, "start an api: it makes what is missing");
    }
    let fine = found.iter().filter(|(name, standing)| tell(name, standing, report)).count();
    if fine == count {
        let one = "its stream is as it should be";
        report.ok(PART, if count == 1 { one } else { "streams and buckets are as they should be" });
    }
}

/// Tells of a stream that is not as it should be; whether it is.
fn tell(name: &str, standing: &Standing, report: &mut Report) -> bool {
    match standing {
        // Told of all together.
        Standing::Missing => {}
        Standing::Unknown(error) => {
            let advice = "permit $JS.API.STREAM.INFO, and import it into an account of its own, as \
                          deploy/nats/users.conf does, and see in the server's log whether JetStream is well";
            report.wrong(PART, format!("{name}: {error}"), advice);
        }
        Standing::There { differences, .. } if !differences.is_empty() => {
            let message = format!("{name} is not as this release makes it: {}", differences.join(", "));
            report.warn(
                PART,
                message,
                "start an api of this release: it changes it, and keeps what is stored",
            );
        }
        Standing::There { copies: (found, wanted), .. } if found < wanted => {
            let message = format!("{name} has {found} of {wanted} copies up to date");
            report.warn(
                PART,
                message,
                "see that every node of the cluster runs, and wait until it has caught up",
            );
        }
        Standing::There { .. } => return true,
    }
    false
}
