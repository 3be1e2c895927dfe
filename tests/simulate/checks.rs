//! What is checked at each step, at each frame, and when all is quiet.

use std::collections::BTreeMap;

use super::frames::Frame;
use super::node::Node;
use super::oracle::Broken;
use super::person::{Connection, ConnectionId};
use super::run::{BUCKETS, NodeSlot, PROBED, Probe, Run};
use crate::config::{Overflow, Settings};
use crate::protocol::close_code;
use crate::telemetry::metrics::ClusterStats;

/// What holds after every step.
pub(super) fn always(run: &mut Run) -> Result<(), Broken> {
    one_person(run)?;
    let (mut sent, mut received) = (0, 0);
    for (index, slot) in run.nodes.iter_mut().enumerate() {
        sent += slot.sent;
        received += slot.received;
        let Some(node) = &slot.node else { continue };
        let counted = node.counted();
        sent += counted.cluster_sent;
        received += counted.cluster_received;
        let of_node = |broken| format!("node {index}: {broken}");
        within_bounds(&run.settings, &node.link()).map_err(of_node)?;
        if slot.counted.as_ref() != Some(&counted) {
            is_balanced(node, &run.settings, run.shape.is_routed).map_err(of_node)?;
            slot.counted = Some(counted);
        }
    }
    if received > sent {
        return Err(format!(
            "{received} messages came from other nodes, which sent {sent}"
        ));
    }
    Ok(())
}

/// Whether the ledger of a node balances, and its mailboxes are within their bound.
fn is_balanced(node: &Node, settings: &Settings, is_routed: bool) -> Result<(), Broken> {
    let ledger = node.ledger();
    // The router's queue holds messages that are in no mailbox yet.
    if ledger.gap() != 0 && !(is_routed && ledger.gap() > 0) {
        return Err(format!("the ledger does not balance: {ledger:?}"));
    }
    let lost = node.lost_by_a_fault();
    if lost != 0 {
        return Err(format!("{lost} messages were lost by a fault"));
    }
    let (held, bound) = (node.mailbox_reserved_bytes(), settings.mailbox.total_bytes);
    if held > bound {
        return Err(format!(
            "mailbox.total_bytes is {bound}, and {held} are held"
        ));
    }
    Ok(())
}

/// Whether what waits at the link is within its bounds.
fn within_bounds(settings: &Settings, link: &ClusterStats) -> Result<(), Broken> {
    let cluster = &settings.cluster;
    let bounds = [
        ("queue_bytes", link.queue_bytes, cluster.queue_bytes as u64),
        (
            "outcomes_pending",
            link.outcomes_pending,
            cluster.outcomes_pending.into(),
        ),
        ("joins", link.joins, cluster.joins.into()),
        ("routes", link.routes, cluster.routes.into()),
    ];
    match bounds.iter().find(|(_, held, bound)| held > bound) {
        Some((name, held, bound)) => Err(format!("cluster.{name} is {bound}, and {held} are held")),
        None => Ok(()),
    }
}

/// For how long two connections may have one id while nothing is wrong.
const TWINS: u64 = 10_000_000;

/// Whether no two connections have had one id for long.
fn one_person(run: &mut Run) -> Result<(), Broken> {
    let mut holders: BTreeMap<u64, ConnectionId> = BTreeMap::new();
    let mut twins = BTreeMap::new();
    for id in &run.live {
        let connection = &run.connections[*id];
        if connection.is_given_up || connection.close_code.is_some() {
            continue;
        }
        if let Some(user) = connection.id
            && let Some(other) = holders.insert(user, *id)
        {
            let pair = (other, *id);
            twins.insert(pair, run.twins.get(&pair).copied().unwrap_or(run.now));
        }
    }
    run.twins = twins;
    for ((one, other), since) in &run.twins {
        if run.now > (*since).max(run.faulty_at) + TWINS {
            let user = run.connections[*one].id;
            return Err(format!(
                "id {user:?} is of connections {one} and {other} for long"
            ));
        }
    }
    Ok(())
}

