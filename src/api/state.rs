//! The state that the handlers of the API share: the relay that they ask, and the limits of a request.

use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::request::BodyLimits;
use crate::config::{DrainSettings, Settings};
use crate::lifecycle::Shutdown;
use crate::relay::Relay;
use crate::telemetry::Logs;

/// The most bytes of a request body that is not a message.
const SMALL_BODY_BYTES_MAX: usize = 4096;

/// The parts of an app that the API asks.
#[derive(Debug)]
pub struct ApiDependencies {
    /// The relay, its directory and its metrics.
    pub relay: Relay,
    /// The stage of the app, and where a drain is requested.
    pub shutdown: Shutdown,
    /// The filter of the logs.
    pub logs: Logs,
    /// Time zero of the timestamps of messages.
    pub epoch: Instant,
}

/// The settings of the API.
#[derive(Clone, Debug)]
pub(super) struct ApiConfig {
    /// `limits.message_bytes`: the most bytes of the body with a message.
    message_bytes: usize,
    /// `limits.header_timeout`: how long a body may take.
    body_timeout: Duration,
    /// `admin.outcome_timeout`: how long a request waits for the outcome of its message.
    pub(super) outcome_timeout: Duration,
    /// `[drain]`
    pub(super) drain: DrainSettings,
}

/// The state of the API of one relay.
#[derive(Debug)]
pub(super) struct ApiState {
    pub(super) relay: Relay,
    pub(super) shutdown: Shutdown,
    pub(super) logs: Logs,
    /// The host name and first port of this node, which tell the answers of several nodes apart.
    pub(super) node: String,
    /// Time zero of the timestamps of messages.
    pub(super) epoch: Instant,
    pub(super) started: SystemTime,
    pub(super) config: ApiConfig,
    /// One permit, for the request that is measuring rates: each one holds a number for each user.
    pub(super) rate_measurement: Semaphore,
}

impl ApiState {
    pub(super) fn new(settings: &Settings, port: u16, dependencies: ApiDependencies) -> Self {
        let ApiDependencies {
            relay,
            shutdown,
            logs,
            epoch,
        } = dependencies;
        let system = rustix::system::uname();
        let host = system.nodename().to_string_lossy();
        Self {
            relay,
            shutdown,
            logs,
            node: format!("{host}:{port}"),
            epoch,
            started: SystemTime::now(),
            config: ApiConfig::new(settings),
            rate_measurement: Semaphore::new(1),
        }
    }
}

impl ApiConfig {
    fn new(settings: &Settings) -> Self {
        Self {
            message_bytes: settings.limits.message_bytes,
            body_timeout: settings.limits.header_timeout,
            outcome_timeout: settings.admin.outcome_timeout,
            drain: settings.drain.clone(),
        }
    }

    /// The limits of a body with a message.
    pub(super) fn message_body(&self) -> BodyLimits {
        BodyLimits {
            bytes: self.message_bytes,
            setting: Some("limits.message_bytes"),
            time: self.body_timeout,
        }
    }

    /// The limits of any other body.
    pub(super) fn small_body(&self) -> BodyLimits {
        BodyLimits {
            bytes: SMALL_BODY_BYTES_MAX,
            setting: None,
            time: self.body_timeout,
        }
    }
}
