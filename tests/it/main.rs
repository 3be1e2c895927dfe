//! The behaviour of the relay. All tests are in one binary, because each integration test binary is linked
//! separately. Most tests start a relay in process, on a port of its own, and connect through sockets: with a
//! WebSocket library that shares no code with the relay (`harness::client`), or with a socket that can send
//! invalid bytes (`harness::raw`).
#![cfg(test)]
#![allow(
    clippy::disallowed_methods,
    reason = "a test may end before the tasks that it has spawned"
)]

#[macro_use]
mod harness;
use harness::eventually;

mod api; // requests and commands of operators
mod autobahn; // the cases of the Autobahn test suite
mod bare; // connections without a subprotocol
mod chaos; // hundreds of clients that act at random, and a ledger that balances
mod circles; // no two files of a crate import each other
mod cli; // the binary: verbs, exit codes, signals
mod cli_first; // the binary: help, completions, manual, `init`
mod cli_return; // the binary: `connect` after a drain, a failure and a signal
mod cli_talk; // the binary: `connect` and the commands of operators, in pipes and on terminals
mod config; // the sources of settings, and invalid settings
mod documents; // links, the settings document, the table of threats
mod drain; // the effect of a drain on users, HTTP and messages in flight
mod fairness; // no user slows another, as a ratio within one run
mod framing; // RFC 6455 sections 5 and 7, byte by byte
mod fuzz; // the fuzz targets, with their corpora and mutations of them
mod handshake; // upgrades: accepted requests, and refusals
mod hostile; // attacks by peers
mod http; // metrics and health, on both listeners
mod keepalive; // pings, and peers that do not answer or do not read
mod limits; // a node that is full
mod listeners; // the wiring of the listeners: limits of users and of operators
mod mailbox; // recipients that do not read
mod metrics; // metric families and labels, as dashboards and rules use them
mod operations; // image, compose file, dashboard and alerts, checked as text
mod order; // the order within a pair, and fairness between pairs
mod otlp; // an OTLP receiver, for `traces`
mod project; // the files that contributors use
mod same_string; // every JSON string arrives as the same string
mod session; // one session, on paused time
mod session_bounds; // what one session holds, and how long it waits, on paused time
mod settings; // every setting has an effect in a running relay
mod tickets; // users that come back with a ticket
mod tidy; // the shape of the sources
mod tls; // certificates on both listeners, and the operator's token
mod traces; // spans at an OTLP receiver, and log filters that change at run time
mod v1; // outcomes, errors and notices
mod values; // values of metrics
