//! Sees whether the server of NATS is still there and how fast it takes what is published, by round trips.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use super::nats::{LinkLost, NatsLink};
use super::shared::{Shared, micros};
use super::window::Window;

/// Looks at the time in `cluster.link_timeout`.
const TICKS: u32 = 4;

pub(super) const ENDED: &str = "the connection has ended";
const SILENT: &str = "nats does not answer";

/// The window of one link.
pub(super) struct Pace {
    window: Mutex<Window>,
    /// Notified when it is time for a round trip.
    due: Notify,
}

impl Pace {
    pub(super) fn new(bytes_max: usize, now: u64) -> Self {
        Self {
            window: Mutex::new(Window::new(bytes_max, now)),
            due: Notify::new(),
        }
    }

    /// Bytes that may be published now.
    pub(super) fn room(&self) -> usize {
        self.window().room()
    }

    /// So much was published.
    pub(super) fn sent(&self, bytes: usize) {
        let is_due = self.window().sent(bytes);
        if is_due {
            self.due.notify_one();
        }
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock()
    }
}

/// Watches a link until its end. Returns why it has ended.
pub(super) async fn watch<L: NatsLink>(
    shared: Arc<Shared>,
    link: L,
    pace: Arc<Pace>,
) -> &'static str {
    let patience = shared.settings.link_timeout;
    let mut ticks = interval(patience / TICKS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut trips = FuturesUnordered::new();
    let mut overruns = 0;
    loop {
        let is_due = tokio::select! {
            biased;
            () = link.lost() => return ENDED,
            Some((number, back)) = trips.next(), if !trips.is_empty() => {
                if back == Err(LinkLost) {
                    return ENDED;
                }
                if let Some(took) = pace.window().came_back(number, shared.now()) {
                    shared.link_metrics.round_trip(Duration::from_micros(took));
                }
                shared.publish();
                false
            }
            () = pace.due.notified() => true,
            _ = ticks.tick() => {
                if pace.window().silence(shared.now()) >= micros(patience) {
                    return SILENT;
                }
                if link.overruns() > overruns {
                    overruns = link.overruns();
                    shared.link_metrics.overrun();
                }
                !pace.window().is_probing()
            }
        };
        if is_due {
            let number = pace.window().probe(shared.now());
            let link = link.clone();
            trips.push(async move { (number, link.round_trip().await) });
        }
    }
}
