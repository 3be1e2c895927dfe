//! Wires all parts into one relay: [`App::build`] binds and constructs, [`App::run`] serves and drains.
//! The only file that knows every part.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::admission::{AcceptLimiter, AddressLimiter, HandshakeThrottle};
use crate::api::{Api, ApiDependencies};
use crate::auth::{Auth, KeyRefresher};
use crate::cluster::{self, Cluster};
use crate::config::{self, Settings};
use crate::directory::{Budget, Directory, MailboxBounds};
use crate::drain;
use crate::http::{self, HttpState, ListenerRole, Origins, Scrapes, TrustedProxies};
use crate::id_file::{IdFile, IdFileError};
use crate::ledger::LedgerTotals;
use crate::lifecycle::Shutdown;
pub use crate::lifecycle::Stop;
use crate::net;
use crate::net::background::BackgroundPool;
use crate::net::tls::Tls;
use crate::notices;
pub use crate::notices::Report;
use crate::relay::{Dependencies, Relay};
use crate::session::{SessionConfig, SessionContext};
use crate::telemetry::Logs;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traces;
use crate::ticket::Tickets;

/// How long the end waits for tasks after it has told them to end. None of them waits for a peer.
const TASK_END_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the end waits until the node has left the cluster: more than the timeout of the cluster's own. Behind
/// `drain.timeout`, Kubernetes waits for 20 s in all (k8s/base/deployment.yaml).
const LEAVE_TIMEOUT: Duration = Duration::from_secs(12);

/// A relay that has bound its listeners and does not serve them yet.
#[derive(Debug)]
pub struct App {
    settings: Settings,
    listeners: Vec<TcpListener>,
    addrs: Vec<SocketAddr>,
    admin: Option<TcpListener>,
    connection_limits: config::ConnectionLimits,
    state: Arc<HttpState>,
    relay_tasks: RelayTasks,
    refresher: Option<KeyRefresher>,
}

/// The tasks that end after the last handle of the relay is gone.
#[derive(Debug)]
struct RelayTasks {
    router: Option<JoinHandle<()>>,
    cluster: Option<cluster::Tasks>,
}

impl App {
    /// Binds the listeners and constructs the parts. Needs a tokio runtime.
    ///
    /// If `server.listen` has its default value, an address whose family the machine lacks is skipped.
    /// This app traces nothing and cannot change the log filter.
    pub async fn build(settings: Settings) -> anyhow::Result<Self> {
        Self::build_with(settings, Arc::new(Traces::off()), Logs::none()).await
    }

    /// Like [`App::build`], with the traces and logs of the process. Only main has them, because a process
    /// has one place for each.
    pub async fn build_with(
        settings: Settings,
        traces: Arc<Traces>,
        logs: Logs,
    ) -> anyhow::Result<Self> {
        let (auth, refresher) = Auth::load(&settings.auth).await?;
        let tls = Tls::load(&settings.server.tls).context(SERVER_TLS)?;
        let admin_tls = Tls::load(&settings.admin.tls).context(ADMIN_TLS)?;
        let operator_token = settings.admin.operator_token()?;
        let metrics_token = settings.admin.metrics_token()?;
        let listeners = net::bind_server(&settings)?;
        let addrs = listeners.iter().map(TcpListener::local_addr);
        let addrs = addrs.collect::<io::Result<Vec<_>>>()?;
        let admin = net::bind_admin(&settings)?;

        let workers = tokio::runtime::Handle::current().metrics().num_workers();
        let metrics = Arc::new(Metrics::new(workers).with_spans_of(&traces));
        let connection_limits = connection_limits(&settings)?;
        metrics.http_connections_limited_to(connection_limits.pending * listeners.len());
        let users_max = connection_limits.users;
        let shutdown = Shutdown::new();
        let sessions = Arc::new(SessionContext::new(
            SessionConfig::new(&settings),
            metrics.clone(),
        ));
        let (relay, relay_tasks) =
            build_relay(&settings, users_max, metrics, traces, sessions.epoch())?;
        let api = settings.admin.token_file.as_ref().map(|_| {
            let dependencies = ApiDependencies {
                relay: relay.clone(),
                shutdown: shutdown.clone(),
                logs,
                epoch: sessions.epoch(),
            };
            Api::new(&settings, addrs[0].port(), dependencies)
        });
        let server = &settings.server;
        let state = Arc::new(HttpState {
            relay,
            sessions,
            shutdown,
            header_timeout: settings.limits.header_timeout,
            header_bytes: settings.limits.header_bytes,
            origins: Origins::new(server),
            proxies: TrustedProxies::new(server.trusted_proxies.clone(), server.forwarded_header),
            proxy_protocol: server.proxy_protocol,
            tickets: tickets(&settings.tickets)?,
            page: settings.ui.enabled,
            auth,
            background: background(&settings, workers)?,
            tls,
            admin_tls,
            operator_token,
            metrics_token,
            ready_when_full: settings.admin.ready_when_full,
            api,
            throttle: HandshakeThrottle::new(workers),
            accept_limiter: settings.limits.accept_rate.map(AcceptLimiter::new),
            address_limiter: AddressLimiter::new(&settings.limits),
            scrapes: Scrapes::default(),
        });
        let app = Self {
            settings,
            listeners,
            addrs,
            admin,
            connection_limits,
            state,
            relay_tasks,
            refresher,
        };
        app.log_start();
        Ok(app)
    }

