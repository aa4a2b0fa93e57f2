//! `doctor`: looks at everything that Stepcast rests on, with the settings that its services would have, and says what
//! to do about what is not well. It changes nothing: what it writes to try a folder, it removes.

mod backends;
mod database;
mod machine;
mod nats;
mod needs;
mod report;
mod running;
mod storage;

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use stepcast_shared::config::NatsConfig;
use url::Url;

use self::machine::Machine;
use self::report::Report;
use crate::cli::{Doctor, Service};
use crate::exit::Exit;

/// How far clocks may be apart before it is worth a word, in seconds: events carry times of different machines.
const SKEW: i64 = 5;

/// Looks, and tells.
pub async fn run(args: &Doctor, json: bool) -> anyhow::Result<Exit> {
    let mut report = Report::default();
    let up = &args.up;
    let service = args.service.or_else(|| up.nats_user.as_deref().and_then(Service::of_user));
    let machine = match (&up.nats_url, service) {
        (None, None) => Some(Machine::look(up, &mut report).await?),
        _ => None,
    };
    let nats = match &machine {
        // Its own server, if that runs; otherwise there is nothing to look at yet.
        Some(machine) => machine.nats.clone().map(NatsConfig::at),
        None => Some(up.nats()?),
    };
    if let Some(nats) = nats {
        nats::look(&nats, service, &mut report).await;
    }
    let (database, images) = kept(args, machine.as_ref())?;
    if service.is_none_or(|service| service == Service::Api) {
        database::look(database.as_ref(), &mut report).await;
    }
    if service != Some(Service::Gateway) {
        storage::look(images.as_ref(), &mut report).await;
    }
    if service.is_none_or(|service| service == Service::Poller) && !up.demo {
        backends::look(&up.sdnext, &mut report).await;
    }
    let server = args.server.clone().or_else(|| machine.and_then(|machine| machine.server));
    if let Some(server) = server {
        running::look(&server, &mut report).await;
    }
    report.tell(json)?;
    Ok(if report.is_well() { Exit::Done } else { Exit::Failed })
}

/// Where rows and images are kept, if that is known.
fn kept(args: &Doctor, machine: Option<&Machine>) -> anyhow::Result<(Option<SecretString>, Option<Url>)> {
    let (mut database, mut images) = (args.up.database_url.clone(), args.up.images_url.clone());
    if let Some(machine) = machine {
        database = database.or_else(|| Some(machine.data_dir.database_url().into()));
        images = match images {
            Some(images) => Some(images),
            None => Some(machine.data_dir.images_url()?),
        };
    }
    Ok((database, images))
}

/// A word about a clock that differs from ours.
fn skew(theirs: DateTime<Utc>) -> Option<String> {
    let apart = (theirs - Utc::now()).num_seconds();
    (apart.abs() > SKEW).then(|| {
        format!("its clock is {} s {} ours", apart.abs(), if apart > 0 { "ahead of" } else { "behind" })
    })
}
