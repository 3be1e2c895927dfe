//! One connection to NATS from its making to its end, and the next one after it. A link is up once the
//! server has seen all subscriptions, and lost when the connection ends or the server is silent.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::client::PublishError;
use async_nats::{Client, HeaderMap, HeaderName, Subject};
use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::guests::{self, Returning};
use super::inbound::take_returns;
use super::leases::Keeper;
use super::nats::Access;
use super::outbound::publish;
use super::window::Window;
use super::{Shared, Unready, micros};
use crate::telemetry::trace_context::TRACEPARENT_BYTES;

/// How long the end of a link may take that is closed in order.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The wait before the second attempt to connect, at most; it doubles with each.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// One connection.
pub(super) struct Link {
    pub(super) client: Client,
    /// Counts the links of this process, from 1.
    pub(super) number: u32,
    pub(super) lost: CancellationToken,
    /// It is known which ids of this node's blocks are elsewhere.
    pub(super) settled: CancellationToken,
    window: Mutex<Window>,
    /// Told of each probe that comes back.
    heard: Notify,
}

/// A message as it is published.
pub(super) struct Letter {
    pub(super) subject: Subject,
    pub(super) reply: Subject,
    /// The trace that it is part of (W3C Trace Context), where it is traced.
    pub(super) headers: Option<HeaderMap>,
    pub(super) payload: Bytes,
}

/// The headers that carry a trace.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// What headers with it take on the wire: a version line, its name and value, and the line ends.
pub(super) const HEADER_BYTES: usize =
    "NATS/1.0\r\ntraceparent: \r\n\r\n".len() + TRACEPARENT_BYTES;
/// What a tracestate adds to them, beside its value.
pub(super) const TRACESTATE_HEADER_BYTES: usize = "tracestate: \r\n".len();

/// The link is of no use any more.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the connection has ended")]
pub(super) struct Lost;

/// How a link ended.
enum End {
    /// It was closed in order, since the node ends.
    Closed,
    Lost(&'static str),
}

/// Makes links, one after the other, until the node ends.
pub(super) async fn keep(shared: Arc<Shared>, access: Access) {
    let mut number = 0;
    let mut failures = 0;
    let stop = shared.stop.clone();
    while !stop.is_cancelled() {
        let connected = tokio::select! {
            connected = access.connect(&shared.subjects, &shared.link_metrics) => connected,
            () = stop.cancelled() => break,
        };
        match connected {
            Ok(client) => {
                number += 1;
                let (end, came_up) = serve(&shared, client, number).await;
                if came_up {
                    failures = 0;
                }
                match end {
                    End::Closed => break,
                    End::Lost(reason) => {
                        shared.set_unready(Unready::Unreachable);
                        warn!(reason, "nats is away");
                    }
                }
            }
            Err(error) => {
                shared.set_unready(error.unready());
                if failures == 0 {
                    warn!(error = chain(&error), "nats is away");
                } else {
                    debug!(error = chain(&error), failures, "nats is away");
                }
            }
        }
        failures += 1;
        tokio::select! {
            () = sleep(backoff(failures)) => {}
            () = stop.cancelled() => {}
        }
    }
    // Nobody will be told any more; they are counted.
    shared.give_up(u64::MAX);
}

/// A wait that differs, so that many nodes do not come back in one moment.
pub(super) fn backoff(failures: u32) -> Duration {
    let most = BACKOFF_MIN
        .saturating_mul(1 << (failures - 1).min(16))
        .min(BACKOFF_MAX);
    most.mul_f64(fastrand::f64())
}

/// An error with all that caused it.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        write!(text, ": {error}").expect("a String takes all that is written to it");
        source = error.source();
    }
    text
}

