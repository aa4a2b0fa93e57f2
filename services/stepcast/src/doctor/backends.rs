//! SD.Next servers: whether each answers, as what, and with which checkpoint.

use std::time::Duration;

use futures_util::future::join_all;
use stepcast_poller::{BackendSpec, Look, SdNext, Unusable};

use super::report::Report;

const PART: &str = "backends";

/// Looks at all of them at once.
pub async fn look(backends: &[BackendSpec], report: &mut Report) {
    let looks = backends.iter().map(|backend| async move {
        match SdNext::new(backend, Duration::from_secs(30)) {
            Ok(mut server) => {
                let look = server.look().await;
                look.map(|look| (server.dialect().as_str(), look))
            }
            Err(error) => Err(Unusable::Silent(format!("{error:#}"))),
        }
    });
    for (backend, look) in backends.iter().zip(join_all(looks).await) {
        tell(backend, look, report);
    }
}

fn tell(backend: &BackendSpec, look: Result<(&'static str, Look), Unusable>, report: &mut Report) {
    let shown = format!("{} ({})", backend.id, backend.url);
    let (dialect, look) = match look {
        Ok(look) => look,
        Err(error) => {
            let advice = match error {
                Unusable::Silent(_) => {
                    "start it, and with --listen if it is on another machine; jobs wait for it meanwhile"
                }
                Unusable::Unauthorized => {
                    "write ID=http://USER:PASSWORD@HOST:PORT, as its option --auth has them"
                }
                Unusable::Odd(_) => {
                    "see that this is SD.Next, A1111 or Forge; the latter need their option --api"
                }
                Unusable::RateLimited => "wait a minute, and keep other clients from asking it so often",
            };
            let message = format!("{shown}: {error}");
            return if matches!(error, Unusable::RateLimited) {
                report.warn(PART, message, advice);
            } else {
                report.wrong(PART, message, advice);
            };
        }
    };
    if look.is_unreadable() {
        let advice = "see that this is SD.Next, A1111 or Forge, and nothing in front of it";
        return report.wrong(PART, format!("{shown}: it answers, but not as SD.Next does"), advice);
    }
    match look.model {
        Some(model) => report.ok(PART, format!("{shown}: {dialect}, with {model}")),
        None => report.warn(
            PART,
            format!("{shown}: {dialect}, with no checkpoint loaded"),
            "load one on its own page, or name one in each job; a server that still starts needs no help",
        ),
    }
}
