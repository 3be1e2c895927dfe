//! A node: a relay process with settings in its environment, and its metrics.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::nats::signal;
use crate::user::{Dialect, User};
use crate::{eventually, within};

/// The settings of every node; a test can override them.
const SETTINGS: [(&str, &str); 9] = [
    ("CLUSTER__OUTCOME_TIMEOUT", "2s"),
    ("CLUSTER__LINK_TIMEOUT", "2s"),
    ("CLUSTER__NODE_TIMEOUT", "4s"),
    ("DRAIN__DELAY", "0s"),
    ("DRAIN__SPREAD", "0s"),
    ("DRAIN__TIMEOUT", "10s"),
    ("KEEPALIVE__CLOSE_TIMEOUT", "500ms"),
    ("UI__ENABLED", "false"),
    ("LOG__FILTER", "info,switchboard=debug"),
];

/// A running relay.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) port: u16,
    process: Option<Child>,
    log: Arc<Mutex<Vec<String>>>,
}

/// The values of /metrics at one time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scrape(BTreeMap<String, f64>);

/// The ledger of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ledger {
    pub(crate) received: u64,
    pub(crate) cluster_received: u64,
    pub(crate) delivered: u64,
    pub(crate) dropped: u64,
    pub(crate) mailbox: u64,
    pub(crate) cluster_sent: u64,
}

impl Node {
    /// Starts a node, and waits until it is ready.
    pub(crate) async fn start(nats: &str, changes: &[(&str, &str)]) -> Self {
        let node = Self::begin(nats, changes).await;
        node.until_ready().await;
        node
    }

