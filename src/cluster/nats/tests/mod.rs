//! What both implementations must do: each test runs against the model, and against a real server where one is
//! installed. The model's tests run on paused time.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::unnecessary_wraps,
    reason = "a test may end before the tasks that it has spawned, says what it skips, and writes what a caller writes"
)]

#[path = "../../../../tests/cluster/nats.rs"]
#[allow(dead_code, reason = "tests/cluster uses the rest")]
mod server;

#[path = "../../../../tests/cluster/proxy.rs"]
#[allow(dead_code, reason = "tests/cluster uses the rest")]
mod proxy;

mod servers;

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use super::client::NatsClient;
use super::model::{Model, ModelNats};
use super::*;
use crate::config;
use proxy::{Condition, Proxy};

const LINK_TIMEOUT: Duration = Duration::from_secs(2);
/// Above the time that a cluster of servers takes to elect a leader.
const PATIENCE: Duration = Duration::from_mins(1);
const INBOUND_MAX: usize = 1024;

/// A NATS that a test can harm, with the way of one node that a test can cut.
trait TestServer {
    type Nats: Nats;

    /// The way that can be cut.
    fn fragile(&self) -> Self::Nats;
    /// Another way.
    fn sound(&self) -> Self::Nats;
    fn cut(&self);
    fn heal(&self);
    async fn stop(&mut self);
    fn forget(&mut self);
    async fn start(&mut self);
    /// Subscribes a stranger to everything.
    async fn listen(&self);
    async fn delete_bucket(&self, name: &str);
    /// Makes the bucket of [`config`], as a node does whose clock is at this revision.
    async fn make_bucket(&self, first: Revision);
}

struct Imitated {
    model: Model,
}

struct Real {
    server: server::Nats,
    proxy: Proxy,
    /// Keeps a stranger's subscription.
    stranger: async_nats::Client,
    strangers: std::cell::RefCell<Vec<async_nats::Subscriber>>,
}

impl TestServer for Imitated {
    type Nats = ModelNats;

    fn fragile(&self) -> ModelNats {
        self.model.nats(1)
    }
    fn sound(&self) -> ModelNats {
        self.model.nats(2)
    }
    fn cut(&self) {
        self.model.cut(1);
    }
    fn heal(&self) {
        self.model.heal(1);
    }
    async fn stop(&mut self) {
        self.model.stop(0, false);
    }
    fn forget(&mut self) {
        self.model.forget();
    }
    async fn start(&mut self) {
        self.model.start(0);
    }
    async fn listen(&self) {
        self.model.listen(">");
    }
    async fn delete_bucket(&self, name: &str) {
        self.model.delete_bucket(name);
    }
    async fn make_bucket(&self, first: Revision) {
        self.model.make_bucket(&config(), first);
    }
}

impl Real {
    async fn new() -> Self {
        let server = server::Nats::start().await;
        let proxy = Proxy::to(server.port).await;
        let stranger = async_nats::connect(server.url()).await.unwrap();
        Self {
            server,
            proxy,
            stranger,
            strangers: std::cell::RefCell::default(),
        }
    }

    fn client(url: String) -> NatsClient {
        let mut settings = config::Settings::default().cluster;
        settings.nats_url = vec![url];
        settings.link_timeout = LINK_TIMEOUT;
        settings.inbound_messages = INBOUND_MAX.try_into().unwrap();
        NatsClient::new(Access::new(&settings), "test.inbox".to_owned())
    }
}

impl TestServer for Real {
    type Nats = NatsClient;

