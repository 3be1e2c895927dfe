//! Everything that can be said as behaviour, in one binary: each integration test binary links
//! alone. Most tests start a relay in process, on a port of its own, and speak to it through
//! sockets: with a WebSocket library that shares no code with the server's (`harness::client`), or
//! on a socket that carries any byte (`harness::raw`).
#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test may leave a task behind")]

#[macro_use]
mod harness;
use harness::eventually;

mod api; // what operators ask and command
mod autobahn; // what the Autobahn test suite sends, and what must come of it
mod bare; // the essay's contract
mod chaos; // hundreds of clients that do as they like, and a ledger that balances
mod circles; // no two files of a crate import each other
mod cli; // the binary: verbs, exit codes, signals
mod config; // where settings come from, and what is refused
mod documents; // links, the settings document, the table of threats
mod drain; // what a stop does to users, to HTTP and to the messages under way
mod framing; // RFC 6455 sections 5 and 7, byte by byte
mod fuzz; // the fuzz targets, over their corpora and what is like them
mod handshake; // who gets a 101, and what the others are told
mod hostile; // what hostile peers try
mod http; // metrics, health, and where they are served
mod keepalive; // pings, and the peers that do not answer or do not read
mod limits; // a full node
mod mailbox; // what a recipient who does not read costs, and whom
mod metrics; // the contract with operators: families, labels, dashboards, rules
mod operations; // image, compose, dashboard, alerts, as far as they can be read
mod order; // the order within a pair, and fairness between pairs
mod otlp; // an OTLP receiver, for `traces`
mod project; // the files that contributors use
mod same_string; // any JSON string arrives as the same string
mod session; // one session by itself, on paused time
mod tidy; // the shape of the sources
mod tls; // certificates on either listener, and the operator's token
mod traces; // what an OTLP receiver gets, and what a running process is told to log
mod v1; // outcomes, errors and notices
