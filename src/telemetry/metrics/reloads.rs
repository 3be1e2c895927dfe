//! Files and key sets that a running relay reads again: whether the last reading worked, and until when a
//! certificate is valid. A family exists only where the settings name such files.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{IntGauge, Opts, Registry};

use super::families::register;
use super::gauges::set;

/// The outcome of reading something again. A clone sets the same metrics.
#[derive(Clone, Debug)]
pub(crate) struct ReloadMetrics {
    successful: IntGauge,
    success_time: IntGauge,
}

/// The certificate of one listener. A clone sets the same metrics.
#[derive(Clone, Debug)]
pub(crate) struct CertificateMetrics {
    reload: ReloadMetrics,
    not_after: IntGauge,
}

impl ReloadMetrics {
    /// The keys that tokens are verified with.
    pub(super) fn of_keys(registry: &Registry) -> Self {
        let gauge = |name, help| register(registry, IntGauge::with_opts(Opts::new(name, help)));
        Self {
            successful: gauge(
                "switchboard_keys_last_refresh_successful",
                "1 if the last reading of the keys for tokens worked, else 0.",
            ),
            success_time: gauge(
                "switchboard_keys_last_refresh_success_timestamp_seconds",
                "Unix time of the last reading of the keys for tokens that worked.",
            ),
        }
    }

    /// Sets the outcome of a reading that ends now.
    pub(crate) fn ended(&self, is_successful: bool) {
        self.successful.set(is_successful.into());
        if is_successful {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            set(&self.success_time, now.unwrap_or_default().as_secs());
        }
    }
}

impl CertificateMetrics {
    /// The certificate of `server.listen` or of `admin.listen`, by the section of its settings.
    pub(super) fn new(registry: &Registry, listener: &str) -> Self {
        // The listeners differ in a constant label, so that each registers its own part of a family.
        let gauge = |name: &str, help: &str| {
            let opts = Opts::new(name, help).const_label("listener", listener);
            register(registry, IntGauge::with_opts(opts))
        };
        Self {
            reload: ReloadMetrics {
                successful: gauge(
                    "switchboard_certificate_last_reload_successful",
                    "1 if the last reading of the certificate and its key worked, else 0.",
                ),
                success_time: gauge(
                    "switchboard_certificate_last_reload_success_timestamp_seconds",
                    "Unix time of the last reading of the certificate and its key that worked.",
                ),
            },
            not_after: gauge(
                "switchboard_certificate_not_after_timestamp_seconds",
                "Unix time at which the certificate in use expires.",
            ),
        }
    }

    /// Sets the outcome of a reading that ends now. The certificate in use expires at `not_after`, a time since
    /// the Unix epoch.
    pub(crate) fn read(&self, is_successful: bool, not_after: Duration) {
        self.reload.ended(is_successful);
        set(&self.not_after, not_after.as_secs());
    }
}
