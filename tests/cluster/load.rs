//! Many users on all nodes that write to each other and follow `reconnect`. Each user records its messages and the
//! frames that it receives. In the end the records of all users must agree.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::user::{Dialect, Received, User};

/// The mean time between two messages of a user.
const PAUSE: Duration = Duration::from_millis(15);
/// The longest time that a user waits for outcomes after the last message.
const OUTCOME_WAIT: Duration = Duration::from_secs(8);

/// The running users of a test.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    users: Vec<JoinHandle<Vec<Connection>>>,
}

/// State that all users share.
#[derive(Debug)]
struct Shared {
    /// Ports of the nodes that new connections may go to.
    ports: Mutex<Vec<u16>>,
    /// The ids of connected users, and the ports of their nodes.
    connected: Mutex<BTreeMap<u64, u16>>,
    phase: watch::Sender<Phase>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Talking,
    Listening,
}

/// One message.
#[derive(Clone, Copy, Debug)]
struct Sent {
    to: u64,
    /// The port of the recipient's node when the message was sent.
    to_port: u16,
    at: Instant,
}

/// One connection of a user, from its welcome to its end.
#[derive(Debug)]
pub(crate) struct Connection {
    id: u64,
    port: u16,
    sent: Vec<Sent>,
    received: Received,
    /// Whether the connection was open at the end of the test.
    is_open: bool,
}

/// The outcomes of all messages.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) asked: usize,
    pub(crate) statuses: BTreeMap<String, usize>,
    /// Messages with the outcome `unknown`.
    pub(crate) unknown: Vec<Unknown>,
    /// Messages on connections that ended before the outcome arrived.
    pub(crate) unanswered: usize,
}

/// A message with the outcome `unknown`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unknown {
    pub(crate) from_port: u16,
    pub(crate) to_port: u16,
    pub(crate) at: Instant,
}

impl Load {
    /// Connects `users` users, spread over the nodes at these ports.
    pub(crate) async fn begin(users: usize, ports: &[u16]) -> Self {
        let shared = Arc::new(Shared {
            ports: Mutex::new(ports.to_vec()),
            connected: Mutex::default(),
            phase: watch::channel(Phase::Talking).0,
        });
        let users = (0..users).map(|number| {
            let first = ports[number % ports.len()];
            tokio::spawn(shared.clone().user(first))
        });
        let load = Self {
            users: users.collect(),
            shared,
        };
        crate::eventually("all users are connected", async || {
            let connected = load.shared.connected.lock().unwrap().len();
            (connected == load.users.len()).then_some(())
        })
        .await;
        load
    }

    /// Sends new connections to these nodes only.
    pub(crate) fn route(&self, ports: &[u16]) {
        *self.shared.ports.lock().unwrap() = ports.to_vec();
    }

    /// Waits until all users are connected to one of these nodes.
    pub(crate) async fn until_connected(&self, ports: &[u16]) {
        crate::eventually("all users are connected again", async || {
            let connected = self.shared.connected.lock().unwrap();
            let all = connected.len() == self.users.len();
            (all && connected.values().all(|port| ports.contains(port))).then_some(())
        })
        .await;
    }

    /// Stops all messages, waits for the last outcomes, and checks the records.
    pub(crate) async fn end(self) -> Summary {
        self.shared.phase.send_replace(Phase::Listening);
        let mut connections = Vec::new();
        for user in self.users {
            connections.extend(crate::within("a user's end", user).await.unwrap());
        }
        check(&connections)
    }
}

impl Shared {
    /// A user that reconnects whenever its connection ends. Returns the records of its connections.
    async fn user(self: Arc<Self>, first: u16) -> Vec<Connection> {
        let mut connections = Vec::new();
        let mut port = first;
        while *self.phase.borrow() == Phase::Talking {
            if let Ok(user) = User::try_connect(port, Dialect::V1).await {
                self.connected.lock().unwrap().insert(user.id, port);
                let (connection, after) = self.run(user, port).await;
                self.connected.lock().unwrap().remove(&connection.id);
                let is_last = connection.is_open;
                connections.push(connection);
                if is_last {
                    break;
                }
                sleep(after).await;
            } else {
                sleep(Duration::from_millis(50)).await;
            }
            let ports = self.ports.lock().unwrap();
            port = ports[fastrand::usize(..ports.len())];
        }
        connections
    }

