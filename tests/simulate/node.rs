//! A node: all of a relay but its listeners, in a runtime of its own whose clock the simulator moves. A runtime for
//! each node lets a node pause, jump in time or end without a word while the others go on.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use super::socket::NodeSocket;
use crate::app::mailbox_bounds;
use crate::cluster::model::{BEGIN, ModelNats};
use crate::cluster::{self, Cluster};
use crate::config::{Settings, Strategy};
use crate::directory::Directory;
use crate::drain;
use crate::http::welcome;
use crate::ledger::LedgerTotals;
use crate::lifecycle::{Shutdown, Stage, Stop};
use crate::protocol::Dialect;
use crate::relay::{Dependencies, Relay};
use crate::session::{Session, SessionConfig, SessionContext};
use crate::telemetry::metrics::{ClusterStats, DirectoryStats, DropReason, Metrics};
use crate::telemetry::traces::Traces;
use crate::ticket::Tickets;

/// The secret of all nodes.
const SECRET: &[u8] = b"a secret of the simulation, 32 bytes";
const USERS_MAX: usize = 64;

/// A process.
pub(super) struct Node {
    runtime: Runtime,
    /// The simulator's time when this process began, and the same in its own clock.
    begun_at: u64,
    epoch: Instant,
    parts: Arc<Parts>,
    /// By how much its wall clock is ahead, microseconds.
    clock_ahead: Arc<Mutex<i64>>,
    has_ended: Arc<Mutex<bool>>,
    is_draining: bool,
}

struct Parts {
    settings: Settings,
    relay: Relay,
    sessions: Arc<SessionContext>,
    tickets: Tickets,
    shutdown: Shutdown,
    cluster: Option<Cluster>,
    cluster_tasks: Mutex<Option<cluster::Tasks>>,
}

/// What became of a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    Waits,
    Accepted,
    Refused,
}

impl Node {
    pub(super) fn start(
        settings: &Settings,
        nats: Option<ModelNats>,
        (seed, now): (u64, u64),
    ) -> Self {
        let mut builder = Builder::new_current_thread();
        builder.enable_time().start_paused(true);
        #[cfg(tokio_unstable)]
        builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
        #[cfg(not(tokio_unstable))]
        let _unused = seed;
        let runtime = builder.build().expect("a runtime without sockets");
        let (parts, epoch) =
            runtime.block_on(async { (Parts::new(settings, nats), Instant::now()) });
        Self {
            runtime,
            begun_at: now,
            epoch,
            parts: Arc::new(parts),
            clock_ahead: Arc::default(),
            has_ended: Arc::default(),
            is_draining: false,
        }
    }

    /// Lets the node do what it does until `now`.
    pub(super) fn run_until(&self, now: u64) {
        let until = self.epoch + Duration::from_micros(now - self.begun_at);
        self.runtime
            .block_on(async { tokio::time::sleep_until(until).await });
    }

    /// Moves the clock of a node that did not run.
    pub(super) fn jump_to(&self, now: u64) {
        let until = self.epoch + Duration::from_micros(now - self.begun_at);
        self.runtime.block_on(async {
            let missed = until.saturating_duration_since(Instant::now());
            tokio::time::advance(missed).await;
        });
    }

    pub(super) fn set_clock(&self, ahead: i64) {
        *self.clock_ahead.lock() = ahead;
    }

    /// Begins a handshake. The client takes the result from the returned place.
    pub(super) fn connect(
        &self,
        socket: NodeSocket,
        ticket: Option<String>,
    ) -> (Arc<Mutex<Handshake>>, tokio::task::AbortHandle) {
        let result = Arc::new(Mutex::new(Handshake::Waits));
        let told = result.clone();
        let parts = self.parts.clone();
        let clock = Clock {
            begun_at: self.begun_at,
            epoch: self.epoch,
            ahead: self.clock_ahead.clone(),
        };
        let _guard = self.runtime.enter();
        let task = self.parts.shutdown.spawn(async move {
            let session = parts.session(socket, ticket.as_deref(), &clock).await;
            *told.lock() = match session {
                Some(_) => Handshake::Accepted,
                None => Handshake::Refused,
            };
            if let Some(session) = session {
                session.await;
            }
        });
        (result, task.abort_handle())
    }

    /// Begins to drain.
    pub(super) fn drain(&mut self) {
        if std::mem::replace(&mut self.is_draining, true) {
            return;
        }
        let (parts, has_ended) = (self.parts.clone(), self.has_ended.clone());
        let _guard = self.runtime.enter();
        self.runtime.spawn(async move {
            let settings = &parts.settings.drain;
            let _aborted = drain::drain(&parts.relay, &parts.shutdown, settings, Stop::Drain).await;
            parts.shutdown.stop();
            parts.shutdown.finished().await;
            let cluster = parts.cluster_tasks.lock().take();
            if let Some(cluster) = cluster {
                cluster.finish().await;
            }
            *has_ended.lock() = true;
        });
    }

