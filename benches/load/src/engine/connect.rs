//! Opens connections, and notices how they end.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use mio::event::Event;
use mio::{Interest, Token};

use super::state::Engine;
use crate::connection::{Connection, Role, State};
use crate::error::BenchError;

/// How long an upgrade may take while nothing else happens.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

impl Engine {
    /// Begins to connect; returns the slot.
    pub(super) fn begin(&mut self, role: Role) -> io::Result<usize> {
        let now = self.now();
        let connection = Connection::begin(self.target, role, self.begun, now)?;
        self.begun += 1;
        let slot = self.free.pop().unwrap_or(self.connections.len());
        if slot == self.connections.len() {
            self.connections.push(connection);
        } else {
            self.connections[slot] = connection;
        }
        self.register(slot)?;
        Ok(slot)
    }

    fn register(&mut self, slot: usize) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        match &mut self.connections[slot].stream {
            Some(stream) => self.poll.registry().register(stream, Token(slot), both),
            None => Ok(()),
        }
    }

    /// Opens connections one after the other, each with its upgrade, so that the server gives ids in this
    /// order.
    pub(crate) fn open(&mut self, role: Role, count: usize) -> Result<Vec<usize>, BenchError> {
        let mut slots = Vec::with_capacity(count);
        for _ in 0..count {
            let slot = self.begin(role).map_err(|error| self.unconnected(error))?;
            let done = |engine: &mut Self| {
                matches!(engine.connections[slot].state, State::Open | State::Gone)
            };
            if !self.run_until(UPGRADE_TIMEOUT, done) || !self.is_open(slot) {
                let example = self.faults.examples.first().cloned();
                return Err(BenchError::Upgrade {
                    address: self.target,
                    reason: example.unwrap_or_else(|| format!("none in {UPGRADE_TIMEOUT:?}")),
                });
            }
            slots.push(slot);
        }
        Ok(slots)
    }

    /// Stops reading from a connection.
    pub(crate) fn pause_reading(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        connection.is_paused = true;
        if let Some(stream) = &mut connection.stream {
            // Fails only for a socket that is not registered, which has no events to stop.
            drop(self.poll.registry().deregister(stream));
        }
    }

    /// Reads from a connection again.
    pub(crate) fn resume_reading(&mut self, slot: usize) -> Result<(), BenchError> {
        self.connections[slot].is_paused = false;
        self.register(slot).map_err(|error| self.unconnected(error))
    }

    pub(super) fn unconnected(&self, source: io::Error) -> BenchError {
        let address = self.target;
        BenchError::Connect { address, source }
    }

    pub(super) fn on_event(&mut self, event: &Event, scratch: &mut [u8]) {
        let Token(slot) = event.token();
        let connection = &mut self.connections[slot];
        if connection.state == State::Gone || connection.is_paused {
            return;
        }
        if event.is_writable() {
            if connection.state == State::Connecting {
                match connection.connected() {
                    Ok(true) => {
                        connection.state = State::Upgrading;
                        connection.out().extend_from_slice(&self.handshake.request);
                    }
                    Ok(false) => return,
                    Err(error) => return self.ended(slot, &error),
                }
            }
            connection.writable();
            if connection.backlog() > 0 {
                self.flush(slot);
            }
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.receive(slot, event.is_read_closed(), scratch);
        }
    }

    /// The server has ended a connection, or the connection broke.
    pub(super) fn ended(&mut self, slot: usize, why: &dyn Display) {
        let now = self.now();
        let connection = &mut self.connections[slot];
        let (role, state) = (connection.role, connection.state);
        connection.close();
        let is_upgraded = matches!(state, State::Open | State::Leaving);
        match role {
            Role::ShortLived => {
                if let Some(churn) = &mut self.churn {
                    churn.ended(state);
                }
                self.freed.push(slot);
                if state != State::Leaving {
                    self.faults
                        .ended(|| format!("a short-lived peer ({state:?}): {why}"));
                }
            }
            Role::IdlePeer if !is_upgraded => {
                self.freed.push(slot);
                if let Some(batch) = &mut self.batch {
                    batch.failed(why.to_string(), now);
                }
            }
            Role::SlowReader if is_upgraded => {}
            _ if !is_upgraded => self.faults.refused(|| format!("an upgrade: {why}")),
            _ => self.faults.ended(|| format!("connection {slot}: {why}")),
        }
    }

    /// Ends connections with a reset, as a network that fails does.
    pub(crate) fn abort(&mut self, slots: &[usize]) {
        for &slot in slots {
            self.connections[slot].abort();
            self.freed.push(slot);
        }
    }
}