    /// Starts a node, and waits until it listens.
    pub(crate) async fn begin(nats: &str, changes: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
        command.args(["--listen", "127.0.0.1:0"]);
        if !nats.is_empty() {
            command.env("SWITCHBOARD__CLUSTER__NATS_URL", nats);
        }
        for (key, value) in SETTINGS.iter().chain(changes) {
            command.env(format!("SWITCHBOARD__{key}"), value);
        }
        // Spans are exported every 20 ms.
        command.env("OTEL_BSP_SCHEDULE_DELAY", "20");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let copy = log.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                copy.lock().unwrap().push(line);
            }
        });
        let mut node = Self {
            port: 0,
            process: Some(process),
            log,
        };
        node.port = eventually("the node listens", async || {
            let exited = node.process.as_mut().unwrap().try_wait().unwrap();
            assert!(exited.is_none(), "the node ended:\n{}", node.log());
            let log = node.log();
            let (_, rest) = log.split_once("urls=[\"http://127.0.0.1:")?;
            rest.split('"').next()?.parse().ok()
        })
        .await;
        node
    }

    /// Starts a node that must fail. Returns its exit code and its stderr.
    pub(crate) fn fails(nats: &str, changes: &[(&str, &str)]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
        command.args(["--listen", "127.0.0.1:0"]);
        command.env("SWITCHBOARD__CLUSTER__NATS_URL", nats);
        for (key, value) in SETTINGS.iter().chain(changes) {
            command.env(format!("SWITCHBOARD__{key}"), value);
        }
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), stderr)
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    pub(crate) async fn user(&self) -> User {
        User::connect(self.port, Dialect::V1).await
    }

    pub(crate) async fn bare_user(&self) -> User {
        User::connect(self.port, Dialect::Bare).await
    }

    /// Sends a GET request. Returns the status and the body of the response.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let addr = SocketAddr::from(([127, 0, 0, 1], self.port));
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        let asked = tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(addr)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            std::io::Result::Ok(answer)
        });
        let answer = within("an answer", asked).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    pub(crate) async fn until_ready(&self) {
        self.until_readiness(200).await;
    }

    pub(crate) async fn until_readiness(&self, status: u16) {
        let mut last = String::new();
        let ready = async || {
            let (found, body) = self.get("/readyz").await;
            last = format!("{found} {body}");
            (found == status).then_some(())
        };
        eventually(&format!("/readyz answers {status}"), ready).await;
    }

    pub(crate) async fn scrape(&self) -> Scrape {
        let (status, body) = self.get("/metrics").await;
        assert_eq!(status, 200);
        Scrape::parse(&body)
    }

    pub(crate) async fn metric(&self, name: &str) -> u64 {
        self.scrape().await.value(name)
    }

    /// Waits until the value of a metric satisfies `is`.
    pub(crate) async fn until(&self, name: &str, is: impl Fn(u64) -> bool) -> u64 {
        let mut last = 0;
        eventually(&format!("{name} has the expected value"), async || {
            last = self.metric(name).await;
            is(last).then_some(last)
        })
        .await
    }

    /// Waits until the link to NATS is up, and the node takes messages of other nodes, or until the link is lost.
    pub(crate) async fn until_up(&self, up: bool) {
        self.until("switchboard_cluster_up", |value| value == u64::from(up))
            .await;
        if up {
            self.until("switchboard_cluster_lease", |lease| lease == 1)
                .await;
        }
    }

    /// Waits until the counters are stable and the ledger balances. Returns the ledger.
    pub(crate) async fn ledger(&self) -> Ledger {
        let mut before = None;
        eventually("the ledger is stable and balances", async || {
            let scrape = self.scrape().await;
            let now = scrape.ledger();
            assert!(now.gap() >= 0, "more messages left than arrived: {now:?}");
            assert_eq!(
                scrape.dropped("internal"),
                0,
                "messages were dropped for an internal error: {now:?}"
            );
            let is_stable = before.replace(now) == Some(now) && now.gap() == 0;
            is_stable.then_some(now)
        })
        .await
    }

    /// Kills the node.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("the node runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Stops the process with SIGSTOP. It goes on after [`thaw`](Self::thaw).
    pub(crate) fn freeze(&self) {
        signal(self.process.as_ref().expect("the node runs"), "STOP");
    }

    pub(crate) fn thaw(&self) {
        signal(self.process.as_ref().expect("the node runs"), "CONT");
    }

    /// Sends SIGTERM, which begins the drain.
    pub(crate) fn begin_stop(&self) {
        signal(self.process.as_ref().expect("the node runs"), "TERM");
    }

    /// Waits until the node has drained and exited. Returns the ledger that it logged last.
    pub(crate) async fn ended(&mut self) -> Ledger {
        let status = eventually("the node ends", async || {
            let process = self.process.as_mut().expect("the node runs");
            process.try_wait().unwrap()
        })
        .await;
        self.process = None;
        let log = eventually("the last line of the log", async || {
            Some(self.log()).filter(|log| log.contains(" drained left="))
        })
        .await;
        assert!(status.success(), "{status}:\n{log}");
        assert!(!log.contains("panicked"), "{log}");
        let line = log.lines().rfind(|line| line.contains(" drained left="));
        let figure = |name: &str| {
            let (_, rest) = line.unwrap().split_once(&format!(" {name}=")).unwrap();
            rest.split(' ').next().unwrap().parse().unwrap()
        };
        let ledger = Ledger {
            received: figure("received"),
            cluster_received: figure("cluster_received"),
            delivered: figure("delivered"),
            dropped: figure("dropped"),
            mailbox: figure("mailbox"),
            cluster_sent: figure("cluster_sent"),
        };
        assert_eq!(ledger.gap(), 0, "{ledger:?}");
        ledger
    }

    /// Checks the ledger, drains the node and waits for its end.
    pub(crate) async fn stop(mut self) {
        self.ledger().await;
        self.begin_stop();
        self.ended().await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let lines = log
                .lines()
                .filter(|line| !line.contains("upgrade accepted"));
            let lines: Vec<_> = lines.collect();
            let from = lines.len().saturating_sub(25);
            println!("-- the end of a node's log:\n{}", lines[from..].join("\n"));
        }
        if let Some(mut process) = self.process.take() {
            // `kill` fails if the node has ended already.
            let _ended = process.kill().is_err();
            process.wait().unwrap();
        }
    }
}

impl Scrape {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        });
        Self(series.collect())
    }

    /// The value of a metric, summed over all its series.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count"
    )]
    pub(crate) fn value(&self, name: &str) -> u64 {
        let of = |series: &&String| series.split('{').next() == Some(name);
        let values = self.0.keys().filter(of).map(|series| self.0[series]);
        values.sum::<f64>() as u64
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count"
    )]
    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        let series = format!("switchboard_messages_dropped_total{{reason=\"{reason}\"}}");
        self.0[&series] as u64
    }

    pub(crate) fn ledger(&self) -> Ledger {
        Ledger {
            received: self.value("switchboard_messages_received_total"),
            cluster_received: self.value("switchboard_cluster_received_total"),
            delivered: self.value("switchboard_messages_delivered_total"),
            dropped: self.value("switchboard_messages_dropped_total"),
            mailbox: self.value("switchboard_mailbox_messages"),
            cluster_sent: self.value("switchboard_cluster_sent_total"),
        }
    }
}

impl Ledger {
    /// Received messages that the other counters do not account for.
    pub(crate) fn gap(&self) -> i64 {
        let into = self.received + self.cluster_received;
        let out = self.delivered + self.dropped + self.mailbox + self.cluster_sent;
        into.cast_signed() - out.cast_signed()
    }
}