    fn fragile(&self) -> NatsClient {
        Self::client(self.proxy.url())
    }
    fn sound(&self) -> NatsClient {
        Self::client(self.server.url())
    }
    fn cut(&self) {
        self.proxy.set(Condition::Silent);
    }
    fn heal(&self) {
        self.proxy.set(Condition::Normal);
    }
    async fn stop(&mut self) {
        self.server.kill();
    }
    fn forget(&mut self) {
        self.server.forget();
    }
    async fn start(&mut self) {
        self.server.run().await;
    }
    async fn listen(&self) {
        let everything = self.stranger.subscribe(">").await.unwrap();
        self.stranger.flush().await.unwrap();
        self.strangers.borrow_mut().push(everything);
        // The library's flush does not wait for the server's answer.
        sleep(Duration::from_millis(100)).await;
    }
    async fn delete_bucket(&self, name: &str) {
        let request = format!("$JS.API.STREAM.DELETE.KV_{name}");
        self.stranger.request(request, Bytes::new()).await.unwrap();
    }
    async fn make_bucket(&self, Revision(first): Revision) {
        let request = serde_json::json!({
            "name": "KV_table",
            "subjects": ["$KV.table.>"],
            "max_msgs_per_subject": 1,
            "max_age": 60_000_000_000_u64,
            "storage": "file",
            "allow_msg_ttl": true,
            "first_seq": first,
        });
        let made = self
            .stranger
            .request("$JS.API.STREAM.CREATE.KV_table", request.to_string().into())
            .await
            .unwrap();
        let made: serde_json::Value = serde_json::from_slice(&made.payload).unwrap();
        assert_eq!(made["error"], serde_json::Value::Null);
    }
}

/// Makes two tests of an async function of a stage.
macro_rules! both {
    ($($name:ident),+ $(,)?) => {
        mod model {
            $(#[test]
            fn $name() {
                super::on_model(async |mut stage| super::$name(&mut stage).await);
            })+
        }
        mod real {
            $(#[test]
            fn $name() {
                super::on_server(async |mut stage| super::$name(&mut stage).await);
            })+
        }
    };
}

both!(
    messages_come_in_order_also_to_the_link_that_sent_them,
    a_subscription_is_known_after_a_round_trip,
    no_responders_comes_unless_anybody_listens,
    a_full_subscription_loses_messages_and_counts_them,
    a_message_above_max_payload_is_refused,
    a_key_has_one_value_and_each_write_names_the_revision_it_replaces,
    a_deleted_entry_has_a_revision_and_can_be_written_again,
    a_deleted_entry_is_forgotten_soon,
    of_writes_over_one_revision_exactly_one_succeeds,
    an_entry_is_forgotten_after_max_age_unless_written_again,
    a_bucket_that_was_deleted_is_missing_and_begins_above_its_revisions,
    a_bucket_begins_above_all_revisions_that_its_maker_has_seen,
    a_bucket_with_another_max_age_is_refused,
    a_restarted_server_keeps_entries_and_ends_links,
    a_server_that_lost_its_store_has_no_bucket,
    a_silent_network_makes_a_write_unknown_and_late,
    the_last_sequence_of_a_stream_is_that_of_its_last_write,
);

fn on_model(test: impl AsyncFnOnce(Imitated)) {
    with_model(1, async |model| test(Imitated { model }).await);
}

/// Runs a test of a model with so many servers, on paused time.
fn with_model(servers: usize, test: impl AsyncFnOnce(Model)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let model = Model::new(servers, 1);
        model.limit(LINK_TIMEOUT, INBOUND_MAX);
        tokio::select! {
            () = model.clone().run() => {}
            () = timeout_of(test(model)) => {}
        }
    });
}

fn on_server(test: impl AsyncFnOnce(Real)) {
    with_servers(async || test(Real::new().await).await);
}

/// Runs a test of real servers, where they are installed.
fn with_servers(test: impl AsyncFnOnce()) {
    if server::program().is_none() {
        eprintln!("skipped, because nats-server is not installed (tests/run installs it)");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(timeout_of(test()));
}

async fn timeout_of(test: impl Future<Output = ()>) {
    timeout(PATIENCE, test)
        .await
        .expect("the test ends in time");
}

/// Calls `look` every 10 ms until it returns a value.
async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn connect<N: Nats>(nats: &N) -> N::Link {
    eventually("a connection", async || nats.connect().await.ok()).await
}

fn message(subject: &str, reply: Option<&str>, payload: impl Into<Bytes>) -> Outgoing {
    let subject = Subject::from(subject.to_owned());
    Outgoing {
        reply: reply.map(|reply| Subject::from(reply.to_owned())),
        ..Outgoing::new(subject, payload.into())
    }
}

fn config() -> BucketConfig {
    BucketConfig {
        name: "table".to_owned(),
        max_age: Duration::from_mins(1),
        replicas: 1,
        description: "of a test".to_owned(),
    }
}

fn value(text: &str) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(text.as_bytes()))
}