    /// Whether a drain is over.
    pub(super) fn has_ended(&self) -> bool {
        *self.has_ended.lock()
    }

    pub(super) fn ledger(&self) -> LedgerTotals {
        let relay = &self.parts.relay;
        LedgerTotals::read(relay.metrics(), || self.stats().mailbox_messages)
    }

    /// The ledger without what is in mailboxes. The whole ledger takes a look at each place of the directory, and is
    /// another one only if this is.
    pub(super) fn counted(&self) -> LedgerTotals {
        LedgerTotals::read(self.parts.relay.metrics(), || 0)
    }

    /// Messages that were dropped because the code lost them.
    pub(super) fn lost_by_a_fault(&self) -> u64 {
        self.parts.relay.metrics().dropped(DropReason::Internal)
    }

    fn stats(&self) -> DirectoryStats {
        self.parts.relay.stats()
    }

    /// The link and what waits at it.
    pub(super) fn link(&self) -> ClusterStats {
        let cluster = self.parts.cluster.as_ref();
        cluster.map(Cluster::stats).unwrap_or_default()
    }

    /// Bytes that all mailboxes have reserved.
    pub(super) fn mailbox_reserved_bytes(&self) -> u64 {
        self.stats().mailbox_reserved_bytes
    }

    /// The number by which other nodes know this one.
    pub(super) fn number(&self) -> Option<u64> {
        self.parts.cluster.as_ref().map(Cluster::node)
    }

    pub(super) fn users(&self) -> usize {
        self.parts.relay.users()
    }
}

struct Clock {
    begun_at: u64,
    epoch: Instant,
    ahead: Arc<Mutex<i64>>,
}

impl Clock {
    fn now(&self) -> SystemTime {
        let here = u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX);
        let micros = BEGIN + self.begun_at + here;
        UNIX_EPOCH + Duration::from_micros(micros.saturating_add_signed(*self.ahead.lock()))
    }
}

type BoxedSession = Pin<Box<Session<NodeSocket>>>;

impl Parts {
    fn new(settings: &Settings, nats: Option<ModelNats>) -> Self {
        let metrics = Arc::new(Metrics::new(1));
        let sessions = SessionContext::new(SessionConfig::new(settings), metrics.clone());
        let shutdown = Shutdown::new();
        let directory = Directory::new();
        let joined = nats.map(|nats| {
            let (directory, metrics) = (directory.clone(), metrics.clone());
            let settings = &settings.cluster;
            Cluster::join_model(nats, settings, directory, metrics, sessions.epoch())
        });
        let (cluster, cluster_tasks) = joined.unzip();
        let dependencies = Dependencies {
            bounds: mailbox_bounds(&settings.mailbox),
            users_max: USERS_MAX,
            metrics,
            traces: Arc::new(Traces::off()),
            directory,
            cluster: cluster.clone(),
            id_file: None,
        };
        let relay = match settings.routing.strategy {
            Strategy::Directory => Relay::of(dependencies),
            Strategy::Router => {
                let (relay, task) = Relay::routed(dependencies, settings.routing.router_queue);
                #[allow(clippy::disallowed_methods, reason = "it ends with the runtime")]
                tokio::spawn(task);
                relay
            }
        };
        Self {
            settings: settings.clone(),
            relay,
            sessions: Arc::new(sessions),
            tickets: Tickets::new(Some(SECRET), settings.tickets.ttl).expect("there is a secret"),
            shutdown,
            cluster,
            cluster_tasks: Mutex::new(cluster_tasks),
        }
    }

    /// What the handshake does.
    async fn session(
        &self,
        socket: NodeSocket,
        ticket: Option<&str>,
        clock: &Clock,
    ) -> Option<BoxedSession> {
        if self.shutdown.stage() == Stage::Draining {
            return None;
        }
        let claim = ticket.map(|ticket| self.tickets.read(ticket, None, clock.now()));
        let resume = claim.and_then(Result::ok);
        let joined = self.relay.join(Dialect::V1, None, resume).await;
        let membership = joined.ok()?;
        let (tickets, shutdown) = (&self.tickets, &self.shutdown);
        let welcome = welcome(&membership, claim, tickets, shutdown, clock.now())?;
        let session = Session::new(socket, &[], membership, &welcome, self.sessions.clone());
        Some(Box::pin(session))
    }
}
