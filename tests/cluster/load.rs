//! Many users on all nodes who write to each other all the time and follow `reconnect`; each notes what
//! it sent, what it heard and what it was told, and in the end all of that has to fit together.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::user::{Dialect, Told, User};

/// From one message of a user to its next.
const PAUSE: Duration = Duration::from_millis(15);
/// How long somebody waits for outcomes when nothing is sent any more.
const LAST_WORDS: Duration = Duration::from_secs(8);

/// What all users of a test share.
#[derive(Debug)]
pub(crate) struct Load {
    world: Arc<World>,
    users: Vec<JoinHandle<Vec<Life>>>,
}

#[derive(Debug)]
struct World {
    /// Ports of the nodes that new connections may go to.
    ports: Mutex<Vec<u16>>,
    /// Who is connected, and where.
    here: Mutex<BTreeMap<u64, u16>>,
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
    /// The node of the recipient when it was sent.
    to_port: u16,
    at: Instant,
}

/// One connection of a user, from its welcome to its end.
#[derive(Debug)]
pub(crate) struct Life {
    id: u64,
    port: u16,
    sent: Vec<Sent>,
    told: Told,
    /// It was connected when the test came to its end.
    lived: bool,
}

/// What came out of it.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) asked: usize,
    pub(crate) statuses: BTreeMap<String, usize>,
    /// Messages of unknown fate.
    pub(crate) unknown: Vec<Unknown>,
    /// Asked for on connections that ended before the answer.
    pub(crate) unanswered: usize,
}

/// A message of unknown fate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unknown {
    pub(crate) from_port: u16,
    pub(crate) to_port: u16,
    pub(crate) at: Instant,
}

impl Load {
    /// So many users, spread over the nodes at these ports.
    pub(crate) async fn begin(users: usize, ports: &[u16]) -> Self {
        let world = Arc::new(World {
            ports: Mutex::new(ports.to_vec()),
            here: Mutex::default(),
            phase: watch::channel(Phase::Talking).0,
        });
        let users = (0..users).map(|number| {
            let first = ports[number % ports.len()];
            tokio::spawn(world.clone().user(first))
        });
        let load = Self {
            users: users.collect(),
            world,
        };
        crate::eventually("everybody is connected", async || {
            let here = load.world.here.lock().unwrap().len();
            (here == load.users.len()).then_some(())
        })
        .await;
        load
    }

    /// Lets new connections go to these nodes only.
    pub(crate) fn route(&self, ports: &[u16]) {
        *self.world.ports.lock().unwrap() = ports.to_vec();
    }

    /// Waits until everybody is connected to one of these nodes.
    pub(crate) async fn settled(&self, ports: &[u16]) {
        crate::eventually("everybody is connected again", async || {
            let here = self.world.here.lock().unwrap();
            let all = here.len() == self.users.len();
            (all && here.values().all(|port| ports.contains(port))).then_some(())
        })
        .await;
    }

    /// Ends the talking, waits for the last outcomes, and checks that everything fits together.
    pub(crate) async fn end(self) -> Summary {
        self.world.phase.send_replace(Phase::Listening);
        let mut lives = Vec::new();
        for user in self.users {
            lives.extend(crate::within("a user's end", user).await.unwrap());
        }
        check(&lives)
    }
}

impl World {
    /// Somebody who comes back whenever its connection ends.
    async fn user(self: Arc<Self>, first: u16) -> Vec<Life> {
        let mut lives = Vec::new();
        let mut port = first;
        while *self.phase.borrow() == Phase::Talking {
            if let Ok(user) = User::try_connect(port, Dialect::V1).await {
                self.here.lock().unwrap().insert(user.id, port);
                let (life, after) = self.live(user, port).await;
                self.here.lock().unwrap().remove(&life.id);
                let is_last = life.lived;
                lives.push(life);
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
        lives
    }

    /// One connection; how long to wait before the next one.
    async fn live(&self, mut user: User, port: u16) -> (Life, Duration) {
        let mut sent = Vec::new();
        let mut after = Duration::from_millis(20);
        let mut phase = self.phase.subscribe();
        let is_over = |told: &Told| told.closed.is_some() || !told.notices.is_empty();
        while *phase.borrow_and_update() == Phase::Talking && !user.look(is_over) {
            if let Some((to, to_port)) = self.anybody() {
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
        // Whoever is asked to come back waits for the close first: outcomes come before it.
        let asked = user.look(|told| {
            let mut notices = told.notices.iter();
            notices.find_map(|notice| notice["after_ms"].as_u64())
        });
        let lived = asked.is_none() && user.look(|told| told.closed.is_none());
        let deadline = Instant::now() + LAST_WORDS;
        let is_settled = |told: &Told| told.closed.is_some() || told.outcomes.len() >= sent.len();
        while Instant::now() < deadline
            && !user.look(|told| told.closed.is_some() || (lived && is_settled(told)))
        {
            sleep(Duration::from_millis(5)).await;
        }
        if lived {
            // What others have sent meanwhile.
            sleep(Duration::from_millis(500)).await;
        }
        if let Some(ms) = asked {
            // A part of it, so that a test is not all waiting.
            after = Duration::from_millis(ms / 4);
        }
        let told = user.told();
        let life = Life {
            id: user.id,
            port,
            sent,
            told,
            lived,
        };
        (life, after)
    }

    fn anybody(&self) -> Option<(u64, u16)> {
        let here = self.here.lock().unwrap();
        if here.is_empty() {
            return None;
        }
        let nth = fastrand::usize(..here.len());
        here.iter().nth(nth).map(|(id, port)| (*id, *port))
    }
}

/// What everybody says of the others has to be so.
fn check(lives: &[Life]) -> Summary {
    let mut heard = HashSet::new();
    for life in lives {
        let mut last = HashMap::new();
        for (sender, text) in &life.told.messages {
            let number: u64 = text.parse().unwrap();
            let before = last.insert(sender, number);
            assert!(
                before.is_none_or(|before| before < number),
                "user {} heard {number} of {sender} behind {before:?}",
                life.id
            );
            assert!(heard.insert((*sender, number)), "heard twice");
        }
    }
    let mut summary = Summary::default();
    for life in lives {
        summary.asked += life.sent.len();
        for (sent, number) in life.sent.iter().zip(0..) {
            let is_heard = heard.contains(&(life.id, number));
            let Some(outcomes) = life.told.outcomes.get(&number) else {
                assert!(
                    !life.lived,
                    "no outcome of {number} of user {} on {} to {} on {}",
                    life.id, life.port, sent.to, sent.to_port
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
                    "{number} of user {} on {} was delivered to {} on {}, who has not heard it",
                    life.id, life.port, sent.to, sent.to_port
                ),
                "unknown" => summary.unknown.push(Unknown {
                    from_port: life.port,
                    to_port: sent.to_port,
                    at: sent.at,
                }),
                // What it says itself: it may have arrived.
                "disconnected" => {}
                other => assert!(!is_heard, "{other}, and it was heard"),
            }
        }
    }
    summary
}

impl Summary {
    /// Says what became of all.
    pub(crate) fn print(&self, what: &str) {
        let per_mille = 1000 * self.unknown.len() / self.asked.max(1);
        println!(
            "   {what}: {} asked, {:?}, {} unanswered at a connection's end; unknown: {} ({per_mille} in 1000)",
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
