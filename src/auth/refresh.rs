//! The keys in use, and the task that reads them again.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::error::AuthError;
use super::key::VerificationKey;
use super::key_files;
use super::key_set::{self, SymmetricKeys};
use super::key_source::KeySource;
use crate::config::AuthSettings;

/// Least time between two fetches of a key set because a token names an unknown key.
const REFRESH_GAP: Duration = Duration::from_secs(30);

/// The keys in use. Tokens are verified with them, and [`KeyRefresher`] replaces them.
#[derive(Debug)]
pub(super) struct KeyStore {
    keys: ArcSwap<Vec<VerificationKey>>,
    /// Not set without `auth.jwks_url`.
    requests: Option<RefreshRequests>,
}

/// Requests to fetch the key set again, from tokens that name an unknown key to the refresher.
#[derive(Debug)]
struct RefreshRequests {
    requested: Notify,
    state: Mutex<RequestState>,
    /// Changes after each fetch that answers a request.
    completed: watch::Sender<u64>,
    jwks_timeout: Duration,
}

#[derive(Debug)]
struct RequestState {
    /// Whether a request is waiting for its fetch.
    is_pending: bool,
    /// No new request before this time.
    next: Instant,
}

/// Reads the keys again: all of them every `auth.refresh_interval`, and the key set of `auth.jwks_url` when a
/// token names an unknown key. If a reading fails, the last keys stay in use.
pub struct KeyRefresher {
    store: Arc<KeyStore>,
    settings: AuthSettings,
    source: Option<KeySource>,
    from_files: Vec<VerificationKey>,
    fetched: Vec<VerificationKey>,
    /// Whether the files could be read when they were last read.
    are_files_read: bool,
    /// Whether the last fetch of a key set worked, or there is no key set to fetch.
    is_set_fetched: bool,
}

impl KeyStore {
    pub(super) fn keys(&self) -> Arc<Vec<VerificationKey>> {
        self.keys.load_full()
    }

    /// Requests a fetch of the key set and waits for it. Returns false if there was none: because no key set is
    /// fetched, because the last request is less than [`REFRESH_GAP`] ago, or because the fetch takes too long.
    pub(super) async fn refreshed(&self) -> bool {
        let Some(requests) = &self.requests else {
            return false;
        };
        // Subscribed under the lock, which `complete_request` takes, too: so the completion of an older request is
        // not seen here, and that of a pending request is not missed.
        let mut completed = {
            let mut state = requests.state.lock();
            let now = Instant::now();
            if now >= state.next {
                state.next = now + REFRESH_GAP;
                state.is_pending = true;
                requests.requested.notify_one();
            } else if !state.is_pending {
                return false;
            }
            requests.completed.subscribe()
        };
        // A fetch under way may have to end first, so that two timeouts may pass.
        let limit = requests.jwks_timeout.saturating_mul(2);
        matches!(timeout(limit, completed.changed()).await, Ok(Ok(())))
    }

    /// Waits for a request. A request that comes during a fetch is kept until the next call.
    async fn requested(&self) {
        match &self.requests {
            Some(requests) => requests.requested.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Wakes the tokens that wait for the fetch they have requested.
    fn complete_request(&self) {
        if let Some(requests) = &self.requests {
            let mut state = requests.state.lock();
            state.is_pending = false;
            requests.completed.send_modify(|count| *count += 1);
        }
    }
}

impl KeyRefresher {
    /// Reads the files and fetches the key set once. If the fetch fails, [`Self::run`] tries again.
    pub(super) async fn load(settings: &AuthSettings) -> Result<Self, AuthError> {
        let from_files = key_files::read_all(settings)?;
        let source = KeySource::new(settings)?;
        let requests = source.as_ref().map(|_| RefreshRequests {
            requested: Notify::new(),
            state: Mutex::new(RequestState {
                is_pending: false,
                next: Instant::now(),
            }),
            completed: watch::Sender::default(),
            jwks_timeout: settings.jwks_timeout,
        });
        let store = Arc::new(KeyStore {
            keys: ArcSwap::default(),
            requests,
        });
        let mut refresher = Self {
            store,
            settings: settings.clone(),
            source,
            from_files,
            fetched: Vec::new(),
            are_files_read: true,
            is_set_fetched: true,
        };
        refresher.fetch().await;
        refresher.publish();
        Ok(refresher)
    }

    pub(super) fn store(&self) -> Arc<KeyStore> {
        self.store.clone()
    }

    /// Reads the keys again and again. Never ends. Reports of each reading whether it worked, that before the
    /// start included.
    pub async fn run(mut self, on_read: impl Fn(bool)) {
        let mut due = self.due();
        on_read(self.is_up_to_date());
        loop {
            // A request does not move `due`, or tokens with made-up key ids could delay it for ever.
            let is_requested = tokio::select! {
                () = self.store.requested() => true,
                () = sleep_until(due) => false,
            };
            if !is_requested {
                self.read_files();
            }
            self.fetch().await;
            self.publish();
            on_read(self.is_up_to_date());
            if is_requested {
                // Only a fetch that began after the request answers it. One for `due` may have begun before.
                self.store.complete_request();
            } else {
                due = self.due();
            }
        }
    }

    /// When to read all keys again: earlier while no key set has been fetched.
    pub(super) fn due(&self) -> Instant {
        let interval = self.settings.refresh_interval;
        let has_no_set = self.source.is_some() && self.fetched.is_empty();
        Instant::now() + interval.min(if has_no_set { REFRESH_GAP } else { interval })
    }

    /// Whether the keys in use are those that the files and the key set had when they were last read.
    fn is_up_to_date(&self) -> bool {
        self.are_files_read && self.is_set_fetched
    }

    fn read_files(&mut self) {
        let read = key_files::read_all(&self.settings);
        self.are_files_read = read.is_ok();
        match read {
            Ok(keys) => self.from_files = keys,
            Err(error) => warn!(
                error = &error as &dyn Error,
                "cannot read the keys again: the last ones stay in use"
            ),
        }
    }

    async fn fetch(&mut self) {
        let Some(source) = &self.source else { return };
        let url = &*source.name;
        let fetched: Result<_, Box<dyn Error + Send + Sync>> = match source.fetch().await {
            Ok(body) => key_set::parse(&body, url, SymmetricKeys::Ignored).map_err(Into::into),
            Err(error) => Err(error.into()),
        };
        self.is_set_fetched = fetched.is_ok();
        match fetched {
            Ok(keys) => {
                if self.fetched.len() != keys.len() {
                    info!(url, keys = keys.len(), "key set fetched");
                }
                self.fetched = keys;
            }
            Err(error) => warn!(
                url,
                error = &*error,
                keys = self.fetched.len(),
                "cannot fetch the key set: the last one stays in use"
            ),
        }
    }

    fn publish(&self) {
        let keys = self.from_files.iter().chain(&self.fetched).cloned();
        self.store.keys.store(Arc::new(keys.collect()));
    }
}

impl fmt::Debug for KeyRefresher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRefresher")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
