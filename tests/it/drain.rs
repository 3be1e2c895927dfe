//! The drain: users, HTTP connections, and the messages that are on their way.

use std::collections::BTreeMap;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use switchboard::app::Stop;
use switchboard::config::{AuthMode, Strategy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_websockets::Message;

use crate::harness::client::heard;
use crate::harness::{
    Answer, Client, Dialect, Handshake, Heard, PATIENCE, Raw, Relay, Seen, clog, eventually, within,
};

/// A relay with these settings of the drain.
async fn draining(
    strategy: Strategy,
    delay: Duration,
    spread: Duration,
    timeout: Duration,
) -> Relay {
    Relay::start(strategy, |settings| {
        settings.drain.delay = delay;
        settings.drain.spread = spread;
        settings.drain.timeout = timeout;
        settings.keepalive.close_timeout = Duration::from_secs(2);
    })
    .await
}

const NONE: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_mins(1);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Waits until `/readyz` is no longer 200.
async fn until_not_ready(relay: &Relay) -> Answer {
    eventually("/readyz is 503", async || {
        let answer = relay.admin("GET", "/readyz").await;
        (answer.status == 503).then_some(answer)
    })
    .await
}

fn assert_refused(answer: &Answer) {
    assert_eq!(answer.status, 503, "{answer:?}");
    let retry = answer.header("retry-after").expect("a Retry-After header");
    let seconds: u64 = retry.parse().expect("seconds");
    assert!((1..=3600).contains(&seconds), "{seconds}");
}

/// Removes the one `reconnect` from a user's frames and returns its delay in milliseconds.
fn take_reconnect(frames: &mut Vec<Value>) -> u64 {
    let is_reconnect = |frame: &mut Value| frame["type"] == "reconnect";
    let found: Vec<Value> = frames.extract_if(.., is_reconnect).collect();
    let [reconnect] = &found[..] else {
        panic!("one reconnect, not {found:?}");
    };
    assert_eq!(reconnect.as_object().unwrap().len(), 2, "{reconnect}");
    reconnect["after_ms"].as_u64().expect("a time to wait")
}

both_strategies! {
    /// Load balancers need the delay to notice. Until it ends everything still works.
    async fn readiness_ends_at_once_and_everything_else_after_the_delay(strategy) {
        let mut relay = draining(strategy, seconds(3), NONE, LONG).await;
        let mut old = relay.v1().await;
        assert_eq!(relay.http("GET", "/readyz").await.status, 200);
        relay.begin_stop(Stop::Drain);
        until_not_ready(&relay).await;
        assert_eq!(relay.http("GET", "/livez").await.status, 200);
        assert_eq!(relay.http("GET", "/healthz").await.status, 200);
        let mut new = relay.bare().await;
        new.say(old.id, "is it open?").await;
        old.hears(new.id, "is it open?").await;
        old.ask(new.id, "for now", "open").await;
        new.hears(old.id, "for now").await;
        old.learns("open", "delivered").await;

        let (mut frames, code, _) = old.rest().await;
        assert_eq!(code, 1012);
        take_reconnect(&mut frames);
        assert_eq!(frames, Vec::<Value>::new());
        new.closed_with(1012).await;
        let report = relay.ended().await;
        assert_eq!((report.aborted, report.ledger.delivered), (0, 2));
    }

    /// After the delay upgrades are refused, and users are told to reconnect one after the other.
    async fn upgrades_are_refused_while_http_is_answered_to_the_end(strategy) {
        let mut relay = draining(strategy, NONE, seconds(4), LONG).await;
        let mut users = JoinSet::new();
        for n in 0..12 {
            let mut user = relay.connect(Dialect::BOTH[n % 2]).await;
            users.spawn(async move { (user.rest().await, user.dialect, Instant::now()) });
        }
        relay.begin_stop(Stop::Drain);
        until_not_ready(&relay).await;
        eventually("upgrades are refused", async || {
            let answer = relay.raw().await.ask(&Handshake::new()).await;
            (answer.status != 101).then(|| assert_refused(&answer))
        })
        .await;
        let refused = relay.metric("switchboard_handshakes_rejected_total", &[]).await;
        assert!(refused >= 1);

        let mut ends = Vec::new();
        let mut waits = Vec::new();
        while let Some(user) = within("everybody is sent away", users.join_next()).await {
            let ((mut frames, code, _), dialect, end) = user.unwrap();
            assert_eq!(code, 1012);
            if dialect == Dialect::V1 {
                waits.push(take_reconnect(&mut frames));
            }
            assert_eq!(frames, Vec::<Value>::new());
            ends.push(end);
            if ends.len() < 12 {
                assert_eq!(relay.http("GET", "/livez").await.status, 200);
                assert_eq!(relay.http("GET", "/readyz").await.status, 503);
                relay.scrape().await;
            }
        }
        let spread = *ends.iter().max().unwrap() - *ends.iter().min().unwrap();
        // The first of them at once and the last at the end of 4 s.
        assert!(spread >= seconds(3), "all were closed within {spread:?}");
        waits.sort_unstable();
        waits.dedup();
        assert!(waits.len() > 1, "everybody has a wait of its own: {waits:?}");
        let addr = relay.addr;
        let report = relay.ended().await;
        assert_eq!(report.aborted, 0);
        assert!(TcpStream::connect(addr).await.is_err(), "nobody listens any more");
    }

    async fn mailboxes_are_flushed_before_the_close(strategy) {
        let mut relay = draining(strategy, NONE, NONE, LONG).await;
        let mut sender = relay.v1().await;
        let mut slow = relay.narrow_user(Dialect::V1).await;
        let sent = clog(&relay, &mut sender, slow.id, 60_000, 6).await;
        relay.begin_stop(Stop::DrainNow);
        until_not_ready(&relay).await;
        let (mut frames, code, _) = slow.rest().await;
        assert_eq!(code, 1012);
        take_reconnect(&mut frames);
        assert_eq!(frames.len() as u64, sent);
        let (mut frames, code, _) = sender.rest().await;
        assert_eq!(code, 1012);
        take_reconnect(&mut frames);
        let delivered = frames.iter().filter(|frame| frame["status"] == "delivered").count();
        assert_eq!(delivered as u64, sent, "{frames:?}");
        let report = relay.ended().await;
        assert_eq!((report.aborted, report.ledger.delivered), (0, sent));
    }

    /// The drain ends even if a user does not read, and the senders of its messages learn the outcome.
    async fn messages_queued_at_the_timeout_have_the_outcome_draining(strategy) {
        // So long that the relay keeps the whole 500 ms for telling the senders, which a busy machine may need.
        let timeout = seconds(6);
        let mut relay = Relay::start(strategy, |settings| {
            settings.drain.delay = NONE;
            settings.drain.spread = NONE;
            settings.drain.timeout = timeout;
            // Longer than the drain, so that it does not end the connection first.
            settings.keepalive.close_timeout = LONG;
        })
        .await;
        let mut sender = relay.v1().await;
        let slow = relay.narrow_user(Dialect::Bare).await;
        let sent = clog(&relay, &mut sender, slow.id, 60_000, 6).await;
        let begin = Instant::now();
        relay.begin_stop(Stop::Drain);
        let (mut frames, code, _) = sender.rest().await;
        assert_eq!(code, 1012);
        // Nothing is given up before that.
        assert!(begin.elapsed() >= timeout * 9 / 10, "{:?}", begin.elapsed());
        take_reconnect(&mut frames);
        assert_eq!(frames.len() as u64, sent, "one outcome an id: {frames:?}");
        let count = |status: &str| {
            frames.iter().filter(|frame| frame["status"] == status).count() as u64
        };
        assert!(count("draining") >= 6, "{frames:?}");
        assert_eq!(count("draining") + count("delivered"), sent, "{frames:?}");
        let (draining, delivered) = (count("draining"), count("delivered"));
        let report = relay.ended().await;
        assert_eq!(report.aborted, 1, "one connection was aborted");
        assert_eq!(report.ledger.dropped, draining);
        assert_eq!(report.ledger.delivered, delivered);
        assert_eq!(report.ledger.mailbox, 0);
        drop(slow);
    }

    /// Messages on their way when the drain begins are accounted for: each message that the relay read has an
    /// outcome, and each `delivered` message arrived.
    async fn under_load_every_message_that_was_read_is_delivered_or_answered(strategy) {
        let mut relay = draining(strategy, NONE, seconds(1), LONG).await;
        let mut tasks = JoinSet::new();
        let mut clients = Vec::new();
        for n in 0..24 {
            clients.push(relay.connect(Dialect::BOTH[usize::from(n % 4 == 3)]).await);
        }
        let ids: Vec<u64> = clients.iter().map(|client| client.id).collect();
        for client in clients {
            tasks.spawn(talk_to_the_end(client, ids.clone()));
        }
        relay.until_metric_is_at_least("switchboard_messages_received_total", 5000).await;
        relay.begin_stop(Stop::Drain);
        let mut total = Tally::default();
        while let Some(tally) = within("everybody is sent away", tasks.join_next()).await {
            total.add(&tally.unwrap());
        }
        let report = relay.ended().await;
        let figures = &report.ledger;
        assert_eq!(report.aborted, 0);
        assert_eq!(figures.mailbox, 0);
        assert_eq!(total.heard, figures.delivered, "delivered is what arrived: {total:?} {figures:?}");
        // Bare senders ask for no outcome; of the others, each message that was read has one.
        assert!(figures.received >= total.outcomes, "{total:?} {figures:?}");
        assert!(total.outcomes > 0);
    }

    /// The same if all senders ask for outcomes: then the sums are equal.
    async fn under_load_every_id_that_was_read_has_its_outcome(strategy) {
        let mut relay = draining(strategy, NONE, seconds(1), LONG).await;
        let mut tasks = JoinSet::new();
        let mut clients = Vec::new();
        for _ in 0..16 {
            clients.push(relay.v1().await);
        }
        let mut ids: Vec<u64> = clients.iter().map(|client| client.id).collect();
        ids.push(1 << 40);
        for client in clients {
            tasks.spawn(talk_to_the_end(client, ids.clone()));
        }
        relay.until_metric_is_at_least("switchboard_messages_received_total", 5000).await;
        relay.begin_stop(Stop::DrainNow);
        let mut total = Tally::default();
        while let Some(tally) = within("everybody is sent away", tasks.join_next()).await {
            total.add(&tally.unwrap());
        }
        let report = relay.ended().await;
        let figures = &report.ledger;
        assert_eq!(report.aborted, 0);
        assert_eq!(total.outcomes, figures.received, "{total:?} {figures:?}");
        assert_eq!(total.delivered, figures.delivered, "{total:?} {figures:?}");
        assert_eq!(total.heard, figures.delivered, "{total:?} {figures:?}");
    }

    /// A client that is slow to answer the close does not hold up the others.
    async fn the_drain_does_not_wait_for_a_user_that_does_not_answer_the_close(strategy) {
        let mut relay = draining(strategy, NONE, NONE, LONG).await;
        let mut deaf = relay.raw_user(Dialect::Bare).await;
        relay.begin_stop(Stop::Drain);
        let (frames, code, _) = deaf.until_close().await;
        assert_eq!((frames, code), (vec![], 1012));
        relay.ended().await;
    }

    async fn without_users_there_is_no_spread(strategy) {
        let mut relay = draining(strategy, NONE, LONG, LONG * 2).await;
        relay.bare().await.leave().await;
        relay.begin_stop(Stop::Drain);
        let report = relay.ended().await;
        assert_eq!(report.aborted, 0);
    }
}

#[derive(Debug, Default)]
struct Tally {
    /// Messages received.
    heard: u64,
    /// Outcomes received.
    outcomes: u64,
    /// Outcomes `delivered`.
    delivered: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.heard += other.heard;
        self.outcomes += other.outcomes;
        self.delivered += other.delivered;
    }
}