/// Uses a connection until its end. Whether the link was up in between.
async fn serve(shared: &Arc<Shared>, client: Client, number: u32) -> (End, bool) {
    let link = Arc::new(Link::new(client, number, shared));
    let tasks = match timeout(shared.settings.link_timeout, Tasks::open(shared, &link)).await {
        Ok(Ok(tasks)) => tasks,
        Ok(Err(Lost)) => return (End::Lost(ENDED), false),
        Err(_elapsed) => {
            link.lost.cancel();
            return (End::Lost(SILENT), false);
        }
    };
    let up = shared.come_up(&link);
    shared.link_metrics.connected();
    info!(blocks = shared.leases.list().len(), "joined the cluster");
    let mut tasks = tasks.start(shared, &link);
    let end = watch(shared, &link).await;
    if matches!(end, End::Closed) {
        shared.queue().close();
        let closed = timeout(CLOSE_TIMEOUT, tasks.close(shared, &link)).await;
        if closed.is_err() {
            warn!("leaving the cluster took too long");
        }
    }
    link.lost.cancel();
    // Before the tasks have ended: from here on nothing is queued.
    drop(up);
    tasks.join().await;
    (end, true)
}

const ENDED: &str = "the connection has ended";
const SILENT: &str = "nats does not answer";

/// Waits for the end of a link.
async fn watch(shared: &Shared, link: &Link) -> End {
    let patience = shared.settings.link_timeout;
    let mut ticks = interval(patience / TICKS);
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return End::Closed,
            () = link.lost.cancelled() => return End::Lost(ENDED),
            _ = ticks.tick() => {}
        }
        let (silence, is_probing) = {
            let window = link.window();
            (window.silence(shared.now()), window.is_probing())
        };
        if silence >= micros(patience) {
            return End::Lost(SILENT);
        }
        if !is_probing && link.probe(shared).await.is_err() {
            return End::Lost(ENDED);
        }
    }
}

/// The part of `cluster.link_timeout` that other nodes have to say which ids are theirs.
const SETTLING: u32 = 12;
/// Probes in `cluster.link_timeout`, where nothing else goes out.
const TICKS: u32 = 4;

/// The tasks of a link, and how they are told to end in order.
struct Tasks<K> {
    returns: Option<JoinHandle<()>>,
    keeper: K,
    guests: Option<JoinHandle<()>>,
    outbound: Option<JoinHandle<()>>,
    closing: CancellationToken,
    finishing: Arc<AtomicBool>,
}

impl Tasks<(Keeper, Vec<Returning>)> {
    /// Listens again to all that this node listens to, and waits until the server has seen that.
    async fn open(shared: &Arc<Shared>, link: &Arc<Link>) -> Result<Self, Lost> {
        let subjects = [shared.subjects.node(), shared.subjects.holders()];
        let subscribe = |subject| link.client.subscribe(subject);
        let returns = try_join_all(subjects.map(subscribe)).await;
        let returns = returns.map_err(|_ended| Lost)?;
        let returns = take_returns(shared.clone(), link.clone(), returns);
        let returns = shared.tracker.spawn(returns);
        shared.extend_claims();
        let mut keeper = Keeper::new(shared.clone(), link.clone());
        keeper.listen_again().await?;
        let guests = guests::listen_again(shared, link).await?;
        link.is_heard(shared).await?;
        if keeper.holds_any() {
            // Who has gone elsewhere while this node was away is told by whoever has them.
            sleep(shared.settings.link_timeout / SETTLING).await;
        }
        link.settled.cancel();
        Ok(Self {
            returns: Some(returns),
            keeper: (keeper, guests),
            guests: None,
            outbound: None,
            closing: CancellationToken::new(),
            finishing: Arc::default(),
        })
    }

    fn start(self, shared: &Arc<Shared>, link: &Arc<Link>) -> Tasks<Option<JoinHandle<()>>> {
        let Self {
            returns,
            keeper: (keeper, returning),
            guests: _,
            outbound: _,
            closing,
            finishing,
        } = self;
        let keeper = shared.tracker.spawn(keeper.keep(closing.clone()));
        let guests = guests::keep(shared.clone(), link.clone(), returning);
        let guests = shared.tracker.spawn(guests);
        let outbound = publish(shared.clone(), link.clone(), finishing.clone());
        let outbound = shared.tracker.spawn(outbound);
        Tasks {
            returns,
            keeper: Some(keeper),
            guests: Some(guests),
            outbound: Some(outbound),
            closing,
            finishing,
        }
    }
}

