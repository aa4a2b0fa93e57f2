//! What each service has to be permitted on NATS: read from the configuration that the deployment uses, so that there is
//! one list.

use stepcast_shared::nats::inspect::Permissions;

use crate::cli::Service;

const USERS: &str = include_str!("../../../../deploy/nats/users.conf");

/// What the services need that is not permitted, as a user whose answers come under `_INBOX.<inbox>`.
pub fn missing(services: &[Service], inbox: &str, permissions: &Permissions) -> Vec<String> {
    let mut missing = Vec::new();
    let own = format!("_INBOX.{inbox}.>");
    for service in services {
        for subject in listed(service.name(), "publish") {
            // What only this program asks is known to be permitted once it was answered.
            if subject != "$SYS.REQ.USER.INFO" && !permissions.publish.permit(subject) {
                missing.push(format!("publish {subject}"));
            }
        }
        for subject in listed(service.name(), "subscribe") {
            let subject = if subject.starts_with("_INBOX.") { own.as_str() } else { subject };
            if !permissions.subscribe.permit(subject) {
                missing.push(format!("subscribe {subject}"));
            }
        }
    }
    missing.sort();
    missing.dedup();
    missing
}

/// The subjects in one list of one user.
fn listed(user: &str, what: &str) -> impl Iterator<Item = &'static str> {
    let of_user = USERS.split_once(&format!("user: {user}\n")).map_or("", |(_, rest)| rest);
    let list = of_user.split_once(&format!("{what}: {{ allow: [")).map_or("", |(_, rest)| rest);
    let lines = list.split(']').next().unwrap_or_default().lines();
    lines
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| line.split('"').skip(1).step_by(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_has_a_list_and_is_content_with_its_own() {
        for service in [Service::Api, Service::Poller, Service::Gateway] {
            let lists = ["publish", "subscribe"].map(|what| listed(service.name(), what).collect::<Vec<_>>());
            assert!(lists[0].len() > 5 && lists[1].len() > 1, "{service:?}: {lists:?}");
            assert!(lists[0].contains(&"$SYS.REQ.USER.INFO"), "{service:?} may ask what it may");
            let own = serde_json::json!({"publish": {"allow": lists[0]}, "subscribe": {"allow": lists[1]}});
            let own = serde_json::from_value(own).unwrap();
            assert_eq!(missing(&[service], service.name(), &own), [""; 0]);
            assert!(!missing(&[service], "another", &own).is_empty(), "another's answers are not its own");
        }
        assert_eq!(missing(&[Service::Api], "up", &Permissions::default()), [""; 0], "nothing is limited");
    }

    #[test]
    fn what_is_not_permitted_is_named() {
        let own: Vec<_> =
            listed("gateway", "publish").filter(|subject| !subject.ends_with(".submit")).collect();
        let own =
            serde_json::json!({"publish": {"allow": own}, "subscribe": {"deny": ["stepcast.v1.job.x.>"]}});
        let own = serde_json::from_value(own).unwrap();
        let missing = missing(&[Service::Gateway], "gateway", &own);
        assert_eq!(missing, ["publish stepcast.v1.rpc.submit", "subscribe stepcast.v1.job.>"]);
    }
}
