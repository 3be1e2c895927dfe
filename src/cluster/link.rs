//! One connection to NATS from its making to its end, and the next one after it. A link is up once the server knows
//! the subscription and the key of this node, and lost when the connection ends, the server is silent, or a bucket
//! is another one.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::blocks::lease_blocks;
use super::buckets::Buckets;
use super::inbound::Receiver;
use super::nats::{BucketFailure, LinkLost, Nats, NatsLink};
use super::outbound::Publisher;
use super::pace::{ENDED, Pace, watch};
use super::registrar::{Registrar, carry_out};
use super::renewal::LeaseRenewal;
use super::shared::{BACKOFF, Shared};
use super::unready::Unready;
use crate::directory::Wakes;
use crate::telemetry::metrics::DropReason;

/// How long the end of a link may take that is closed in order: several calls, one after the other, and a delete for
/// each user that was aborted. If NATS is silent, `cluster.link_timeout` ends it sooner.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// A node that ends waits for this time in which nothing comes: it was told to the others that it ends.
const QUIET: Duration = Duration::from_millis(100);
/// How often it is looked whether all is done.
const POLL: Duration = Duration::from_millis(5);

/// Why a link did not come up.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Lost(#[from] LinkLost),
    #[error(transparent)]
    Bucket(#[from] BucketFailure),
}

impl LinkError {
    fn unready(&self) -> Unready {
        match self {
            Self::Lost(_) => Unready::Unreachable,
            Self::Bucket(_) => Unready::NoJetStream,
        }
    }
}

/// Makes links, one after the other, until the node ends.
pub(super) async fn keep<N: Nats>(shared: Arc<Shared>, nats: N) {
    let mut backoff = BACKOFF;
    let stop = shared.stop.clone();
    while !stop.is_cancelled() {
        let connected = tokio::select! {
            connected = nats.connect() => connected,
            () = stop.cancelled() => break,
        };
        let (reason, cause) = match connected {
            Ok(link) => match open(&shared, link).await {
                Ok(session) => {
                    backoff.reset();
                    match session.serve().await {
                        Some(reason) => (reason.to_owned(), Unready::Unreachable),
                        None => break,
                    }
                }
                Err(error) => (chain(&error), error.unready()),
            },
            Err(error) => (chain(&error), error.unready()),
        };
        shared.set_unready(cause);
        if backoff.is_first() {
            warn!(reason, "nats is away");
        } else {
            debug!(reason, "nats is away");
        }
        tokio::select! {
            () = sleep(backoff.next()) => {}
            () = stop.cancelled() => {}
        }
    }
    // Nobody will be told any more; they are counted.
    shared.give_up(u64::MAX);
}

/// An error with all that caused it.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        write!(text, ": {error}").expect("a String takes all that is written to it");
        source = error.source();
    }
    text
}

/// A link whose key and subscription the server knows.
struct OpenLink<L: NatsLink> {
    shared: Arc<Shared>,
    link: L,
    number: u64,
    buckets: Buckets<L>,
    renewal: LeaseRenewal<L>,
    subscription: L::Subscription,
}

/// Opens the buckets, listens, and writes the key of this node.
async fn open<L: NatsLink>(shared: &Arc<Shared>, link: L) -> Result<OpenLink<L>, LinkError> {
    let opened = async {
        let number = fastrand::u64(1..);
        let buckets = Buckets::open(shared, &link).await?;
        let identities = buckets.identities();
        let before = shared.buckets.lock().replace(identities.clone());
        if before.is_some_and(|before| before != identities) {
            warn!("a bucket of nats was lost and made again");
            shared.lease.end();
        }
        let subscription = link.subscribe(shared.subjects.all()).await?;
        let mut renewal = LeaseRenewal::new(shared.clone(), link.clone(), buckets.clone(), number);
        while !renewal.renew().await? {}
        link.round_trip().await?;
        Ok(OpenLink {
            shared: shared.clone(),
            link: link.clone(),
            number,
            buckets,
            renewal,
            subscription,
        })
    };
    // Some calls, one after the other, each with a limit of its own.
    let opened = timeout(2 * shared.settings.link_timeout, opened);
    opened.await.unwrap_or(Err(LinkError::Lost(LinkLost)))
}

/// The tasks of a link.
struct LinkTasks {
    shared: Arc<Shared>,
    lost: CancellationToken,
    reason: Arc<Mutex<Option<&'static str>>>,
}

