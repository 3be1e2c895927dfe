//! The drain: asks all users to connect elsewhere, and aborts the connections that remain at
//! `drain.timeout`. Does not end tasks or close listeners.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::info;

use crate::config::DrainSettings;
use crate::directory::{Client, Command};
use crate::lifecycle::{Shutdown, Stage, Stop};
use crate::relay::Relay;

/// The most of `drain.timeout` that is kept for telling senders about undelivered messages.
const ABORT_MARGIN_MAX: Duration = Duration::from_millis(500);

/// Users reconnect within at least this many milliseconds even if `drain.spread` is 0, so that they do not
/// all come back at once.
const RECONNECT_MS_MIN: u64 = 1000;

/// Drains a relay. Returns the number of connections that it had to abort.
pub(crate) async fn drain(
    relay: &Relay,
    shutdown: &Shutdown,
    settings: &DrainSettings,
    stop: Stop,
) -> u64 {
    let deadline = Instant::now() + settings.timeout;
    shutdown.advance(Stage::Unready);
    relay.metrics().drain_started(settings.timeout);
    info!(users = relay.users(), timeout = ?settings.timeout, "draining");
    if stop == Stop::Drain {
        sleep_until(deadline.min(Instant::now() + settings.delay)).await;
    }
    shutdown.advance(Stage::Draining);

    // Connections with undelivered messages are aborted a little before the deadline. Their senders are
    // then still connected, learn the outcome, and close in order.
    let margin = (settings.timeout / 10).min(ABORT_MARGIN_MAX);
    tokio::select! {
        () = async { restart_all(relay, settings.spread, deadline).await; relay.emptied().await } => return 0,
        () = sleep_until(deadline - margin) => {}
    }
    let mut aborted = abort(relay, |client| client.stats().queue_messages > 0);
    tokio::select! {
        () = relay.emptied() => {}
        () = sleep_until(deadline) => aborted += abort(relay, |_| true),
    }
    aborted
}

/// Aborts the connections that are `chosen`. Returns how many, without those that have said all and only wait for
/// their peers to end the stream.
fn abort(relay: &Relay, chosen: impl Fn(&Client) -> bool) -> u64 {
    let mut aborted = 0;
    relay.directory().for_each(|client| {
        if chosen(client) {
            aborted += u64::from(!client.has_finished());
            client.command(Command::Abort);
        }
    });
    aborted
}

/// Tells all users to reconnect, in random order and evenly over `spread`.
async fn restart_all(relay: &Relay, spread: Duration, deadline: Instant) {
    let mut clients: Vec<Arc<Client>> = Vec::with_capacity(relay.users());
    relay
        .directory()
        .for_each(|client| clients.push(client.clone()));
    fastrand::shuffle(&mut clients);
    let begin = Instant::now();
    let count = u32::try_from(clients.len()).unwrap_or(u32::MAX);
    let mut emptied = pin!(relay.emptied());
    for (index, client) in (0..).zip(clients) {
        // The first client at once, the last one at the end of `spread`.
        let due = begin + spread.mul_f64(f64::from(index) / f64::from(count.max(2) - 1));
        tokio::select! {
            () = sleep_until(due) => {}
            () = &mut emptied => return,
        }
        client.command(restart(spread, deadline));
    }
    // Upgrades that were under way when `clients` was filled have joined since.
    relay
        .directory()
        .for_each(|client| client.command(restart(spread, deadline)));
}

/// The command to reconnect after a random time within `spread`. A user may wait for its outcomes until the
/// deadline of the drain, because the messages that others do not read have one only then.
fn restart(spread: Duration, deadline: Instant) -> Command {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Command::Restart {
        after_ms: fastrand::u64(0..=millis(spread).max(RECONNECT_MS_MIN)),
        within_ms: millis(deadline.saturating_duration_since(Instant::now())),
    }
}