/// A node has written a frame to the socket of a connection.
pub(super) fn on_frame(run: &mut Run, id: ConnectionId, frame: &Frame) -> Result<(), Broken> {
    match frame {
        Frame::Welcome {
            user_id,
            resumed,
            reason,
            ..
        } => {
            run.connections[id].id = Some(*user_id);
            is_welcome(run, id, *resumed, reason.as_deref())
        }
        Frame::Message { message, .. } => {
            let number = message
                .split(':')
                .next()
                .and_then(|number| number.parse().ok());
            let number = number.ok_or_else(|| format!("a message of nobody: {message}"))?;
            run.oracle.arrived(number, (id, run.connections[id].id))?;
            is_newest(run, id, number)
        }
        Frame::Outcome {
            id: message,
            status,
        } => {
            let written_at = run.connections[id].unsettled.remove(message);
            if let (Some(at), "queue_full") = (written_at, status.as_str()) {
                is_oldest(run, id, *message, at)?;
            }
            run.oracle.told(*message, id, status)
        }
        Frame::Close(code) => {
            run.connections[id].close_code = Some(*code);
            is_right(run, id, *code)
        }
        Frame::Reconnect { .. } | Frame::Error | Frame::Dropped | Frame::Ping(_) | Frame::Pong => {
            Ok(())
        }
    }
}

/// Whether no newer connection of this id was welcomed before a message was written that has come to this one.
fn is_newest(run: &Run, id: ConnectionId, message: u64) -> Result<(), Broken> {
    let (this, written_at) = (&run.connections[id], run.oracle.written_at(message));
    let sender = run.oracle.sender(message);
    // A node that is cut off gives the messages of its users to its users, and takes none of other nodes.
    let is_local = sender.is_some_and(|sender| run.connections[sender].node == this.node);
    // A former leader of NATS can say for a while that a node is dead.
    let may_differ = is_local || run.has_lost || run.shape.servers > 1;
    if may_differ && run.now <= run.faulty_at + TWINS {
        return Ok(());
    }
    let is_newer = |other: &&ConnectionId| {
        let other = &run.connections[**other];
        let was_welcome = other.is_open() && Some(other.accepted_at) < written_at;
        // Of two that begin at one time, NATS decides who is newer, and only the newer one is welcomed last.
        let is_newer = other.begun_at > this.begun_at && other.accepted_at > this.accepted_at;
        other.id == this.id && is_newer && was_welcome
    };
    match run.live.iter().find(is_newer) {
        Some(newer) => Err(format!(
            "message {message} came to connection {id}, and was written after connection {newer} was welcomed"
        )),
        None => Ok(()),
    }
}

/// Messages that are on their way from a mailbox into a socket, and cannot be dropped.
const STUCK_MAX: usize = 2;

/// Whether a message that a full mailbox has dropped was the oldest in it, if that is the policy. A mailbox of the
/// sender's node, because the queue to other nodes drops the newest.
fn is_oldest(run: &Run, id: ConnectionId, message: u64, written_at: u64) -> Result<(), Broken> {
    let mailbox = &run.settings.mailbox;
    // Otherwise, the budget of all mailboxes may be spent.
    let is_alone = mailbox.total_bytes >= 16 * mailbox.bytes as u64;
    if mailbox.overflow != Overflow::DropOldest || run.shape.is_routed || !is_alone {
        return Ok(());
    }
    let recipient = run.oracle.recipient(message);
    let is_here = |other: &Connection| {
        let is_early = (1..written_at).contains(&other.accepted_at);
        // A newer connection may be registered elsewhere, and not be welcomed yet.
        let is_only = run.open_of(other.person) == run.persons[other.person].connection;
        let is_used = is_only && other.close_code.is_none() && !other.is_given_up;
        other.node == run.connections[id].node && is_early && is_used
    };
    let live = run.live.iter().map(|id| &run.connections[*id]);
    let of_recipient: Vec<_> = live.filter(|other| other.id == recipient).collect();
    // If there are two, the user has moved.
    let here = match of_recipient.as_slice() {
        [only] if is_here(only) => *only,
        _ => return Ok(()),
    };
    // A connection that has failed puts nothing back into its mailbox.
    if recipient.is_none_or(|id| run.oracle.has_failed(id, here.accepted_at)) {
        return Ok(());
    }
    // Those of before may have gone elsewhere.
    let open = run.oracle.earlier_open(message, here.accepted_at);
    if open > STUCK_MAX {
        return Err(format!(
            "message {message} was dropped, and {open} earlier ones were not"
        ));
    }
    Ok(())
}

