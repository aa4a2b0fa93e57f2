//! Bad input, limits, origins, heartbeats and goodbyes.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::client::WsClient;
use crate::stage::{PATIENCE, Stage};

#[tokio::test]
async fn a_greeting_comes_first() {
    let stage = Stage::new().await;
    let mut client = WsClient::connect(stage.address).await;
    let greeting = client.expect("connected").await;
    assert_eq!((&greeting["protocol"], &greeting["heartbeat_seconds"]), (&json!(1), &json!(25)));
    assert!(
        greeting["connection_id"].as_str().unwrap().parse::<stepcast_shared::ids::ConnectionId>().is_ok()
    );
}

#[tokio::test]
async fn bad_input_is_answered_and_the_connection_stays() {
    let stage = Stage::with(&["--gateway-max-subscriptions", "2"]).await;
    let mut job = stage.job();
    let mut client = stage.watch(&[&job]).await;
    let fresh = || stepcast_shared::ids::JobId::mint();
    let too_many = json!({"type": "subscribe", "job_ids": [fresh(), fresh()], "request_id": "r"}).to_string();
    for (text, code) in [
        ("{", "invalid_json"),
        ("[]", "invalid_message"),
        (r#"{"type":"dance"}"#, "unknown_type"),
        (r#"{"type":"subscribe","job_ids":["../../etc"]}"#, "invalid_message"),
        (r#"{"type":"subscribe","job_ids":["*"]}"#, "invalid_message"),
        (r#"{"type":"subscribe","topics":["weather"]}"#, "invalid_message"),
        (r#"{"type":"retry","job_ids":[]}"#, "invalid_message"),
        (&too_many, "too_many_subscriptions"),
    ] {
        client.say_text(text).await;
        let error = client.expect("error").await;
        assert_eq!(error["code"], code, "{text}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    client.socket.send(Message::binary(vec![0, 1, 2])).await.unwrap();
    assert_eq!(client.expect("error").await["code"], "invalid_message");
    job.queued().await;
    client.expect_of("generation_queued", job.id).await;
}

#[tokio::test]
async fn a_flood_is_answered_and_then_ended() {
    let stage = Stage::with(&["--gateway-message-burst", "5", "--gateway-messages-per-second", "1"]).await;
    let mut client = stage.connect().await;
    for _ in 0..6 {
        client.say(&json!({"type": "ping"})).await;
    }
    for _ in 0..5 {
        client.expect("pong").await;
    }
    assert_eq!(client.expect("error").await["code"], "rate_limited");
    for _ in 0..60 {
        let _ = client.socket.send(Message::text("{}")).await;
    }
    assert_eq!(client.close_code().await, CloseCode::Policy);
}

#[tokio::test]
async fn a_frame_of_ten_megabytes_ends_the_connection_with_1009() {
    let stage = Stage::new().await;
    let client = stage.connect().await;
    let (mut sink, mut stream) = client.socket.split();
    let sending = sink.send(Message::text("x".repeat(10 * 1024 * 1024)));
    let hearing = async {
        loop {
            match stream.next().await {
                Some(Ok(Message::Close(Some(close)))) => return close.code,
                Some(Ok(_)) => {}
                other => panic!("no goodbye: {other:?}"),
            }
        }
    };
    let sending = async {
        // It cannot succeed, and how it fails is the client's affair.
        let _ = sending.await;
        std::future::pending().await
    };
    let code = async {
        tokio::select! {
            code = hearing => code,
            code = sending => code,
        }
    };
    assert_eq!(timeout(PATIENCE, code).await.unwrap(), CloseCode::Size);
    // Others are not concerned.
    stage.connect().await.expect_nothing_more().await;
}

#[tokio::test]
async fn whoever_does_not_take_its_events_is_closed_with_4408() {
    let stage = Stage::with(&["--gateway-outbox-messages", "32"]).await;
    let mut slow = WsClient::connect_narrow(stage.address).await;
    slow.expect("connected").await;
    slow.say(&json!({"type": "subscribe", "job_ids": null})).await;
    slow.expect("subscription_confirmed").await;
    for _ in 0..400 {
        stage.job().queued().await;
    }
    assert_eq!(slow.close_code().await, CloseCode::Library(4408));
}

#[tokio::test]
async fn whoever_takes_too_long_over_one_write_is_closed() {
    let stage =
        Stage::with(&["--gateway-write-deadline", "300ms", "--gateway-outbox-messages", "100000"]).await;
    let mut slow = WsClient::connect_narrow(stage.address).await;
    slow.expect("connected").await;
    slow.say(&json!({"type": "subscribe", "job_ids": null})).await;
    slow.expect("subscription_confirmed").await;
    for _ in 0..400 {
        stage.job().queued().await;
    }
    let ended = timeout(PATIENCE, async {
        // Nothing is read until the gateway has hung up, so that no room is made for it.
        tokio::time::sleep(Duration::from_secs(4)).await;
        while let Some(Ok(frame)) = slow.socket.next().await {
            if frame.is_close() {
                break;
            }
        }
    });
    ended.await.expect("the connection ends");
}

#[tokio::test]
async fn whoever_does_not_answer_pings_is_closed_and_whoever_does_stays() {
    let stage = Stage::with(&["--gateway-heartbeat", "200ms"]).await;
    let mut asleep = stage.connect().await;
    let mut awake = stage.connect().await;
    let waking = timeout(Duration::from_millis(1_500), awake.text()).await;
    assert!(waking.is_err(), "nothing but pings: {waking:?}");
    awake.expect_nothing_more().await;
    assert_eq!(asleep.close_code().await, CloseCode::Library(4408));
}

#[tokio::test]
async fn pages_of_other_origins_are_refused() {
    let stage = Stage::with(&["--allow-origin", "https://good.example"]).await;
    let port = stage.address.port();
    let own = format!("http://localhost:{port}");
    for (origin, status) in [
        (None, StatusCode::SWITCHING_PROTOCOLS),
        (Some(own.as_str()), StatusCode::SWITCHING_PROTOCOLS),
        (Some("https://good.example"), StatusCode::SWITCHING_PROTOCOLS),
        (Some("https://evil.example"), StatusCode::FORBIDDEN),
        (Some("null"), StatusCode::FORBIDDEN),
    ] {
        assert_eq!(WsClient::status_for(stage.address, origin).await, status, "{origin:?}");
    }
}

#[tokio::test]
async fn only_so_many_connections_are_taken() {
    let stage = Stage::with(&["--gateway-max-connections", "1"]).await;
    let client = stage.connect().await;
    assert_eq!(WsClient::status_for(stage.address, None).await, StatusCode::SERVICE_UNAVAILABLE);
    drop(client);
    timeout(PATIENCE, async {
        while WsClient::status_for(stage.address, None).await != StatusCode::SWITCHING_PROTOCOLS {}
    })
    .await
    .expect("the place is given back");
}

#[tokio::test]
async fn a_gateway_that_stops_says_goodbye_to_each() {
    let stage = Stage::with(&["--gateway-reconnect-spread", "3s"]).await;
    let mut clients = [stage.connect().await, stage.watch_all().await];
    stage.supervisor.stop();
    for client in &mut clients {
        let goodbye = client.expect("going_away").await;
        assert!(goodbye["reconnect_after_ms"].as_u64().unwrap() <= 3_000);
        assert_eq!(client.close_code().await, CloseCode::Away);
    }
    drop(clients);
    timeout(PATIENCE, stage.supervisor.finish()).await.expect("an end in time").expect("no task failed");
}

#[tokio::test]
async fn a_gateway_that_stops_does_not_wait_for_the_deaf() {
    let stage = Stage::with(&["--gateway-drain", "500ms"]).await;
    let _deaf = stage.watch_all().await;
    timeout(Duration::from_secs(8), stage.supervisor.finish()).await.expect("an end in time").unwrap();
}

#[tokio::test]
async fn one_address_may_not_take_every_place() {
    let arguments = ["--gateway-max-connections-per-address", "2", "--gateway-trust-forwarded-for"];
    let stage = Stage::with(&arguments).await;
    let _first = WsClient::connect(stage.address).await;
    let second = WsClient::connect(stage.address).await;
    assert_eq!(WsClient::status_for(stage.address, None).await, StatusCode::TOO_MANY_REQUESTS);
    drop(second);
    let again = async {
        while WsClient::status_for(stage.address, None).await != StatusCode::SWITCHING_PROTOCOLS {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again).await.expect("a place that was left is free again");
}

#[tokio::test]
async fn an_old_connection_is_asked_to_come_back() {
    let stage = Stage::with(&["--gateway-max-age", "200ms"]).await;
    let mut client = stage.connect().await;
    client.expect("going_away").await;
    assert_eq!(client.close_code().await, CloseCode::Away);
}

#[tokio::test]
async fn whoever_watches_nothing_may_not_stay_for_ever() {
    let stage = Stage::with(&["--gateway-idle", "300ms", "--gateway-heartbeat", "100ms"]).await;
    let job = stage.job();
    let mut watching = stage.watch(&[&job]).await;
    let mut idle = stage.connect().await;
    // Both read, and so both answer pings.
    tokio::select! {
        code = idle.close_code() => assert_eq!(code, CloseCode::Away),
        code = watching.close_code() => panic!("whoever watches is closed with {code}"),
    }
}