async fn bucket<N: Nats>(nats: &N) -> <N::Link as NatsLink>::Bucket {
    open(&connect(nats).await, &config()).await
}

/// Opens a bucket, also while a server is just starting.
async fn open<L: NatsLink>(link: &L, config: &BucketConfig) -> L::Bucket {
    eventually("a bucket", async || link.open_bucket(config).await.ok()).await
}

async fn messages_come_in_order_also_to_the_link_that_sent_them<S: TestServer>(stage: &mut S) {
    let link = connect(&stage.sound()).await;
    let other = connect(&stage.sound()).await;
    let mut own = link.subscribe("a.*.c".into()).await.unwrap();
    let mut others = other.subscribe("a.>".into()).await.unwrap();
    link.round_trip().await.unwrap();
    other.round_trip().await.unwrap();
    for number in 0..500_u32 {
        let text = number.to_string();
        link.publish(message("a.b.c", Some("back"), text))
            .await
            .unwrap();
    }
    link.publish(Outgoing {
        traceparent: Some("00-trace".to_owned()),
        tracestate: Some("a=b".to_owned()),
        ..message("a.b", None, "last")
    })
    .await
    .unwrap();
    for number in 0..500_u32 {
        for subscription in [&mut own] {
            let next = subscription.next().await.unwrap();
            assert_eq!(next.payload, number.to_string());
            assert_eq!(next.reply.as_deref(), Some("back"));
            assert_eq!((next.traceparent, next.no_responders), (None, false));
        }
        assert_eq!(others.next().await.unwrap().payload, number.to_string());
    }
    let last = others.next().await.unwrap();
    assert_eq!(last.traceparent.as_deref(), Some("00-trace"));
    assert_eq!(last.tracestate.as_deref(), Some("a=b"));
    assert_eq!((&*last.subject, last.reply), ("a.b", None));
    assert_eq!(link.overruns(), 0);
}

async fn a_subscription_is_known_after_a_round_trip<S: TestServer>(stage: &mut S) {
    let link = connect(&stage.sound()).await;
    let other = connect(&stage.sound()).await;
    for number in 0..20 {
        let subject = format!("a.{number}");
        let mut subscription = link.subscribe(subject.clone().into()).await.unwrap();
        link.round_trip().await.unwrap();
        other.publish(message(&subject, None, "x")).await.unwrap();
        assert_eq!(subscription.next().await.unwrap().payload, "x");
    }
}

async fn no_responders_comes_unless_anybody_listens<S: TestServer>(stage: &mut S) {
    let link = connect(&stage.sound()).await;
    let mut replies = link.subscribe("back.*".into()).await.unwrap();
    link.publish(message("nobody", Some("back.1"), "x"))
        .await
        .unwrap();
    let told = replies.next().await.unwrap();
    assert!(told.no_responders && told.payload.is_empty());
    assert_eq!(&*told.subject, "back.1");
    stage.listen().await;
    link.publish(message("nobody", Some("back.2"), "x"))
        .await
        .unwrap();
    // The round trip does not depend on that.
    link.round_trip().await.unwrap();
    link.publish(message("back.3", None, "x")).await.unwrap();
    assert_eq!(&*replies.next().await.unwrap().subject, "back.3");
}

