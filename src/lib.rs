//! Switchboard: a WebSocket relay between two people that says what became of every message.

pub mod app;
pub mod cli;
pub mod config;
pub mod directory;
pub mod http;
pub mod identity;
pub mod ledger;
pub mod lifecycle;
pub mod protocol;
pub mod relay;
mod router;
pub mod session;
pub mod telemetry;
