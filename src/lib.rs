//! Switchboard: a WebSocket relay between two people that says what became of every message.

pub mod cli;
pub mod config;
pub mod identity;
pub mod telemetry;