/// Sends to all ids in turn, as much as the socket takes, until the relay closes. Returns the sums of what
/// arrived. No id has two outcomes.
async fn talk_to_the_end(client: Client, ids: Vec<u64>) -> Tally {
    let (mut tx, mut rx) = client.socket.split();
    let asks = client.dialect == Dialect::V1;
    let talk = async {
        for n in 0_usize.. {
            let mut frame = json!({"recipient_id": ids[n % ids.len()], "message": "under load"});
            if asks {
                frame["id"] = json!(n);
            }
            let message = Message::text(frame.to_string());
            if within("a write", tx.send(message)).await.is_err() {
                break;
            }
        }
    };
    let listen = async {
        let mut tally = Tally::default();
        let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
        let mut reconnect = false;
        loop {
            let message = within("something to hear", rx.next()).await;
            let Some(Ok(message)) = message else {
                panic!("no close frame came: {message:?}");
            };
            match heard(&message) {
                None => {}
                Some(Heard::Frame(frame)) => match frame["type"].as_str() {
                    Some("outcome") => {
                        tally.outcomes += 1;
                        tally.delivered += u64::from(frame["status"] == "delivered");
                        *outcomes.entry(frame["id"].to_string()).or_default() += 1;
                    }
                    None | Some("message") => tally.heard += 1,
                    Some("reconnect") => reconnect = true,
                    Some("dropped") => {}
                    _ => panic!("{frame}"),
                },
                Some(Heard::Close(code, _)) => {
                    assert_eq!(code, 1012);
                    break;
                }
                Some(end @ Heard::End(_)) => panic!("{end:?}"),
            }
        }
        assert_eq!(reconnect, asks);
        assert!(
            outcomes.values().all(|count| *count == 1),
            "an id has two outcomes"
        );
        tally
    };
    tokio::pin!(talk);
    tokio::pin!(listen);
    let mut talking = true;
    loop {
        tokio::select! {
            () = &mut talk, if talking => talking = false,
            tally = &mut listen => return tally,
        }
    }
}

