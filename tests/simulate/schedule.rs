//! What happens in a run, made of a seed. A schedule is a list of independent events, so that any of them can be
//! left out.

use std::fmt;

/// The shape of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) nodes: usize,
    pub(super) servers: usize,
    pub(super) persons: usize,
    /// How long things go wrong, microseconds.
    pub(super) duration: u64,
    /// The longest step of the clock, microseconds.
    pub(super) tick_max: u64,
    pub(super) is_routed: bool,
    pub(super) has_cluster: bool,
}

/// Something that happens at a time, in microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) at: u64,
    pub(super) action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// A person connects, with its ticket if it has one. An earlier connection stays open.
    Connect { person: usize, node: usize },
    /// A person connects without its ticket.
    ConnectAnew { person: usize, node: usize },
    /// A person gives up a handshake.
    GiveUp { person: usize },
    /// A person closes its connection in order.
    Leave { person: usize },
    /// The connection of a person breaks.
    Reset { person: usize },
    /// A person reads nothing for a time.
    Stall { person: usize, micros: u64 },
    /// A person writes to another.
    Send {
        from: usize,
        to: usize,
        count: usize,
        bytes: usize,
    },
    /// A person writes to an id that was never given.
    SendNowhere { from: usize },
    /// A person writes what is no message.
    Malformed { from: usize },
    /// A node drains and is started again.
    Drain { node: usize },
    /// A node ends without a word, and is started again.
    Crash { node: usize, micros: u64 },
    /// A node does not run for a time.
    Pause { node: usize, micros: u64 },
    /// The wall clock of a node is set.
    Clock { node: usize, ahead: i64 },
    /// Nothing passes between a node and NATS for a time.
    Cut { node: usize, micros: u64 },
    /// The connection of a node to NATS breaks.
    Break { node: usize },
    /// The network between a node and NATS is slow for a time.
    Slow {
        node: usize,
        delay: u64,
        micros: u64,
    },
    /// A NATS server is stopped for a time.
    Stop {
        server: usize,
        micros: u64,
        loses: Loss,
    },
    /// A bucket is deleted, by its place in the list of buckets.
    DeleteBucket { bucket: usize },
    /// Nothing passes between two NATS servers for a time.
    CutServers {
        one: usize,
        other: usize,
        micros: u64,
    },
    /// A stranger subscribes to everything.
    Listen,
    /// A stranger sends something to a node.
    Forge { node: usize },
}

/// What a NATS server has lost when it starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    Nothing,
    /// The last writes, because it lost power.
    Last,
    Everything,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.at / 1_000_000;
        write!(f, "{seconds}.{:06} {:?}", self.at % 1_000_000, self.action)
    }
}

const SECOND: u64 = 1_000_000;

impl Shape {
    pub(super) fn of(seed: u64, has_cluster: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            nodes: if has_cluster { rng.usize(2..=4) } else { 1 },
            servers: if has_cluster && rng.u8(0..3) == 0 {
                3
            } else {
                1
            },
            persons: rng.usize(2..=6),
            duration: rng.u64(4..=30) * SECOND,
            tick_max: [2_000, 5_000, 10_000, 30_000][rng.usize(..4)],
            is_routed: rng.u8(0..3) == 0,
            has_cluster,
        }
    }
}

/// The events of a seed.
pub(super) fn schedule(seed: u64, shape: &Shape) -> Vec<Event> {
    let mut maker = Maker {
        rng: fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        shape,
        // Some runs have many faults, and some have few or none.
        faults: 0,
    };
    maker.faults = [0, 1, 3, 8, 20][maker.rng.usize(..5)];
    let mut events = Vec::new();
    for person in 0..shape.persons {
        let at = maker.rng.u64(..2 * SECOND);
        let node = maker.node();
        let action = Action::Connect { person, node };
        events.push(Event { at, action });
    }
    let lively = maker.rng.u64(1..=8);
    for _ in 0..shape.duration * lively / SECOND {
        let action = maker.of_person();
        events.push(maker.at_some_time(action));
    }
    for _ in 0..maker.faults {
        let action = maker.fault();
        events.push(maker.at_some_time(action));
    }
    if shape.has_cluster && maker.faults > 0 && maker.rng.u8(..4) == 0 {
        events.extend(maker.story());
    }
    events.sort_by_key(|event| event.at);
    events
}

struct Maker<'a> {
    rng: fastrand::Rng,
    shape: &'a Shape,
    faults: usize,
}

