//! What the log tells an operator of the whole node: where it listens, how a drain goes and ends, and that it has
//! no room. Reads counters once a second, so that no message or handshake pays for it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::ledger::LedgerTotals;
use crate::relay::Relay;
use crate::telemetry::metrics::{DropReason, Rejection};

/// Time between two looks at the counters, and between two lines of a drain.
const TICK: Duration = Duration::from_secs(1);

/// Least time between two warnings of one kind.
const WARNING_GAP: Duration = Duration::from_mins(1);

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Connections that the drain aborted.
    pub aborted: u64,
    /// The ledger at the end.
    pub ledger: LedgerTotals,
}

impl Report {
    pub(crate) fn log(&self) {
        let LedgerTotals {
            received,
            delivered,
            dropped,
            dropped_by: _,
            mailbox,
            cluster_received,
            cluster_sent,
        } = self.ledger;
        let left = self.aborted;
        info!(
            left,
            received, cluster_received, delivered, dropped, mailbox, cluster_sent, "drained"
        );
    }
}

/// The URL of a listener.
pub(crate) fn url(addr: SocketAddr, is_tls: bool) -> String {
    let scheme = if is_tls { "https" } else { "http" };
    format!("{scheme}://{addr}")
}

/// Logs how many users are left, until the drain ends.
pub(crate) async fn users_left(relay: &Relay) -> Infallible {
    let mut ticks = interval(TICK);
    loop {
        ticks.tick().await;
        let users = relay.users();
        if users > 0 {
            info!(
                users,
                "draining: users are left; a second Ctrl-C ends at once"
            );
        }
    }
}

/// Warns when the node is full, drops messages or closes connections for lack of room, until the app stops.
pub(crate) async fn lack_of_room(relay: Relay, users_max: usize) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let [mut full, mut drops, mut evictions] = [(); 3].map(|()| Rising::new());
    let (mut was_full, mut times_full) = (false, 0);
    loop {
        ticks.tick().await;
        let metrics = relay.metrics();
        let users = relay.users();
        let is_full = users >= users_max;
        times_full += u64::from(is_full && !was_full);
        was_full = is_full;
        // A node can be full before a user is refused, and between two looks, too.
        let refused = metrics.rejected(Rejection::Full);
        if full.rise(refused + times_full).is_some() {
            warn!(
                users,
                users_max,
                refused,
                "the node is full: raise limits.connections, or the limit of open files if that is lower"
            );
        }
        if let Some(dropped) = drops.rise(metrics.dropped(DropReason::QueueFull)) {
            warn!(
                dropped,
                "messages are dropped, because recipients do not read fast enough: mailbox.messages, \
                 mailbox.bytes, or the eviction by mailbox.total_bytes"
            );
        }
        if let Some(evicted) = evictions.rise(metrics.http_evictions()) {
            warn!(
                evicted,
                "connections without a finished upgrade are closed to make room for newer ones: \
                 limits.handshakes"
            );
        }
    }
}

/// A counter whose rise is reported at once, and then at most once in [`WARNING_GAP`].
struct Rising {
    reported: u64,
    next: Instant,
}

impl Rising {
    fn new() -> Self {
        Self {
            reported: 0,
            next: Instant::now(),
        }
    }

    /// How much the counter has risen since the last report, if a report is due.
    fn rise(&mut self, count: u64) -> Option<u64> {
        let now = Instant::now();
        if count <= self.reported || now < self.next {
            return None;
        }
        self.next = now + WARNING_GAP;
        Some(count - std::mem::replace(&mut self.reported, count))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rise_is_reported_at_once_and_then_once_a_minute() {
        let mut rising = Rising::new();
        assert_eq!(rising.rise(0), None);
        assert_eq!(rising.rise(3), Some(3));
        for count in 4..10 {
            assert_eq!(rising.rise(count), None);
            advance(Duration::from_secs(9)).await;
        }
        advance(Duration::from_secs(6)).await;
        assert_eq!(rising.rise(10), Some(7));
        advance(WARNING_GAP).await;
        assert_eq!(rising.rise(10), None);
        assert_eq!(rising.rise(11), Some(1));
    }
}
