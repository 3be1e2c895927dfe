//! Everything that can be said as behaviour, in one binary: each integration test binary links alone.
#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test may leave a task behind")]

mod bench; // the yardstick: scenarios, and mistakes that it finds out
mod cli; // the binary: verbs, exit codes, signals
mod config; // where settings come from, and what is refused
mod metrics; // the contract with operators: families, labels, dashboards, rules
mod operations; // image, compose, dashboard, alerts, as far as they can be read
mod session; // one session by itself, on paused time
mod tidy; // the shape of the sources
mod tls; // certificates on either listener, and the operator's token
