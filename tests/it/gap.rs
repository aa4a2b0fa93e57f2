//! What happens while one gateway alone is cut off.

use std::time::Duration;

use serde_json::json;
use stepcast_sdnext_sim::Config;
use stepcast_tests::check;
use stepcast_tests::client::Http;
use stepcast_tests::fleet::{Fleet, Link, Part};
use stepcast_tests::proxy::Mode;
use stepcast_tests::wait::until;
use stepcast_tests::watcher::Watcher;

#[tokio::test]
async fn a_job_that_lived_within_an_outage_of_a_gateway_reaches_who_watches_all() {
    let config = Config { step_time: Duration::from_millis(100), rate_limit: 0, ..Config::default() };
    let fleet = Fleet::start(&config).await.unwrap();
    let http = Http::to(&fleet.http_address());
    let gateway = Http::to(&fleet.socket_address(0));
    let mut watcher = Watcher::connect(&fleet.socket_address(0)).await.unwrap();
    watcher.subscribe(None).await;
    let small = json!({"prompt": "small", "steps": 2, "width": 64, "height": 64});
    let before = http.submit(&small).await;
    watcher.ended(&before).await;

    let cut = fleet.disturb(Link::Bus(Part::Gateway(0)), Mode::Cut, Duration::from_secs(8));
    let within = async {
        until("the gateway is cut off", async || {
            (gateway.get("/health/ready").await.status == 503).then_some(())
        })
        .await;
        let id = http.submit(&small).await;
        http.ended(&id).await;
        id
    };
    let (id, ()) = tokio::join!(within, cut);
    watcher.ended(&id).await;
    for id in [&before, &id] {
        check::messages(id, &watcher.about(id));
    }
}