impl<L: NatsLink> OpenLink<L> {
    /// Uses the link until its end. Returns why it is lost; `None` if it was closed because the node ends.
    async fn serve(self) -> Option<&'static str> {
        let Self {
            shared,
            link,
            number,
            buckets,
            renewal,
            subscription,
        } = self;
        let up = LinkUp::new(&shared, number);
        let tasks = LinkTasks::new(shared.clone());
        let pace = Arc::new(Pace::new(shared.settings.in_flight_bytes, shared.now()));
        let (closing, finishing) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        let watching = watch(shared.clone(), link.clone(), pace.clone());
        let Buckets { ids, nodes, blocks } = buckets;
        let registrar = Registrar::new(shared.clone(), link.clone(), ids, nodes);
        let receiver = Receiver::new(shared.clone());
        let (leasing, close) = (
            lease_blocks(shared.clone(), link.clone(), blocks),
            closing.clone(),
        );
        let others = [
            tasks.start(async move { Some(watching.await) }),
            tasks.start(async move { Some(ended(registrar.run().await)) }),
            tasks.start(async move { Some(ended(receiver.run(subscription).await)) }),
            tasks.start(async move { close.run_until_cancelled(leasing).await.and(None) }),
        ];
        let renewal = tasks.start(renewal.keep(closing.clone()));
        let publisher = Publisher::new(
            shared.clone(),
            link.clone(),
            number,
            pace,
            tasks.lost.clone(),
        );
        let finish = finishing.clone();
        let publisher =
            tasks.start_to_the_end(async move { publisher.run(finish).await.err().map(ended) });
        tokio::select! {
            () = tasks.lost.cancelled() => {}
            () = shared.stop.cancelled() => {
                let close = async {
                    shared.queue().close();
                    until(|| shared.registry().is_idle()).await;
                    closing.cancel();
                    join(renewal).await;
                    quiet(&shared, &link).await;
                    finishing.store(true, Ordering::Release);
                    shared.publish();
                    join(publisher).await;
                    // Where the link is lost meanwhile there is nothing more to be done.
                    let _lost = link.round_trip().await.is_err();
                };
                tokio::select! {
                    closed = timeout(CLOSE_TIMEOUT, close) => {
                        if closed.is_err() {
                            warn!("leaving the cluster took too long");
                        }
                    }
                    () = tasks.lost.cancelled() => {}
                }
            }
        }
        let is_lost = tasks.lost.is_cancelled();
        // Before the tasks have ended: from here on nothing is queued.
        drop(up);
        tasks.lost.cancel();
        for task in others {
            join(task).await;
        }
        is_lost.then(|| tasks.reason.lock().unwrap_or(ENDED))
    }
}

/// Waits until it was quiet for a while: nothing has come, and all that was sent has arrived.
async fn quiet<L: NatsLink>(shared: &Shared, link: &L) {
    loop {
        let before = shared.arrived();
        sleep(QUIET).await;
        if link.round_trip().await.is_err() || shared.arrived() == before {
            return;
        }
    }
}

async fn until(is_done: impl Fn() -> bool) {
    while !is_done() {
        sleep(POLL).await;
    }
}

impl LinkTasks {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            lost: CancellationToken::new(),
            reason: Arc::default(),
        }
    }

    /// Starts a task that ends with the link at the latest. What it returns is why the link is lost.
    fn start(
        &self,
        task: impl Future<Output = Option<&'static str>> + Send + 'static,
    ) -> JoinHandle<()> {
        let lost = self.lost.clone();
        self.start_to_the_end(async move { lost.run_until_cancelled(task).await.flatten() })
    }

    /// Starts a task that notices the end of the link by itself.
    fn start_to_the_end(
        &self,
        task: impl Future<Output = Option<&'static str>> + Send + 'static,
    ) -> JoinHandle<()> {
        let (lost, reason) = (self.lost.clone(), self.reason.clone());
        self.shared.tracker.spawn(async move {
            if let Some(ended) = task.await {
                reason.lock().get_or_insert(ended);
                lost.cancel();
            }
        })
    }
}

fn ended(LinkLost: LinkLost) -> &'static str {
    ENDED
}

/// Waits for a task.
async fn join(task: JoinHandle<()>) {
    if let Err(error) = task.await {
        error!(%error, "a task of the cluster has failed");
    }
}

/// While the link is up. Drop closes the way out: what was queued is dropped.
struct LinkUp(Arc<Shared>);

impl LinkUp {
    fn new(shared: &Arc<Shared>, number: u64) -> Self {
        shared.set_unready(Unready::NoId);
        shared.set_link(number);
        shared.queue().open();
        {
            let now = shared.now();
            let mut registry = shared.registry();
            registry.link_up(now);
            // Also if the lease has lasted: NATS may have lost its last writes meanwhile.
            registry.compare(shared.lease.number(), now);
        }
        shared.set_up(true);
        shared.link_metrics.connected();
        info!(node = shared.node.0, "joined the cluster");
        Self(shared.clone())
    }
}

impl Drop for LinkUp {
    fn drop(&mut self) {
        let shared = &self.0;
        shared.set_up(false);
        let now = shared.now();
        shared.registry().link_down(now);
        loop {
            let action = shared.registry().next_action();
            let Some(action) = action else {
                break;
            };
            carry_out(shared, action);
        }
        let dropped = {
            let mut queue = shared.queue();
            queue.close();
            queue.drop_queued(DropReason::Unavailable)
        };
        dropped.settle(&mut Wakes::default());
    }
}