/// Whether a connection has the id of its ticket, or a reason why not.
fn is_welcome(run: &Run, id: ConnectionId, resumed: bool, why: Option<&str>) -> Result<(), Broken> {
    let connection = &run.connections[id];
    let is_right = match (connection.expects, why) {
        (None, why) => !resumed && why.is_none(),
        (Some(expected), None) => resumed && connection.id == Some(expected),
        // Another user has it only if NATS has forgotten that it was given, or a lone node.
        (Some(expected), Some("id_in_use")) => {
            let may_be = run.has_lost || !run.shape.has_cluster;
            !resumed && may_be && connection.id != Some(expected)
        }
        // By a clock that was set.
        (Some(_), Some("ticket_expired" | "ticket_invalid")) => !resumed,
        (Some(_), Some(_)) => false,
    };
    if is_right {
        return Ok(());
    }
    let (expected, got) = (connection.expects, connection.id);
    Err(format!(
        "connection {id} with the ticket of {expected:?} is welcomed as {got:?}: {resumed} {why:?}"
    ))
}

/// Whether a node may close a connection with this code.
fn is_right(run: &Run, id: ConnectionId, code: u16) -> Result<(), Broken> {
    let this = &run.connections[id];
    match code {
        close_code::INTERNAL => Err(format!("connection {id} was closed with 1011")),
        close_code::TAKEN_OVER => {
            // A handshake that was given up counts, because the node may have accepted it.
            let is_newer = |other: &Connection| {
                let until = other.ended_at.filter(|_| other.accepted_at == 0);
                let arrived = until.unwrap_or(other.accepted_at.max(other.begun_at));
                let is_pending = other.accepted_at == 0 && other.ended_at.is_none();
                other.person == this.person && (is_pending || arrived >= this.begun_at)
            };
            let others = run.connections.iter().enumerate();
            let newer = others.filter(|(other, _)| *other != id);
            if run.has_lost_order || newer.into_iter().any(|(_, other)| is_newer(other)) {
                Ok(())
            } else {
                Err(format!(
                    "connection {id} was closed with 4409, and there is no newer one"
                ))
            }
        }
        _ => Ok(()),
    }
}

/// Whether everybody is connected, each with an id of its own.
pub(super) fn all_are_connected(run: &Run) -> Result<(), Broken> {
    let mut holders: BTreeMap<u64, Vec<ConnectionId>> = BTreeMap::new();
    for (id, connection) in run.connections.iter().enumerate() {
        if connection.is_open() {
            let user = connection
                .id
                .ok_or_else(|| format!("connection {id} has no welcome"))?;
            holders.entry(user).or_default().push(id);
        }
    }
    if let Some((user, holders)) = holders.iter().find(|(_, holders)| holders.len() > 1) {
        return Err(format!("id {user} is of connections {holders:?}"));
    }
    for person in 0..run.persons.len() {
        if run.open_of(person).is_none() {
            return Err(format!("person {person} is not connected"));
        }
    }
    Ok(())
}

/// Probes whose two connections are open still.
fn lasting<'a>(run: &'a Run, probes: &'a [Probe]) -> impl Iterator<Item = &'a Probe> {
    let lasts = |probe: &&Probe| {
        probe
            .between
            .iter()
            .all(|id| run.connections[*id].is_open())
    };
    probes.iter().filter(lasts)
}

/// Whether each probe has an outcome.
pub(super) fn are_settled(run: &Run, probes: &[Probe]) -> Result<(), Broken> {
    match lasting(run, probes).find(|probe| run.oracle.outcome(probe.message).is_none()) {
        Some(probe) => Err(format!("probe {} has no outcome", probe.message)),
        None => Ok(()),
    }
}

/// Whether each probe was delivered.
pub(super) fn are_delivered(run: &Run, probes: &[Probe]) -> Result<(), Broken> {
    for probe in lasting(run, probes) {
        let outcome = run.oracle.outcome(probe.message);
        if outcome != Some("delivered") {
            let message = probe.message;
            return Err(format!("probe {message} has the outcome {outcome:?}"));
        }
    }
    Ok(())
}