    fn log_start(&self) {
        let state = &self.state;
        let urls = self.addrs.iter();
        let urls: Vec<_> = urls
            .map(|addr| notices::url(*addr, state.tls.is_some()))
            .collect();
        let admin = self.admin_addr();
        let admin = admin.map(|addr| notices::url(addr, state.admin_tls.is_some()));
        let connections_max = self.connection_limits.users;
        info!(?urls, ?admin, connections_max, "listening");
    }

    /// The addresses of `server.listen`, with the ports that the kernel chose for port 0.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// The address of `admin.listen`, with the port that the kernel chose for port 0.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref()?.local_addr().ok()
    }

    /// Serves until `stop` completes or the API requests a drain, then drains. Returns at the latest
    /// `drain.timeout` later, plus the time that tasks need to end.
    pub async fn run(self, stop: impl Future<Output = Stop>) -> Report {
        let Self {
            settings,
            listeners,
            addrs: _,
            admin,
            connection_limits,
            state,
            relay_tasks,
            refresher,
        } = self;
        let shutdown = state.shutdown.clone();
        refresh_all(refresher, &state);
        let watch = notices::lack_of_room(state.relay.clone(), connection_limits.users);
        shutdown.spawn_until_stopped(watch);
        let serve = |listener, role, connections_max| {
            shutdown.spawn(http::serve(listener, role, state.clone(), connections_max));
        };
        let role = if admin.is_some() {
            ListenerRole::Users
        } else {
            ListenerRole::All
        };
        for listener in listeners {
            serve(listener, role, connection_limits.pending);
        }
        if let Some(listener) = admin {
            serve(listener, ListenerRole::Admin, connection_limits.admin);
        }

        let stop = tokio::select! {
            stop = stop => stop,
            () = shutdown.drain_requested() => Stop::Drain,
        };
        let drain_settings = config::DrainSettings {
            spread: shutdown.request_drain(settings.drain.spread),
            ..settings.drain
        };
        let aborted = tokio::select! {
            aborted = drain::drain(&state.relay, &shutdown, &drain_settings, stop) => aborted,
            // Only a person at a terminal waits for the end.
            never = notices::users_left(&state.relay), if stop == Stop::DrainNow => match never {},
        };

        shutdown.stop();
        if timeout(TASK_END_TIMEOUT, shutdown.finished())
            .await
            .is_err()
        {
            warn!("some tasks did not end within {TASK_END_TIMEOUT:?}");
        }
        let metrics = state.relay.metrics().clone();
        let directory = state.relay.directory().clone();
        // The last handles of the relay, because all tasks that had one are gone: the router's task ends
        // when its channel closes.
        drop(state);
        relay_tasks.finish().await;
        let ledger = LedgerTotals::read(&metrics, || directory.stats().mailbox_messages);
        let report = Report { aborted, ledger };
        report.log();
        report
    }
}

impl RelayTasks {
    /// Waits for the router, then for the cluster, which still publishes messages for other nodes and
    /// answers messages from them.
    async fn finish(self) {
        if let Some(router) = self.router
            && timeout(TASK_END_TIMEOUT, router).await.is_err()
        {
            warn!("the router did not end within {TASK_END_TIMEOUT:?}");
        }
        if let Some(cluster) = self.cluster
            && timeout(LEAVE_TIMEOUT, cluster.finish()).await.is_err()
        {
            warn!("the node did not leave the cluster within {LEAVE_TIMEOUT:?}");
        }
    }
}

/// Whether the files that the settings name can be used: keys, certificates, secrets.
pub fn check_files(settings: &Settings) -> anyhow::Result<()> {
    Auth::check_files(&settings.auth).context("unusable keys (auth)")?;
    Tls::load(&settings.server.tls).context(SERVER_TLS)?;
    Tls::load(&settings.admin.tls).context(ADMIN_TLS)?;
    settings.admin.operator_token()?;
    settings.admin.metrics_token()?;
    tickets(&settings.tickets)?;
    Cluster::check_files(&settings.cluster).context("unusable credentials for NATS (cluster)")?;
    Ok(())
}