impl Tasks<Option<JoinHandle<()>>> {
    /// Takes what still comes for this node's users, answers it and sends what is queued; ends once the
    /// server has seen all of it.
    async fn close(&mut self, shared: &Shared, link: &Link) {
        shared.guests.all_left().await;
        self.closing.cancel();
        join(&mut self.keeper).await;
        self.finishing.store(true, Ordering::Release);
        if let Some(waker) = shared.notifier.notify() {
            waker.wake();
        }
        join(&mut self.outbound).await;
        // Where the link is lost meanwhile there is nothing more to be done.
        let _lost = link.is_heard(shared).await.is_err();
    }

    /// Waits for those that run, once the link is lost.
    async fn join(mut self) {
        join(&mut self.keeper).await;
        join(&mut self.guests).await;
        join(&mut self.outbound).await;
        join(&mut self.returns).await;
    }
}

/// Waits for a task, unless its end was waited for already.
async fn join(task: &mut Option<JoinHandle<()>>) {
    if let Some(running) = task {
        if let Err(error) = running.await {
            error!(%error, "a task of the cluster has failed");
        }
        *task = None;
    }
}

impl Link {
    fn new(client: Client, number: u32, shared: &Shared) -> Self {
        let bytes_max = shared.settings.in_flight_bytes;
        Self {
            client,
            number,
            lost: CancellationToken::new(),
            settled: CancellationToken::new(),
            window: Mutex::new(Window::new(bytes_max, shared.now())),
            heard: Notify::new(),
        }
    }

    pub(super) fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a probe behind all that was published.
    pub(super) async fn probe(&self, shared: &Shared) -> Result<u64, Lost> {
        let number = self.window().probe(shared.now());
        let subjects = &shared.subjects;
        let reply = subjects.probed(number);
        self.publish(subjects.nobody(), Some(reply), Bytes::new())
            .await?;
        Ok(number)
    }

    /// A probe has come back; how long it took, microseconds.
    pub(super) fn came_back(&self, probe: u64, now: u64) -> Option<u64> {
        let took = self.window().came_back(probe, now);
        self.heard.notify_waiters();
        took
    }

    /// Waits until the server has seen all that was published before.
    pub(super) async fn is_heard(&self, shared: &Shared) -> Result<(), Lost> {
        let probe = self.probe(shared).await?;
        loop {
            let heard = self.heard.notified();
            if !self.window().is_out(probe) {
                return Ok(());
            }
            tokio::select! {
                () = heard => {}
                () = self.lost.cancelled() => return Err(Lost),
            }
        }
    }

    /// Hands something to the client, which blocks while its socket takes nothing.
    pub(super) async fn publish(
        &self,
        subject: Subject,
        reply: Option<Subject>,
        payload: Bytes,
    ) -> Result<(), Lost> {
        let published = async {
            match reply {
                Some(reply) => {
                    let client = &self.client;
                    client.publish_with_reply(subject, reply, payload).await
                }
                None => self.client.publish(subject, payload).await,
            }
        };
        self.or_lost(published).await
    }

    /// The same for a message. What is not traced has no headers, and costs what it would without them.
    pub(super) async fn send(&self, letter: Letter) -> Result<(), Lost> {
        let Letter {
            subject,
            reply,
            headers,
            payload,
        } = letter;
        let Some(headers) = headers else {
            return self.publish(subject, Some(reply), payload).await;
        };
        let client = &self.client;
        let published = client.publish_with_reply_and_headers(subject, reply, headers, payload);
        self.or_lost(published).await
    }

    async fn or_lost(
        &self,
        published: impl Future<Output = Result<(), PublishError>>,
    ) -> Result<(), Lost> {
        tokio::select! {
            biased;
            published = published => published.map_err(|_ended| Lost),
            () = self.lost.cancelled() => Err(Lost),
        }
    }
}
