//! Starts relays, reads their metrics by HTTP, and stops them; and has the clients that tests connect with. Must not know
//! how the relay works inside.

pub(crate) mod client;
pub(crate) mod metrics;
pub(crate) mod raw;

use std::env;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::sync::{Once, mpsc};
use std::time::Duration;

use serde_json::{Value, json};
use switchboard::app::{App, Report, Stop};
use switchboard::config::{Settings, Strategy};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};

pub(crate) use client::{Client, Heard};
pub(crate) use metrics::Scrape;
pub(crate) use raw::{Answer, Frame, Handshake, Raw, Seen, Wire};

/// The time limit of each step of a test: far more than a step takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Makes two tests of each function, `…::directory::name` and `…::router::name`: the same body with each strategy to find a
/// recipient.
macro_rules! both_strategies {
    ($($(#[doc = $doc:literal])* async fn $name:ident($strategy:ident) $body:block)+) => {
        mod directory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(switchboard::config::Strategy::Directory).await;
                }
            )+
        }
        mod router {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(switchboard::config::Strategy::Router).await;
                }
            )+
        }
        $(
            $(#[doc = $doc])*
            async fn $name($strategy: switchboard::config::Strategy) $body
        )+
    };
}

/// The two dialects of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// No subprotocol.
    Bare,
    /// The subprotocol `switchboard.v1`.
    V1,
}

impl Dialect {
    pub(crate) const BOTH: [Self; 2] = [Self::Bare, Self::V1];

    pub(crate) fn subprotocol(self) -> Option<&'static str> {
        match self {
            Self::Bare => None,
            Self::V1 => Some("switchboard.v1"),
        }
    }

    /// The frame in which a client of this dialect receives `text` from `sender`.
    pub(crate) fn message(self, sender: u64, text: &str) -> Value {
        match self {
            Self::Bare => json!({"sender_id": sender, "message": text}),
            Self::V1 => json!({"type": "message", "sender_id": sender, "message": text}),
        }
    }
}

/// A relay that runs in this process. A test ends with [`Relay::stop`], or fails.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
    admin: SocketAddr,
    /// The token that the admin listener requires, if any.
    token: Option<String>,
    stop: Option<oneshot::Sender<Stop>>,
    run: Option<JoinHandle<Report>>,
}

impl Relay {
    /// Starts a relay on a free port. The settings are the defaults, without a delay and a spread of the drain, with times
    /// in which no busy machine closes a user, and as `change` changes them.
    pub(crate) async fn start(strategy: Strategy, change: impl FnOnce(&mut Settings)) -> Self {
        static FILES: Once = Once::new();
        FILES.call_once(|| {
            rlimit::increase_nofile_limit(u64::MAX)
                .expect("a soft limit can be raised to the hard");
        });
        let mut settings = Settings::default();
        settings.server.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        settings.routing.strategy = strategy;
        settings.drain.delay = Duration::ZERO;
        settings.drain.spread = Duration::ZERO;
        settings.drain.timeout = Duration::from_secs(10);
        // At the end of many tests, raw clients are still open and answer no close.
        settings.keepalive.close_timeout = Duration::from_millis(500);
        settings.keepalive.ping_interval = 4 * PATIENCE;
        settings.keepalive.write_timeout = 4 * PATIENCE;
        change(&mut settings);
        let token_file = settings.admin.token_file.as_ref();
        let token = token_file.map(|path| std::fs::read_to_string(path).unwrap());
        let app = App::build(settings).await.expect("the relay starts");
        let addr = *app.addrs().first().expect("one address to listen on");
        let admin = app.admin_addr().unwrap_or(addr);
        let (stop, stopped) = oneshot::channel();
        let run = tokio::spawn(app.run(async move {
            // An error means that the test has failed and dropped the relay.
            stopped.await.unwrap_or(Stop::DrainNow)
        }));
        Self {
            addr,
            admin,
            token,
            stop: Some(stop),
            run: Some(run),
        }
    }

    /// A relay of the default strategy with the default settings.
    pub(crate) async fn plain() -> Self {
        Self::start(Strategy::Directory, |_| ()).await
    }

    /// A user of `dialect` that has read its welcome.
    pub(crate) async fn connect(&self, dialect: Dialect) -> Client {
        Client::connect(self.addr, dialect).await
    }

    /// A user without a subprotocol.
    pub(crate) async fn bare(&self) -> Client {
        self.connect(Dialect::Bare).await
    }

    /// A user of `switchboard.v1` that has read its welcome.
    pub(crate) async fn v1(&self) -> Client {
        self.connect(Dialect::V1).await
    }

    /// A TCP connection on which nothing was sent yet.
    pub(crate) async fn raw(&self) -> Raw {
        Raw::connect(self.addr).await
    }

    /// A user with a raw socket that has read its welcome.
    pub(crate) async fn raw_user(&self, dialect: Dialect) -> Raw {
        self.raw().await.joined(dialect).await
    }

    /// A user with a raw socket whose receive buffer is small until it reads.
    pub(crate) async fn narrow_user(&self, dialect: Dialect) -> Raw {
        let peer = Raw::connect_narrow(self.addr).await;
        peer.joined(dialect).await.narrowed()
    }

    /// The response of the users' listener to a request without a body.
    pub(crate) async fn http(&self, method: &str, target: &str) -> Answer {
        self.raw().await.http(method, target).await
    }