#[tokio::test]
async fn an_interrupt_skips_the_delay() {
    let mut relay = draining(Strategy::Directory, LONG, NONE, LONG * 2).await;
    let mut user = relay.bare().await;
    relay.begin_stop(Stop::DrainNow);
    user.closed_with(1012).await;
    relay.ended().await;
}

/// A connection without a request does not delay the end.
#[tokio::test]
async fn idle_http_connections_do_not_delay_the_end() {
    let mut relay = draining(Strategy::Directory, NONE, NONE, LONG).await;
    let mut kept_alive = relay.raw().await;
    assert_eq!(kept_alive.http("GET", "/livez").await.status, 200);
    let mut silent = relay.raw().await;
    // This scrape is the third.
    relay
        .until_metric_is_at_least("switchboard_http_connections", 3)
        .await;
    let begin = Instant::now();
    relay.begin_stop(Stop::Drain);
    for peer in [&mut kept_alive, &mut silent] {
        assert_eq!(peer.next().await, Seen::End);
    }
    relay.ended().await;
    // The end waits a second for tasks, and abandons those that have not ended by then.
    assert!(begin.elapsed() < seconds(1), "{:?}", begin.elapsed());
}

/// At the timeout all remaining connections are aborted, however many there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_that_do_not_read_are_aborted_at_the_timeout() {
    for strategy in [Strategy::Directory, Strategy::Router] {
        let mut relay = Relay::start(strategy, |settings| {
            settings.drain.timeout = seconds(2);
            // Longer, so that the drain ends them first.
            settings.keepalive.close_timeout = LONG;
        })
        .await;
        let mut sender = relay.bare().await;
        let mut deaf: Vec<Raw> = Vec::new();
        for _ in 0..3 {
            let peer = relay.narrow_user(Dialect::V1).await;
            let held = relay.metric("switchboard_mailbox_messages", &[]).await;
            clog(&relay, &mut sender, peer.id, 60_000, held + 3).await;
            deaf.push(peer);
        }
        sender.leave().await;
        relay.begin_stop(Stop::Drain);
        let report = relay.ended().await;
        assert_eq!(report.aborted, 3);
        assert_eq!(report.ledger.mailbox, 0);
        assert!(report.ledger.dropped >= 9, "{report:?}");
    }
}