async fn a_full_subscription_loses_messages_and_counts_them<S: TestServer>(stage: &mut S) {
    let link = connect(&stage.sound()).await;
    let other = connect(&stage.sound()).await;
    let mut subscription = link.subscribe("a".into()).await.unwrap();
    link.round_trip().await.unwrap();
    for number in 0..INBOUND_MAX + 10 {
        other
            .publish(message("a", None, number.to_string()))
            .await
            .unwrap();
    }
    other.round_trip().await.unwrap();
    link.round_trip().await.unwrap();
    eventually("lost messages", async || {
        (link.overruns() == 10).then_some(())
    })
    .await;
    for number in 0..INBOUND_MAX {
        assert_eq!(
            subscription.next().await.unwrap().payload,
            number.to_string()
        );
    }
    other.publish(message("a", None, "later")).await.unwrap();
    assert_eq!(subscription.next().await.unwrap().payload, "later");
}

async fn a_message_above_max_payload_is_refused<S: TestServer>(stage: &mut S) {
    let link = connect(&stage.sound()).await;
    let large = vec![b'x'; link.max_payload() + 1];
    let published = link.publish(message("a", None, large)).await;
    assert_eq!(published, Err(PublishFailure::TooLarge));
    link.round_trip().await.unwrap();
}

async fn a_key_has_one_value_and_each_write_names_the_revision_it_replaces<S: TestServer>(
    stage: &mut S,
) {
    let bucket = bucket(&stage.sound()).await;
    let none = Entry {
        value: None,
        revision: Revision::NONE,
    };
    assert_eq!(bucket.get("1").await, Ok(none));
    let first = bucket.write("1", value("a"), Revision::NONE).await.unwrap();
    let other = bucket.write("2", value("b"), Revision::NONE).await.unwrap();
    assert!(first > Revision::NONE && other > first);
    for wrong in [Revision::NONE, other, Revision(first.0 - 1)] {
        let written = bucket.write("1", value("x"), wrong).await;
        assert_eq!(written, Err(WriteFailure::Conflict));
    }
    let second = bucket.write("1", value("c"), first).await.unwrap();
    assert!(second > other);
    let expected = Entry {
        value: value("c"),
        revision: second,
    };
    assert_eq!(bucket.get("1").await, Ok(expected));
}

async fn a_deleted_entry_has_a_revision_and_can_be_written_again<S: TestServer>(stage: &mut S) {
    let bucket = bucket(&stage.sound()).await;
    let first = bucket.write("1", value("a"), Revision::NONE).await.unwrap();
    let deleted = bucket.write("1", None, first).await.unwrap();
    assert!(deleted > first);
    let expected = Entry {
        value: None,
        revision: deleted,
    };
    assert_eq!(bucket.get("1").await, Ok(expected));
    for wrong in [Revision::NONE, first] {
        let written = bucket.write("1", value("x"), wrong).await;
        assert_eq!(written, Err(WriteFailure::Conflict));
    }
    let again = bucket.write("1", value("b"), deleted).await.unwrap();
    assert!(again > deleted);
}

async fn a_deleted_entry_is_forgotten_soon<S: TestServer>(stage: &mut S) {
    let bucket = bucket(&stage.sound()).await;
    let first = bucket.write("1", value("a"), Revision::NONE).await.unwrap();
    let deleted = bucket.write("1", None, first).await.unwrap();
    let begin = Instant::now();
    eventually("the deleted entry is forgotten", async || {
        let entry = bucket.get("1").await.unwrap();
        assert_eq!(entry.value, None);
        (entry.revision == Revision::NONE).then_some(())
    })
    .await;
    let took = begin.elapsed();
    assert!(
        took > DELETED_MAX_AGE / 2 && took < DELETED_MAX_AGE * 3,
        "{took:?}"
    );
    let over_old = bucket.write("1", value("b"), deleted).await;
    assert_eq!(over_old, Err(WriteFailure::Conflict));
    bucket.write("1", value("b"), Revision::NONE).await.unwrap();
}

