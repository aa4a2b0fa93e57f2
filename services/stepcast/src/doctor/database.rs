//! The database: whether it answers, has the right schema, takes changes, and has room.

use std::path::Path;

use secrecy::{ExposeSecret as _, SecretString};
use stepcast_api::inspect::{self, Inspected, Schema};
use stepcast_shared::address::without_credentials;

use super::report::Report;
use super::{skew, storage};

const PART: &str = "database";

/// Looks at the database behind an address.
pub async fn look(url: Option<&SecretString>, report: &mut Report) {
    let Some(url) = url else {
        return report.skip(PART, "no address is set (--database-url)");
    };
    let shown = without_credentials(url.expose_secret());
    match inspect::inspect(url).await {
        Err(error) => {
            let advice = "see that it runs and can be reached from here, and compare user, password, name and \
                          certificates in --database-url";
            report.wrong(PART, format!("{shown}: {error:#}"), advice);
        }
        Ok(None) => {
            report.ok(PART, format!("{shown} does not exist yet: the first start makes it"));
            if let Some(path) = shown.strip_prefix("sqlite://") {
                storage::look_at_ancestor(PART, Path::new(path), report);
            }
        }
        Ok(Some(inspected)) => tell(&shown, &inspected, report),
    }
}

fn tell(shown: &str, inspected: &Inspected, report: &mut Report) {
    let how = match inspected.encrypted {
        Some(true) => ", over TLS",
        Some(false) => ", without TLS",
        None => "",
    };
    report.ok(PART, format!("{shown}: {}{how}", inspected.version));
    match inspected.schema {
        Schema::Current => report.ok(PART, "its schema is this release's"),
        Schema::Missing => report.ok(PART, "it has no schema yet: the first start of an api makes it"),
        Schema::Older(steps) => report.warn(
            PART,
            format!("its schema is older than this release, by {steps} steps"),
            "make a backup; the next start of an api brings it up to date",
        ),
        Schema::Newer => report.wrong(
            PART,
            "a newer release has changed its schema",
            "run that release, or go back to a backup of before",
        ),
    }
    if let Some(why) = &inspected.unwritable {
        let advice = "give this user the right to change it, or see what else holds it locked";
        report.wrong(PART, format!("nothing can be changed in it: {why}"), advice);
    }
    if let Some(skew) = inspected.time.and_then(skew) {
        report.warn(PART, skew, "let both machines take their time from the network (NTP)");
    }
    if let Some((open, most)) = inspected.connections
        && open * 10 > most * 9
    {
        let message = format!("{open} of its {most} connections are taken, and an api takes up to 16");
        report.warn(PART, message, "raise max_connections of PostgreSQL, or run fewer clients of it");
    }
    if let Some(folder) = inspected.file.as_deref().and_then(Path::parent) {
        storage::look_at_room(PART, folder, report);
    }
}