impl Maker<'_> {
    fn at_some_time(&mut self, action: Action) -> Event {
        let at = self.rng.u64(SECOND..self.shape.duration);
        Event { at, action }
    }

    fn person(&mut self) -> usize {
        self.rng.usize(..self.shape.persons)
    }

    fn node(&mut self) -> usize {
        self.rng.usize(..self.shape.nodes)
    }

    fn server(&mut self) -> usize {
        self.rng.usize(..self.shape.servers)
    }

    /// A time that is often short and sometimes long.
    fn while_(&mut self) -> u64 {
        let most = [SECOND / 2, 3 * SECOND, 12 * SECOND, 20 * SECOND][self.rng.usize(..4)];
        self.rng.u64(1_000..most)
    }

    /// Events that meet by chance too seldom.
    fn story(&mut self) -> Vec<Event> {
        let events = if self.shape.servers == 3 && self.rng.bool() {
            self.indecision()
        } else {
            self.absence()
        };
        let is_within = |(at, _): &(u64, Action)| *at < self.shape.duration;
        let events = events.into_iter().filter(is_within);
        events.map(|(at, action)| Event { at, action }).collect()
    }

    /// A person moves away from a node that does not answer, while another on a third node writes to it.
    fn absence(&mut self) -> Vec<(u64, Action)> {
        let (person, node) = (self.person(), self.node());
        let from = (person + 1) % self.shape.persons;
        let [other, third] = [1, 2].map(|ahead| (node + ahead) % self.shape.nodes);
        let begin = self.rng.u64(SECOND / 2..2 * SECOND);
        let away = begin + self.rng.u64(SECOND..3 * SECOND);
        let micros = self.rng.u64(5 * SECOND..10 * SECOND);
        let connect = |person, node| Action::Connect { person, node };
        let moves = away + self.rng.u64(..5 * SECOND);
        let mut events = vec![
            (begin, connect(person, node)),
            (begin, connect(from, third)),
            (away, Action::Pause { node, micros }),
            (moves, connect(person, other)),
        ];
        let mut at = begin + SECOND / 2;
        while at < away + micros {
            at += self.rng.u64(..SECOND / 4);
            let (to, count, bytes) = (person, 1, 10);
            let action = Action::Send {
                from,
                to,
                count,
                bytes,
            };
            events.push((at, action));
        }
        events
    }

    /// Persons give up their handshakes while a leader of NATS has no majority and writes what it was asked to later.
    fn indecision(&mut self) -> Vec<(u64, Action)> {
        let begin = self.rng.u64(2 * SECOND..self.shape.duration);
        let micros = self.rng.u64(3 * SECOND..9 * SECOND);
        let stop = |server| Action::Stop {
            server,
            micros,
            loses: Loss::Nothing,
        };
        let mut events = vec![(begin, stop(1)), (begin, stop(2))];
        for person in 0..self.shape.persons {
            let connects = begin + self.rng.u64(..SECOND);
            let gives_up = connects + self.rng.u64(SECOND..4 * SECOND);
            let node = self.node();
            events.push((connects, Action::ConnectAnew { person, node }));
            events.push((gives_up, Action::GiveUp { person }));
        }
        events
    }

    fn of_person(&mut self) -> Action {
        let person = self.person();
        match self.rng.u8(0..40) {
            0..=4 => Action::Connect {
                person,
                node: self.node(),
            },
            5 => Action::ConnectAnew {
                person,
                node: self.node(),
            },
            6 => Action::GiveUp { person },
            7..=8 => Action::Leave { person },
            9..=10 => Action::Reset { person },
            11..=12 => Action::Stall {
                person,
                micros: self.while_(),
            },
            13 => Action::SendNowhere { from: person },
            14 => Action::Malformed { from: person },
            15..=16 => Action::Send {
                from: person,
                to: self.person(),
                count: self.rng.usize(20..400),
                bytes: self.rng.usize(0..200),
            },
            _ => Action::Send {
                from: person,
                to: self.person(),
                count: self.rng.usize(1..6),
                bytes: self.rng.usize(0..900),
            },
        }
    }

    fn fault(&mut self) -> Action {
        let (node, micros) = (self.node(), self.while_());
        let kinds = if self.shape.has_cluster { 20 } else { 6 };
        match self.rng.u8(0..kinds) {
            0 | 1 => Action::Drain { node },
            2 => Action::Crash { node, micros },
            3 | 4 => Action::Pause { node, micros },
            5 => Action::Clock {
                node,
                ahead: self.rng.i64(-100_000_000..100_000_000),
            },
            6..=8 => Action::Cut { node, micros },
            9 => Action::Break { node },
            10 | 11 => Action::Slow {
                node,
                delay: self.rng.u64(..2 * SECOND),
                micros,
            },
            12..=14 => Action::Stop {
                server: self.server(),
                micros,
                loses: [Loss::Nothing, Loss::Last, Loss::Everything][self.rng.usize(..3)],
            },
            15 => Action::DeleteBucket {
                bucket: self.rng.usize(..3),
            },
            16 | 17 => Action::CutServers {
                one: self.server(),
                other: self.server(),
                micros,
            },
            18 => Action::Listen,
            _ => Action::Forge { node },
        }
    }
}