    /// Runs one connection. Returns its record, and the wait before the next connection.
    async fn run(&self, mut user: User, port: u16) -> (Connection, Duration) {
        let mut sent = Vec::new();
        let mut after = Duration::from_millis(20);
        let mut phase = self.phase.subscribe();
        let is_over =
            |received: &Received| received.closed.is_some() || !received.notices.is_empty();
        while *phase.borrow_and_update() == Phase::Talking && !user.look(is_over) {
            if let Some((to, to_port)) = self.random_user() {
                let number = sent.len() as u64;
                let frame =
                    json!({"recipient_id": to, "message": number.to_string(), "id": number});
                let at = Instant::now();
                sent.push(Sent { to, to_port, at });
                if user.try_send(frame).await.is_err() {
                    break;
                }
            }
            sleep(PAUSE.mul_f64(0.5 + fastrand::f64())).await;
        }
        // After `reconnect` the user waits for the close, because outcomes arrive before it.
        let asked = user.look(|received| {
            let mut notices = received.notices.iter();
            notices.find_map(|notice| notice["after_ms"].as_u64())
        });
        let is_open = asked.is_none() && user.look(|received| received.closed.is_none());
        let deadline = Instant::now() + OUTCOME_WAIT;
        let is_settled = |received: &Received| {
            received.closed.is_some() || received.outcomes.len() >= sent.len()
        };
        while Instant::now() < deadline
            && !user.look(|received| received.closed.is_some() || (is_open && is_settled(received)))
        {
            sleep(Duration::from_millis(5)).await;
        }
        if is_open {
            // Other users' messages may still arrive.
            sleep(Duration::from_millis(500)).await;
        }
        if let Some(ms) = asked {
            // Only a quarter of the wait, to keep the test short.
            after = Duration::from_millis(ms / 4);
        }
        let received = user.received();
        let connection = Connection {
            id: user.id,
            port,
            sent,
            received,
            is_open,
        };
        (connection, after)
    }

    fn random_user(&self) -> Option<(u64, u16)> {
        let connected = self.connected.lock().unwrap();
        if connected.is_empty() {
            return None;
        }
        let nth = fastrand::usize(..connected.len());
        connected.iter().nth(nth).map(|(id, port)| (*id, *port))
    }
}

/// Checks that the records of all connections agree.
fn check(connections: &[Connection]) -> Summary {
    let mut heard = HashSet::new();
    for connection in connections {
        let mut last = HashMap::new();
        for (sender, text) in &connection.received.messages {
            let number: u64 = text.parse().unwrap();
            let before = last.insert(sender, number);
            assert!(
                before.is_none_or(|before| before < number),
                "user {} received message {number} of {sender} after {before:?}",
                connection.id
            );
            assert!(
                heard.insert((*sender, number)),
                "message {number} of {sender} arrived twice"
            );
        }
    }
    let mut summary = Summary::default();
    for connection in connections {
        summary.asked += connection.sent.len();
        for (sent, number) in connection.sent.iter().zip(0..) {
            let is_heard = heard.contains(&(connection.id, number));
            let Some(outcomes) = connection.received.outcomes.get(&number) else {
                assert!(
                    !connection.is_open,
                    "no outcome of message {number} of user {} on {} to {} on {}",
                    connection.id, connection.port, sent.to, sent.to_port
                );
                summary.unanswered += 1;
                continue;
            };
            let [status] = &outcomes[..] else {
                panic!("more than one outcome: {outcomes:?}");
            };
            *summary.statuses.entry(status.clone()).or_default() += 1;
            match status.as_str() {
                "delivered" => assert!(
                    is_heard,
                    "message {number} of user {} on {} is `delivered` to {} on {}, but did not arrive",
                    connection.id, connection.port, sent.to, sent.to_port
                ),
                "unknown" => summary.unknown.push(Unknown {
                    from_port: connection.port,
                    to_port: sent.to_port,
                    at: sent.at,
                }),
                // With this outcome, the message may have arrived.
                "disconnected" => {}
                other => assert!(!is_heard, "the outcome is {other}, but the message arrived"),
            }
        }
    }
    summary
}

impl Summary {
    /// Prints the number of messages with each outcome.
    pub(crate) fn print(&self, what: &str) {
        let per_mille = 1000 * self.unknown.len() / self.asked.max(1);
        println!(
            "   {what}: {} messages, {:?}, {} without an outcome at a connection's end; unknown: {} ({per_mille} in 1000)",
            self.asked,
            self.statuses,
            self.unanswered,
            self.unknown.len()
        );
    }

    pub(crate) fn count(&self, status: &str) -> usize {
        self.statuses.get(status).copied().unwrap_or_default()
    }
}