/// The admin listener closes last.
#[tokio::test]
async fn the_admin_listener_answers_during_the_drain() {
    let mut relay = Relay::start(Strategy::Directory, |settings| {
        settings.drain.delay = NONE;
        settings.drain.spread = seconds(2);
        settings.drain.timeout = LONG;
        settings.admin.listen = Some(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
    })
    .await;
    let mut one = relay.bare().await;
    let mut two = relay.bare().await;
    relay.begin_stop(Stop::Drain);
    until_not_ready(&relay).await;
    assert_eq!(relay.admin("GET", "/livez").await.status, 200);
    assert_eq!(relay.admin("GET", "/metrics").await.status, 200);
    one.closed_with(1012).await;
    two.closed_with(1012).await;
    relay.ended().await;
}

/// A key server that refuses the first requests at once, and never answers a later one.
async fn silent_key_server() -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let serve = tokio::spawn(async move {
        drop(listener.accept().await.unwrap());
        let mut silent = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            silent.push(stream);
        }
    });
    (url, serve)
}

/// The upgrade of a token with an unknown key waits for the key server while the drain begins.
#[tokio::test]
async fn a_handshake_that_waits_for_a_key_server_is_refused_when_the_drain_begins() {
    let (url, server) = silent_key_server().await;
    let mut relay = Relay::start(Strategy::Directory, |settings| {
        settings.auth.mode = AuthMode::Jwt;
        settings.auth.jwks_url = Some(url);
        settings.auth.jwks_timeout = PATIENCE;
        settings.drain.delay = NONE;
        settings.drain.timeout = LONG;
    })
    .await;
    let part = |json: &str| BASE64URL_NOPAD.encode(json.as_bytes());
    let head = part(r#"{"alg":"RS256","kid":"unknown"}"#);
    let token = format!("{head}.{}.AAAA", part(r#"{"sub":"x","exp":99999999999}"#));
    let mut peer = relay.raw().await;
    let handshake = Handshake::new().with("Authorization", &format!("Bearer {token}"));
    peer.write(&handshake.bytes()).await;
    // Another request of the same relay is answered only after the handshake has begun to wait.
    eventually("the handshake waits", async || {
        (relay.metric("switchboard_http_connections", &[]).await >= 2).then_some(())
    })
    .await;
    relay.begin_stop(Stop::DrainNow);
    let begin = Instant::now();
    let answer = peer.answer(true).await.expect("an answer");
    assert_refused(&answer);
    assert!(begin.elapsed() < seconds(10), "{:?}", begin.elapsed());
    assert_eq!(peer.next().await, Seen::End);
    assert_eq!(relay.ended().await.aborted, 0);
    server.abort();
}
