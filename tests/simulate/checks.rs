//! What is checked at each step, at each frame, and when all is quiet.

use std::collections::BTreeMap;

use super::frames::Frame;
use super::oracle::Broken;
use super::person::{Connection, ConnectionId};
use super::run::{PROBED, Run};
use crate::protocol::close_code;

/// What holds after every step.
pub(super) fn always(run: &mut Run) -> Result<(), Broken> {
    one_person(run)?;
    let (mut sent, mut received) = (0, 0);
    for (index, slot) in run.nodes.iter().enumerate() {
        sent += slot.sent;
        received += slot.received;
        let Some(node) = &slot.node else { continue };
        let ledger = node.ledger();
        sent += ledger.cluster_sent;
        received += ledger.cluster_received;
        // The router's queue holds messages that are in no mailbox yet.
        if ledger.gap() != 0 && !(run.shape.is_routed && ledger.gap() > 0) {
            return Err(format!(
                "the ledger of node {index} does not balance: {ledger:?}"
            ));
        }
        let lost = node.lost_by_a_fault();
        if lost != 0 {
            return Err(format!("node {index} has lost {lost} messages by a fault"));
        }
    }
    if received > sent {
        return Err(format!(
            "{received} messages came from other nodes, which sent {sent}"
        ));
    }
    Ok(())
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
        Frame::Welcome { user_id, .. } => {
            run.connections[id].id = Some(*user_id);
            Ok(())
        }
        Frame::Message { message, .. } => {
            let number = message
                .split(':')
                .next()
                .and_then(|number| number.parse().ok());
            let number = number.ok_or_else(|| format!("a message of nobody: {message}"))?;
            run.oracle.arrived(number, (id, run.connections[id].id))
        }
        Frame::Outcome {
            id: message,
            status,
        } => {
            run.connections[id].unsettled.remove(message);
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
            if newer.into_iter().any(|(_, other)| is_newer(other)) {
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

/// What holds at the end.
pub(super) fn at_quiet(run: &Run, probes: &[u64]) -> Result<(), Broken> {
    for probe in probes {
        let outcome = run.oracle.outcome(*probe);
        if outcome != Some("delivered") {
            return Err(format!("probe {probe} has the outcome {outcome:?}"));
        }
    }
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
    Ok(())
}