    /// A connection to the admin listener.
    pub(crate) async fn raw_admin(&self) -> Raw {
        Raw::connect(self.admin).await
    }

    /// The response of the admin listener to a request without a body.
    pub(crate) async fn admin(&self, method: &str, target: &str) -> Answer {
        let mut request = Handshake::request(method, target);
        if let Some(token) = &self.token {
            request = request.with("Authorization", &format!("Bearer {}", token.trim()));
        }
        self.raw_admin().await.ask(&request).await
    }

    /// All metrics.
    pub(crate) async fn scrape(&self) -> Scrape {
        let answer = self.admin("GET", "/metrics").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        Scrape::parse(&answer.body)
    }

    /// One metric, summed over the series that have these labels.
    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.scrape().await.value(name, labels)
    }

    /// Waits until a metric has a value.
    pub(crate) async fn until_metric(&self, name: &str, labels: &[(&str, &str)], value: u64) {
        let mut last = 0;
        eventually(&format!("{name}{labels:?} = {value}"), async || {
            last = self.metric(name, labels).await;
            (last == value).then_some(())
        })
        .await;
    }

    /// Waits until a metric has at least this value.
    pub(crate) async fn until_metric_is_at_least(&self, name: &str, value: u64) {
        eventually(&format!("{name} >= {value}"), async || {
            (self.metric(name, &[]).await >= value).then_some(())
        })
        .await;
    }

    /// Waits until this number of connections was closed by this initiator with this code.
    pub(crate) async fn until_closed(&self, initiator: &str, code: &str, times: u64) {
        let labels = [("initiator", initiator), ("code", code)];
        self.until_metric("switchboard_connections_closed_total", &labels, times)
            .await;
    }

    /// Waits until two scrapes in a row show the same ledger and it balances: each received message is delivered, dropped
    /// or in a mailbox; each opened connection is open or closed; there was no internal fault. Until then the gap is never
    /// negative.
    pub(crate) async fn ledger(&self) -> Scrape {
        let mut before = None;
        eventually("the ledger balances at rest", async || {
            let scrape = self.scrape().await;
            let now = scrape.ledger();
            assert!(
                now.gap() >= 0,
                "more messages are settled than received: {now:?}"
            );
            let at_rest = before.replace(now) == Some(now) && now.balances();
            at_rest.then_some(scrape)
        })
        .await
    }

    /// Begins to stop the relay, and does not wait for the end.
    pub(crate) fn begin_stop(&mut self, stop: Stop) {
        let tx = self.stop.take().expect("a relay is stopped once");
        assert!(tx.send(stop).is_ok(), "the relay has ended by itself");
    }

    /// Waits until a relay that is being stopped has ended. Raises a panic of its task again.
    pub(crate) async fn ended(mut self) -> Report {
        let run = self.run.take().expect("a relay ends once");
        match within("the relay ends", run).await {
            Ok(report) => {
                let figures = &report.ledger;
                assert_eq!(
                    figures.received,
                    figures.delivered + figures.dropped + figures.mailbox,
                    "{figures:?}"
                );
                report
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => panic!("{error}"),
        }
    }

    /// Checks the ledger, stops the relay at once and waits until it has ended.
    pub(crate) async fn stop(mut self) -> Report {
        self.ledger().await;
        self.begin_stop(Stop::DrainNow);
        self.ended().await
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.run.is_none(), "a test ends with Relay::stop");
        }
    }
}

/// Calls `look` again and again until it returns a value.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a future within the time limit.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    let output = timeout(PATIENCE, future).await;
    output.unwrap_or_else(|_elapsed| panic!("not within {PATIENCE:?}: {what}"))
}

/// Sends messages of `bytes` to `to`, which does not read, until `waiting` of them are in its mailbox: from then on its socket
/// is full. Returns how many were sent. If the sender is of `switchboard.v1`, each message asks for an outcome, with the id
/// `"clog-0"` and so on.
pub(crate) async fn clog(
    relay: &Relay,
    sender: &mut Client,
    to: u64,
    bytes: usize,
    waiting: u64,
) -> u64 {
    let text = "c".repeat(bytes);
    let before = relay.scrape().await;
    let received = before.value("switchboard_messages_received_total", &[]);
    for sent in 0..2000 {
        let held = relay.metric("switchboard_mailbox_messages", &[]).await;
        if held >= waiting {
            return sent;
        }
        match sender.dialect {
            Dialect::Bare => sender.say(to, &text).await,
            Dialect::V1 => sender.ask(to, &text, format!("clog-{sent}")).await,
        }
        let expected = received + sent + 1;
        relay
            .until_metric("switchboard_messages_received_total", &[], expected)
            .await;
    }
    panic!("the mailbox of {to} does not fill, although it does not read");
}

/// Where a program counts what it runs, in `tests/run coverage`: for a program that gets no other variable.
pub(crate) fn profile() -> Option<(&'static str, OsString)> {
    let name = "LLVM_PROFILE_FILE";
    env::var_os(name).map(|file| (name, file))
}

/// Stops tokio's clock, so that no bucket refills and no timeout ends. The test advances the clock by hand; the
/// clock advances by itself again when the sender is dropped.
pub(crate) fn hold_the_clock() -> mpsc::Sender<()> {
    tokio::time::pause();
    let (held, dropped) = mpsc::channel();
    // While a blocking task runs, tokio does not advance a paused clock. The time limit ends a test that hangs.
    spawn_blocking(move || dropped.recv_timeout(PATIENCE));
    held
}