/// What holds at the end.
pub(super) fn at_quiet(run: &Run) -> Result<(), Broken> {
    for (id, connection) in run.connections.iter().enumerate() {
        let late = connection.unsettled.iter();
        let late = late.filter(|(_, at)| **at + PROBED / 2 < run.now);
        if connection.is_open()
            && let Some((message, _)) = late.into_iter().next()
        {
            return Err(format!(
                "message {message} of connection {id} has no outcome"
            ));
        }
    }
    for (index, slot) in run.nodes.iter().enumerate() {
        let Some(node) = &slot.node else {
            return Err(format!("node {index} does not run"));
        };
        let ledger = node.ledger();
        if ledger.gap() != 0 || ledger.mailbox != 0 {
            return Err(format!(
                "the ledger of node {index} does not balance: {ledger:?}"
            ));
        }
        let open = run
            .connections
            .iter()
            .filter(|one| one.node == index && one.is_open());
        let (open, users) = (open.count(), node.users());
        if open != users {
            return Err(format!(
                "node {index} has {users} users, and {open} connections"
            ));
        }
    }
    if !run.shape.has_cluster {
        return Ok(());
    }
    entries_are_of_users(run)?;
    entries_are_of_connections(run)?;
    no_block_is_leased_again(run)
}

/// Whether no new user gets an id of those that are connected.
fn no_block_is_leased_again(run: &Run) -> Result<(), Broken> {
    let next = run.model.next_block(BUCKETS[2]);
    let next = next.ok_or_else(|| "there is no counter of blocks".to_owned())?;
    let size = u64::from(run.settings.cluster.block_size.get());
    let open = run.connections.iter().filter(|one| one.is_open());
    match open.filter_map(|one| one.id).max() {
        Some(id) if (id - 1) / size + 1 >= next => Err(format!(
            "block {next} of {size} ids is leased next, and id {id} is connected"
        )),
        _ => Ok(()),
    }
}

/// Whether each entry that names a running node is of a connection there.
fn entries_are_of_connections(run: &Run) -> Result<(), Broken> {
    // NATS may have put back an entry that its node has deleted. It ends by its age.
    if run.has_lost_order {
        return Ok(());
    }
    for (id, place) in run.model.places(BUCKETS[0]) {
        let is_place = |slot: &NodeSlot| slot.node.as_ref().and_then(Node::number) == Some(place);
        let Some(node) = run.nodes.iter().position(is_place) else {
            continue;
        };
        let is_there = |one: &Connection| one.is_open() && one.node == node && one.id == Some(id);
        if !run.connections.iter().any(is_there) {
            return Err(format!(
                "the table has id {id} on node {node}, which does not have it"
            ));
        }
    }
    Ok(())
}

/// Whether a node that has drained in order has left no entry of its users.
pub(super) fn has_left_nothing(run: &Run, place: u64) -> Result<(), Broken> {
    let places = run.model.places(BUCKETS[0]);
    match places.iter().find(|(_, node)| **node == place) {
        Some((id, _)) => Err(format!("a node has drained, and its entry of {id} is left")),
        None => Ok(()),
    }
}

/// Whether the table has an entry of each user, and no other since the last fault.
fn entries_are_of_users(run: &Run) -> Result<(), Broken> {
    let entries = run.model.places(BUCKETS[0]);
    let mut ended = BTreeMap::new();
    for connection in &run.connections {
        if let Some(id) = connection.id {
            // An open connection has not ended before anything.
            let at = connection.ended_at.unwrap_or(u64::MAX);
            let last = ended.entry(id).or_insert(0);
            *last = at.max(*last);
        }
    }
    for (id, ended_at) in ended {
        let is_there = entries.contains_key(&id);
        if ended_at == u64::MAX && !is_there {
            return Err(format!(
                "the table has no entry of {id}, which is connected"
            ));
        }
        // NATS may have put back an entry of a node that does not know of it. It ends by its age.
        let is_sure = !run.has_lost && ended_at > run.faulty_at;
        let has_left = is_sure && ended_at.saturating_add(PROBED) < run.now;
        if has_left && is_there {
            return Err(format!("the table has an entry of {id}, which has left"));
        }
    }
    Ok(())
}
