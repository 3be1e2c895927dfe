//! Values of metrics: each is what the test has caused, to the byte where it counts bytes.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use switchboard::app::Stop;
use switchboard::config::Strategy;

use crate::harness::raw::{joined, message};
use crate::harness::{Dialect, Handshake, Relay, Wire, clog};

both_strategies! {
    async fn bytes_of_sockets_are_counted_exactly(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut peer = relay.raw_user(Dialect::Bare).await;
        let sent = joined(&(0..20).map(|n| message(peer.id, &"x".repeat(n))).collect::<Vec<_>>());
        peer.write(&sent).await;
        let mut received = 0;
        for _ in 0..20 {
            received += 2 + peer.frame().await.payload.len() as u64;
        }
        let read = "switchboard_socket_read_bytes_total";
        relay.until_metric(read, &[], sent.len() as u64).await;
        let written = "switchboard_socket_written_bytes_total";
        relay.until_metric(written, &[], received).await;
        relay.stop().await;
    }

    /// The messages of one read have one stamp, and each counts.
    async fn every_message_has_an_observation_of_its_times(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut peer = relay.raw_user(Dialect::Bare).await;
        peer.write(&message(peer.id, "hi").bytes().repeat(25)).await;
        for _ in 0..25 {
            peer.frame().await;
        }
        let scrape = relay.ledger().await;
        for family in ["delivery", "mailbox_wait"] {
            let count = scrape.value(&format!("switchboard_{family}_seconds_count"), &[]);
            assert_eq!(count, 25, "{family}");
        }
        relay.stop().await;
    }

    async fn reserved_bytes_are_those_of_full_mailboxes(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let mut sender = relay.bare().await;
        let slow = relay.narrow_user(Dialect::Bare).await;
        assert_eq!(relay.metric("switchboard_mailbox_reserved_bytes", &[]).await, 0);
        clog(&relay, &mut sender, slow.id, 60_000, 6).await;
        let scrape = relay.ledger().await;
        let (held, reserved) = (
            scrape.value("switchboard_mailbox_bytes", &[]),
            scrape.value("switchboard_mailbox_reserved_bytes", &[]),
        );
        // A message that the socket has begun to take is not reserved.
        assert!((held - 2 * 60_100..=held + 20_000).contains(&reserved), "{reserved} of {held}");
        slow.reset();
        relay.until_metric("switchboard_mailbox_reserved_bytes", &[], 0).await;
        relay.stop().await;
    }
}

#[tokio::test]
async fn limits_are_those_of_the_settings() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        settings.server.listen = vec![any, any];
        settings.limits.connections = Some(77);
        settings.limits.handshakes = 33;
        settings.mailbox.total_bytes = 7_654_321;
    })
    .await;
    let scrape = relay.scrape().await;
    let value = |name: &str| scrape.value(&format!("switchboard_{name}"), &[]);
    assert_eq!(value("connections_limit"), 77);
    assert_eq!(value("http_connections_limit"), 2 * 33);
    assert_eq!(value("mailbox_limit_bytes"), 7_654_321);
    relay.stop().await;
}

#[tokio::test]
async fn a_segment_exists_where_a_user_is() {
    let relay = Relay::plain().await;
    let segments = "switchboard_directory_segments";
    assert_eq!(relay.metric(segments, &[]).await, 0);
    let _user = relay.bare().await;
    assert_eq!(relay.metric(segments, &[]).await, 1);
    relay.stop().await;
}

#[tokio::test]
async fn the_deadline_of_a_drain_is_its_timeout_from_its_begin() {
    let mut relay = Relay::start(Strategy::Directory, |settings| {
        settings.admin.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        settings.drain.spread = Duration::from_secs(2);
        settings.drain.timeout = Duration::from_hours(1);
    })
    .await;
    let deadline = "switchboard_drain_deadline_timestamp_seconds";
    assert_eq!(relay.metric(deadline, &[]).await, 0);
    let mut users = [relay.bare().await, relay.bare().await];
    let begin = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let begin = begin.unwrap().as_secs();
    relay.begin_stop(Stop::DrainNow);
    let found = crate::harness::eventually("a deadline", async || {
        let found = relay.metric(deadline, &[]).await;
        (found > 0).then_some(found)
    })
    .await;
    assert!((begin + 3600..begin + 3660).contains(&found), "{found}");
    for user in &mut users {
        user.closed_with(1012).await;
    }
    relay.ended().await;
}

#[tokio::test]
async fn bad_messages_are_counted_and_are_outside_of_the_ledger() {
    let relay = Relay::plain().await;
    let mut user = relay.v1().await;
    for text in ["[", "{}", r#"{"recipient_id":0,"message":""}"#] {
        user.send_text(text).await;
        user.hear().await;
    }
    let mut bare = relay.bare().await;
    bare.send_text("nonsense").await;
    bare.closed_with(1007).await;
    let scrape = relay.ledger().await;
    assert_eq!(scrape.value("switchboard_bad_messages_total", &[]), 4);
    assert_eq!(scrape.ledger().received, 0);
    relay.stop().await;
}

#[tokio::test]
async fn ends_without_a_close_frame_count_by_their_kind() {
    let relay = Relay::plain().await;
    relay.raw_user(Dialect::Bare).await.reset();
    relay.until_closed("client", "reset", 1).await;
    let mut peer = relay.raw_user(Dialect::V1).await;
    peer.half_close().await;
    peer.drained().await;
    relay.until_closed("client", "1006", 1).await;
    let mut peer = relay.raw().await;
    peer.upgrade(&Handshake::new()).await;
    peer.write(&Wire::close(3000, "").bytes()).await;
    peer.answered().await;
    relay.until_closed("client", "other", 1).await;
    relay.stop().await;
}