const SERVER_TLS: &str = "unusable certificate or key (server.tls)";
const ADMIN_TLS: &str = "unusable certificate or key (admin.tls)";

/// How many connections there may be, by the settings and by the files that this process may open.
fn connection_limits(settings: &Settings) -> anyhow::Result<config::ConnectionLimits> {
    let descriptors =
        rlimit::increase_nofile_limit(u64::MAX).context("cannot read the limit of open files")?;
    Ok(settings.connection_limits(descriptors))
}

/// The relay and its tasks, by the settings of the cluster, routing and mailboxes.
fn build_relay(
    settings: &Settings,
    users_max: usize,
    metrics: Arc<Metrics>,
    traces: Arc<Traces>,
    epoch: Instant,
) -> anyhow::Result<(Relay, RelayTasks)> {
    metrics.connections_limited_to(users_max);
    metrics.mailboxes_limited_to(settings.mailbox.total_bytes);
    metrics.outcomes_limited_to(settings.limits.outcomes_bytes);
    let directory = Directory::new();
    let (cluster, cluster_tasks) = if settings.cluster.nats_url.is_empty() {
        (None, None)
    } else {
        let (directory, metrics, traces) = (directory.clone(), metrics.clone(), traces.clone());
        let joined = Cluster::join(&settings.cluster, directory, metrics, traces, epoch)?;
        Some(joined).unzip()
    };
    let id_file = id_file(settings)?.map(Arc::new);
    if let Some(id_file) = &id_file {
        id_file.start();
    }
    let dependencies = Dependencies {
        bounds: mailbox_bounds(&settings.mailbox),
        users_max,
        metrics,
        traces,
        directory,
        cluster,
        id_file,
    };
    let (relay, router) = match settings.routing.strategy {
        config::Strategy::Directory => (Relay::of(dependencies), None),
        config::Strategy::Router => {
            let (relay, task) = Relay::routed(dependencies, settings.routing.router_queue);
            // Not on the tracker: it ends after all tasks on the tracker, with the relay's last handle.
            #[allow(clippy::disallowed_methods, reason = "joined at the end of `run`")]
            (relay, Some(tokio::spawn(task)))
        }
    };
    let tasks = RelayTasks {
        router,
        cluster: cluster_tasks,
    };
    Ok((relay, tasks))
}

/// Refreshes keys and certificates, and writes the file of ids, until the app stops.
fn refresh_all(refresher: Option<KeyRefresher>, state: &HttpState) {
    let shutdown = &state.shutdown;
    let metrics = state.relay.metrics();
    if let Some(refresher) = refresher {
        let keys = metrics.with_keys();
        shutdown.spawn_until_stopped(refresher.run(move |is_successful| keys.ended(is_successful)));
    }
    if let Some(id_file) = state.relay.id_file() {
        shutdown.spawn_until_stopped(id_file.clone().run());
    }
    for (tls, listener) in [(&state.tls, "server"), (&state.admin_tls, "admin")] {
        if let Some(tls) = tls {
            let certificate = metrics.with_certificate(listener);
            let on_read =
                move |is_successful, not_after| certificate.read(is_successful, not_after);
            shutdown.spawn_until_stopped(tls.clone().refresh(on_read));
        }
    }
}

/// Threads for TLS handshakes, as many as the workers; none without TLS.
fn background(settings: &Settings, workers: usize) -> anyhow::Result<BackgroundPool> {
    let has_tls = [&settings.server.tls, &settings.admin.tls]
        .iter()
        .any(|tls| tls.cert_file.is_some());
    let threads = if has_tls { workers } else { 0 };
    BackgroundPool::new(threads, settings.limits.handshakes)
        .context("cannot start threads for TLS handshakes")
}

/// The file beside `tickets.secret_file`, where no cluster leases ids.
pub fn id_file(settings: &Settings) -> Result<Option<IdFile>, IdFileError> {
    let secret_file = settings.tickets.secret_file.as_deref();
    let secret_file = secret_file.filter(|_| settings.cluster.nats_url.is_empty());
    secret_file.map(IdFile::open).transpose()
}

fn tickets(settings: &config::TicketSettings) -> anyhow::Result<Tickets> {
    let secret = settings.secret()?;
    Tickets::new(secret.as_ref().map(config::Secret::expose), settings.ttl)
        .context("the system has no randomness")
}

pub(crate) fn mailbox_bounds(settings: &config::MailboxSettings) -> MailboxBounds {
    MailboxBounds {
        messages: settings.messages,
        bytes: settings.bytes,
        max_age: settings.max_age,
        overflow: settings.overflow,
        budget: Budget::new(settings.total_bytes),
    }
}
