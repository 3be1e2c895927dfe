//! Schedules that have shown a fault once, in the fewest events that show it.

use super::run::run;
use super::schedule::{Action, Event, Shape};

/// Runs a schedule, with settings of this seed.
fn holds(seed: u64, shape: &Shape, events: impl IntoIterator<Item = (u64, Action)>) {
    let events = events.into_iter().map(|(at, action)| Event { at, action });
    let events: Vec<_> = events.collect();
    let report = run(seed, shape, &events, false);
    assert_eq!(report.broken, None);
}

/// Two nodes that drain while NATS cannot be reached: users are registered after the drain has told all users to
/// leave, and must not be welcomed.
#[test]
fn a_user_that_joins_behind_the_drain_goes_elsewhere() {
    let shape = Shape {
        nodes: 2,
        servers: 1,
        persons: 6,
        duration: 11_000_000,
        tick_max: 5_000,
        is_routed: true,
        has_cluster: true,
    };
    let (person, micros) = (4, 14_173_431);
    let events = [
        (1_245_765, Action::Drain { node: 1 }),
        (1_359_996, Action::Connect { person, node: 1 }),
        (1_607_093, Action::Pause { node: 1, micros }),
        (
            8_338_603,
            Action::Cut {
                node: 0,
                micros: 9_574_436,
            },
        ),
        (8_681_209, Action::Drain { node: 0 }),
        (8_797_921, Action::Connect { person: 1, node: 0 }),
    ];
    holds(12_582, &shape, events);
}