async fn of_writes_over_one_revision_exactly_one_succeeds<S: TestServer>(stage: &mut S) {
    let one = bucket(&stage.sound()).await;
    let other = bucket(&stage.sound()).await;
    let mut over = Revision::NONE;
    for _ in 0..20 {
        let (left, right) = tokio::join!(
            one.write("1", value("left"), over),
            other.write("1", value("right"), over)
        );
        let (won, text) = match (left, right) {
            (Ok(won), Err(WriteFailure::Conflict)) => (won, "left"),
            (Err(WriteFailure::Conflict), Ok(won)) => (won, "right"),
            both => panic!("{both:?}"),
        };
        let expected = Entry {
            value: value(text),
            revision: won,
        };
        assert_eq!(one.get("1").await, Ok(expected));
        over = won;
    }
}

async fn an_entry_is_forgotten_after_max_age_unless_written_again<S: TestServer>(stage: &mut S) {
    let link = connect(&stage.sound()).await;
    let config = BucketConfig {
        max_age: Duration::from_secs(2),
        ..config()
    };
    let bucket = open(&link, &config).await;
    let gone = bucket
        .write("gone", value("a"), Revision::NONE)
        .await
        .unwrap();
    let mut kept = bucket
        .write("kept", value("a"), Revision::NONE)
        .await
        .unwrap();
    let begin = Instant::now();
    eventually("the entry is forgotten", async || {
        kept = bucket.write("kept", value("a"), kept).await.unwrap();
        let entry = bucket.get("gone").await.unwrap();
        let is_gone = entry.value.is_none();
        let revision = if is_gone { Revision::NONE } else { gone };
        assert_eq!(entry.revision, revision);
        is_gone.then_some(())
    })
    .await;
    let took = begin.elapsed();
    assert!(
        took > Duration::from_millis(1900) && took < Duration::from_secs(5),
        "{took:?}"
    );
    let over_old = bucket.write("gone", value("b"), gone).await;
    assert_eq!(over_old, Err(WriteFailure::Conflict));
    bucket
        .write("gone", value("b"), Revision::NONE)
        .await
        .unwrap();
    bucket.write("kept", value("b"), kept).await.unwrap();
}

async fn a_bucket_that_was_deleted_is_missing_and_begins_above_its_revisions<S: TestServer>(
    stage: &mut S,
) {
    let link = connect(&stage.sound()).await;
    let bucket = open(&link, &config()).await;
    let again = open(&link, &config()).await;
    assert_eq!(again.identity(), bucket.identity());
    let first = bucket.write("1", value("a"), Revision::NONE).await.unwrap();
    stage.delete_bucket("table").await;
    assert_eq!(bucket.get("1").await, Err(BucketFailure::Missing));
    let written = bucket.write("1", value("a"), first).await;
    assert_eq!(written, Err(BucketFailure::Missing.into()));
    let made = open(&link, &config()).await;
    assert_ne!(made.identity(), bucket.identity());
    assert_eq!(bucket.get("1").await.unwrap().revision, Revision::NONE);
    let second = bucket.write("1", value("b"), Revision::NONE).await.unwrap();
    assert!(second > first, "{second:?} {first:?}");
}

/// Also where they are ahead of its own clock, and whether it has written them or read them, by any link.
async fn a_bucket_begins_above_all_revisions_that_its_maker_has_seen<S: TestServer>(stage: &mut S) {
    // About the year 2255.
    let ahead = Revision(9_000_000_000_000_000);
    stage.make_bucket(ahead).await;
    let (writer, reader, other) = (stage.sound(), stage.sound(), stage.sound());
    let written = bucket(&writer).await;
    let written = written.write("1", value("a"), Revision::NONE).await;
    let written = written.unwrap();
    assert!(written >= ahead, "{written:?}");
    let read = bucket(&reader).await.get("1").await.unwrap();
    assert_eq!(read.revision, written);
    for (maker, has_seen) in [(&writer, true), (&reader, true), (&other, false)] {
        stage.delete_bucket("table").await;
        let made = bucket(maker).await;
        let first = made.write("1", value("b"), Revision::NONE).await.unwrap();
        assert_eq!(first > written, has_seen, "{first:?} {written:?}");
    }
}

async fn a_bucket_with_another_max_age_is_refused<S: TestServer>(stage: &mut S) {
    let link = connect(&stage.sound()).await;
    open(&link, &config()).await;
    let config = BucketConfig {
        max_age: Duration::from_secs(61),
        ..config()
    };
    let opened = link.open_bucket(&config).await;
    let Err(BucketFailure::Refused(reason)) = opened.map(|_| ()) else {
        panic!("it is opened");
    };
    assert!(reason.contains("table"), "{reason}");
}

/// The model has as many servers as a bucket wants.
#[test]
fn a_bucket_with_more_replicas_than_servers_is_refused() {
    on_server(async |stage| {
        let link = connect(&stage.sound()).await;
        let replicas = 3;
        let config = BucketConfig {
            replicas,
            ..config()
        };
        let opened = link.open_bucket(&config).await;
        let Err(BucketFailure::Refused(reason)) = opened.map(|_| ()) else {
            panic!("it is opened, or taken for lost");
        };
        assert!(reason.contains("replicas"), "{reason}");
    });
}

async fn a_restarted_server_keeps_entries_and_ends_links<S: TestServer>(stage: &mut S) {
    let link = connect(&stage.sound()).await;
    let mut subscription = link.subscribe("a".into()).await.unwrap();
    let bucket = open(&link, &config()).await;
    let first = bucket.write("1", value("a"), Revision::NONE).await.unwrap();
    stage.stop().await;
    link.lost().await;
    assert!(subscription.next().await.is_none());
    assert_eq!(link.round_trip().await, Err(LinkLost));
    assert_eq!(bucket.get("1").await, Err(BucketFailure::Unknown));
    stage.start().await;
    let link = connect(&stage.sound()).await;
    let opened = open(&link, &config()).await;
    assert_eq!(opened.identity(), bucket.identity());
    let expected = Entry {
        value: value("a"),
        revision: first,
    };
    assert_eq!(opened.get("1").await, Ok(expected));
    assert!(opened.write("1", value("b"), first).await.unwrap() > first);
    // The former link stays lost.
    assert_eq!(bucket.get("1").await, Err(BucketFailure::Unknown));
}

async fn a_server_that_lost_its_store_has_no_bucket<S: TestServer>(stage: &mut S) {
    let bucket = bucket(&stage.sound()).await;
    let first = bucket.write("1", value("a"), Revision::NONE).await.unwrap();
    stage.stop().await;
    stage.forget();
    stage.start().await;
    let link = connect(&stage.sound()).await;
    let made = open(&link, &config()).await;
    assert_ne!(made.identity(), bucket.identity());
    assert_eq!(made.get("1").await.unwrap().revision, Revision::NONE);
    let second = made.write("1", value("a"), Revision::NONE).await.unwrap();
    assert!(second > first, "{second:?} {first:?}");
}

async fn a_silent_network_makes_a_write_unknown_and_late<S: TestServer>(stage: &mut S) {
    let fragile = bucket(&stage.fragile()).await;
    let sound = bucket(&stage.sound()).await;
    stage.cut();
    let begin = Instant::now();
    let written = fragile.write("1", value("a"), Revision::NONE).await;
    assert_eq!(written, Err(BucketFailure::Unknown.into()));
    let took = begin.elapsed();
    assert!(took >= LINK_TIMEOUT && took < LINK_TIMEOUT * 2, "{took:?}");
    assert_eq!(sound.get("1").await.unwrap().value, None);
    stage.heal();
    eventually("the late write", async || {
        let entry = sound.get("1").await.unwrap();
        (entry.value == value("a")).then_some(())
    })
    .await;
    let connection = connect(&stage.fragile()).await;
    connection.round_trip().await.unwrap();
}

async fn the_last_sequence_of_a_stream_is_that_of_its_last_write<S: TestServer>(stage: &mut S) {
    let link = connect(&stage.sound()).await;
    assert_eq!(link.last_sequence("KV_table").await, Ok(None));
    let bucket = open(&link, &config()).await;
    let first = bucket.write("1", value("a"), Revision::NONE).await.unwrap();
    assert_eq!(link.last_sequence("KV_table").await, Ok(Some(first.0)));
}
