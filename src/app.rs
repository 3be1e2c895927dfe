//! The only file that sees every part: `build` binds and constructs, `run` serves until the drain is
//! over.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use crate::admission::token_bucket::Rate;
use crate::admission::{AcceptLimiter, AddressLimiter, HandshakeThrottle};
use crate::api::{self, Api};
use crate::auth::{Auth, KeyRefresher};
use crate::cluster::{self, Cluster};
use crate::config::{self, Secret, Settings};
use crate::directory::{Bounds, Budget, Client, Command, Directory};
use crate::http::{self, HttpState, ListenerRole, Proxies};
use crate::ledger::LedgerTotals;
pub use crate::lifecycle::Stop;
use crate::lifecycle::{Shutdown, Stage};
use crate::net;
use crate::net::background::BackgroundPool;
use crate::net::tls::Tls;
use crate::relay::{Dependencies, Relay};
use crate::session::{SessionConfig, SessionContext};
use crate::telemetry::Logs;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traces;
use crate::ticket::Tickets;

/// HTTP connections that the admin listener has for itself, so that probes and scrapes get through
/// when the other listeners are full.
const ADMIN_CONNECTIONS_MAX: usize = 64;

/// How long tasks have to end that were told to; none of them waits for a peer.
const STRAGGLERS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long it may take to leave the cluster; more than its own timeout.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// A relay that is bound and not served yet.
#[derive(Debug)]
pub struct App {
    settings: Settings,
    listeners: Vec<TcpListener>,
    addrs: Vec<SocketAddr>,
    admin: Option<TcpListener>,
    state: Arc<HttpState>,
    router: Option<JoinHandle<()>>,
    cluster_tasks: Option<cluster::Tasks>,
    refresher: Option<KeyRefresher>,
}

/// What a run left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Connections that were cut when the drain timed out.
    pub left: u64,
    /// The ledger at the end.
    pub figures: LedgerTotals,
}

impl App {
    /// Binds the listeners and constructs the parts. Needs a tokio runtime.
    ///
    /// Where `server.listen` has the default, an address whose family the machine lacks is skipped.
    /// Nothing is traced, and logs are left alone.
    pub async fn build(settings: Settings) -> anyhow::Result<Self> {
        Self::build_with(settings, Arc::new(Traces::off()), Logs::none()).await
    }

    /// The same, with the traces and the logs of the process: it has one place that either goes to, so
    /// only main has them.
    pub async fn build_with(
        settings: Settings,
        traces: Arc<Traces>,
        logs: Logs,
    ) -> anyhow::Result<Self> {
        let (auth, refresher) = Auth::load(&settings.auth).await?;
        let tls = Tls::load(&settings.server.tls).context("no TLS (server.tls)")?;
        let admin_tls = Tls::load(&settings.admin.tls).context("no TLS (admin.tls)")?;
        let operator_token = operator_token(&settings.admin)?;
        let listeners = bind_all(&settings.server.listen)?;
        let addrs = addrs(&listeners)?;
        let admin = settings.admin.listen.map(bind).transpose()?;

        let workers = tokio::runtime::Handle::current().metrics().num_workers();
        let metrics = Arc::new(Metrics::new(workers).with_spans_of(&traces));
        let files = rlimit::increase_nofile_limit(u64::MAX)
            .context("cannot read the limit of open files")?;
        let users_max = settings.limits.connections_within(files);
        metrics.connections_limited_to(users_max);
        metrics.http_connections_limited_to(settings.limits.handshakes * listeners.len());
        metrics.mailboxes_limited_to(settings.mailbox.total_bytes);

        let shutdown = Shutdown::new();
        let sessions = Arc::new(SessionContext::new(
            session_config(&settings),
            metrics.clone(),
        ));
        let directory = Directory::new();
        let (cluster, cluster_tasks) = join_cluster(
            &settings.cluster,
            (&directory, &metrics, &traces),
            sessions.epoch(),
        )?
        .unzip();
        let dependencies = Dependencies {
            bounds: bounds(&settings.mailbox),
            users_max,
            metrics,
            traces,
            directory,
            cluster,
        };
        let (relay, router) = relay(dependencies, &settings.routing);
        let port = addrs.first().map_or(0, SocketAddr::port);
        let api = api(&settings, port, &relay, (&shutdown, &sessions, logs));
        let state = Arc::new(HttpState {
            relay,
            sessions,
            shutdown,
            header_timeout: settings.limits.header_timeout,
            header_bytes: settings.limits.header_bytes,
            allowed_origins: settings.server.allowed_origins.clone(),
            allowed_hosts: settings.server.allowed_hosts.clone(),
            proxies: proxies(&settings.server),
            proxy_protocol: settings.server.proxy_protocol,
            tickets: tickets(&settings.tickets)?,
            page: settings.ui.enabled,
            auth,
            background: background(&settings, workers)?,
            tls,
            admin_tls,
            operator_token,
            api,
            throttle: HandshakeThrottle::new(workers),
            accept_limiter: settings.limits.accept_rate.map(AcceptLimiter::new),
            address_limiter: AddressLimiter::new(&settings.limits),
        });
        info!(?addrs, admin = ?settings.admin.listen, connections_max = users_max, "listening");
        Ok(Self {
            settings,
            listeners,
            addrs,
            admin,
            state,
            router,
            cluster_tasks,
            refresher,
        })
    }

    /// `server.listen` as bound.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// `admin.listen` as bound.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin
            .as_ref()
            .and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `stop`, and then drains: at `drain.timeout` behind it at the latest this is over.
    pub async fn run(self, stop: impl Future<Output = Stop>) -> Report {
        let Self {
            settings,
            listeners,
            addrs: _,
            admin,
            state,
            router,
            cluster_tasks,
            refresher,
        } = self;
        let role = if admin.is_some() {
            ListenerRole::Users
        } else {
            ListenerRole::All
        };
        let shutdown = state.shutdown.clone();
        refresh_all(refresher, &state);
        for listener in listeners {
            shutdown.spawn(http::serve(
                listener,
                role,
                state.clone(),
                settings.limits.handshakes,
            ));
        }
        if let Some(listener) = admin {
            shutdown.spawn(http::serve(
                listener,
                ListenerRole::Admin,
                state.clone(),
                ADMIN_CONNECTIONS_MAX,
            ));
        }

        let stop = tokio::select! {
            stop = stop => stop,
            () = shutdown.drain_asked_for() => Stop::Drain,
        };
        let spread = shutdown.ask_for_drain(settings.drain.spread);
        let left = drain(
            &state,
            &config::DrainSettings {
                spread,
                ..settings.drain
            },
            stop,
        )
        .await;

        shutdown.stop();
        if timeout(STRAGGLERS_TIMEOUT, shutdown.finished())
            .await
            .is_err()
        {
            warn!("some tasks did not end in time");
        }
        let relay = state.relay.clone();
        drop(state);
        let (metrics, directory) = (relay.metrics().clone(), relay.directory().clone());
        drop(relay);
        if let Some(router) = router
            && timeout(STRAGGLERS_TIMEOUT, router).await.is_err()
        {
            warn!("the router did not end in time");
        }
        if let Some(tasks) = cluster_tasks {
            leave_cluster(tasks).await;
        }
        let mailbox = directory.stats().mailbox_messages;
        report(left, LedgerTotals::read(&metrics, mailbox))
    }
}

/// Says what a run left.
fn report(left: u64, figures: LedgerTotals) -> Report {
    let LedgerTotals {
        received,
        delivered,
        dropped,
        mailbox,
        cluster_received,
        cluster_sent,
    } = figures;
    info!(
        left,
        received, cluster_received, delivered, dropped, mailbox, cluster_sent, "drained"
    );
    Report { left, figures }
}

/// Behind all that could be for other nodes: what is under way to them is sent, and what has come from
/// them is answered.
async fn leave_cluster(tasks: cluster::Tasks) {
    if timeout(LEAVE_TIMEOUT, tasks.finish()).await.is_err() {
        warn!("the cluster was not left in time");
    }
}

/// Keeps keys and certificates up to date until the app stops.
fn refresh_all(refresher: Option<KeyRefresher>, state: &HttpState) {
    if let Some(refresher) = refresher {
        refresh(refresher.run(), &state.shutdown);
    }
    for tls in [&state.tls, &state.admin_tls].into_iter().flatten() {
        refresh(tls.clone().refresh(), &state.shutdown);
    }
}

/// Runs what keeps something up to date, until the app stops.
fn refresh(refresher: impl Future<Output = ()> + Send + 'static, shutdown: &Shutdown) {
    let stop = shutdown.clone();
    shutdown.spawn(async move {
        tokio::select! {
            () = stop.stopped() => {}
            () = refresher => {}
        }
    });
}

/// Whether the files that the settings name can be used: keys, certificates, the operators' token.
pub fn check_files(settings: &Settings) -> anyhow::Result<()> {
    Auth::check_files(&settings.auth).context("no keys (auth)")?;
    Tls::load(&settings.server.tls).context("no TLS (server.tls)")?;
    Tls::load(&settings.admin.tls).context("no TLS (admin.tls)")?;
    operator_token(&settings.admin)?;
    tickets(&settings.tickets)?;
    Cluster::check_files(&settings.cluster).context("no way to NATS (cluster)")?;
    Ok(())
}

/// Which of the secrets that may have any length can be guessed, a sentence each.
pub fn guessable(settings: &Settings) -> Option<String> {
    // What is wrong with it otherwise is for `check_files` to say.
    let token = operator_token(&settings.admin).ok()??;
    let found = token.expose().len();
    (found < TOKEN_BYTES_SOUND).then(|| {
        format!(
            "admin.token_file: {found} bytes can be guessed, and nothing slows down who tries: \
             take {TOKEN_BYTES_SOUND} or more"
        )
    })
}

/// 16 digits of base64 are 96 bits.
const TOKEN_BYTES_SOUND: usize = 16;

/// Threads for what TLS computes, as many as serve users, where it is spoken.
fn background(settings: &Settings, workers: usize) -> anyhow::Result<BackgroundPool> {
    let is_spoken = [&settings.server.tls, &settings.admin.tls]
        .iter()
        .any(|tls| tls.cert_file.is_some());
    let threads = if is_spoken { workers } else { 0 };
    BackgroundPool::new(threads, settings.limits.handshakes)
        .context("no threads for TLS handshakes")
}

fn operator_token(settings: &config::AdminSettings) -> anyhow::Result<Option<Secret>> {
    let read = |path: &PathBuf| {
        let what = format!("{} (admin.token_file)", path.display());
        let token = Secret::read(path).with_context(|| what.clone())?;
        // What else is in it no header carries, and whoever has it would never get in.
        let is_sound = token.expose().iter().all(u8::is_ascii_graphic);
        anyhow::ensure!(is_sound, "{what} is more than one line of visible ASCII");
        Ok(token)
    };
    settings.token_file.as_ref().map(read).transpose()
}

fn tickets(settings: &config::TicketSettings) -> anyhow::Result<Tickets> {
    let read = |path: &PathBuf| {
        let what = format!("{} (tickets.secret_file)", path.display());
        let secret = Secret::read(path).with_context(|| what.clone())?;
        let is_long = secret.expose().len() >= SECRET_BYTES_MIN;
        anyhow::ensure!(is_long, "{what} has less than {SECRET_BYTES_MIN} bytes");
        Ok(secret)
    };
    let secret = settings.secret_file.as_ref().map(read).transpose()?;
    let tickets = Tickets::new(secret.as_ref().map(Secret::expose), settings.ttl);
    tickets.context("the system has no randomness")
}

/// As many as the hash has (RFC 2104 section 3).
const SECRET_BYTES_MIN: usize = 32;

fn bind_all(addrs: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    let is_default = addrs == Settings::default().server.listen;
    let mut listeners = Vec::new();
    for addr in addrs {
        match net::bind(*addr) {
            Ok(listener) => listeners.push(listener),
            Err(error) if is_default && lacks_family(&error) => {
                warn!(%addr, %error, "default address skipped: the machine lacks its family");
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot listen on {addr} (server.listen)"));
            }
        }
    }
    anyhow::ensure!(
        !listeners.is_empty(),
        "cannot listen on any address of server.listen"
    );
    Ok(listeners)
}

fn addrs(listeners: &[TcpListener]) -> io::Result<Vec<SocketAddr>> {
    listeners.iter().map(TcpListener::local_addr).collect()
}

fn bind(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    net::bind(addr).with_context(|| format!("cannot listen on {addr} (admin.listen)"))
}

/// No such family in the kernel, or none of its addresses on any interface.
fn lacks_family(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
    ) || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// Linux's number on all architectures that have a target.
const EAFNOSUPPORT: i32 = 97;

/// The relay, and the router's task where there is one.
fn relay(
    dependencies: Dependencies,
    routing: &config::RoutingSettings,
) -> (Relay, Option<JoinHandle<()>>) {
    match routing.strategy {
        config::Strategy::Directory => (Relay::of(dependencies), None),
        config::Strategy::Router => {
            let (relay, task) = Relay::routed(dependencies, routing.router_queue);
            // Not on the tracker: it ends when the last handle of the relay is gone, which is after
            // all tasks that are.
            #[allow(clippy::disallowed_methods, reason = "joined at the end of `run`")]
            (relay, Some(tokio::spawn(task)))
        }
    }
}

fn proxies(settings: &config::ServerSettings) -> Proxies {
    let trusted = settings.trusted_proxies.clone();
    Proxies::new(trusted, settings.forwarded_header)
}

/// The API, where operators have a listener and a token.
fn api(
    settings: &Settings,
    port: u16,
    relay: &Relay,
    (shutdown, sessions, logs): (&Shutdown, &SessionContext, Logs),
) -> Option<Api> {
    settings.admin.token_file.as_ref()?;
    let bounds = api::Bounds {
        message_bytes: settings.limits.message_bytes,
        body_timeout: settings.limits.header_timeout,
        outcome_timeout: settings.admin.outcome_timeout,
        drain: settings.drain.clone(),
    };
    Some(Api::new(
        (relay.clone(), shutdown.clone(), logs),
        port,
        sessions.epoch(),
        bounds,
    ))
}

/// The other nodes, where there are any.
fn join_cluster(
    settings: &config::ClusterSettings,
    (directory, metrics, traces): (&Directory, &Arc<Metrics>, &Arc<Traces>),
    epoch: Instant,
) -> anyhow::Result<Option<(Cluster, cluster::Tasks)>> {
    if settings.nats_url.is_empty() {
        return Ok(None);
    }
    let (here, metrics, traces) = (directory.clone(), metrics.clone(), traces.clone());
    Ok(Some(Cluster::join(settings, here, metrics, traces, epoch)?))
}

fn bounds(settings: &config::MailboxSettings) -> Bounds {
    Bounds {
        messages: settings.messages,
        bytes: settings.bytes,
        overflow: settings.overflow,
        budget: Budget::new(settings.total_bytes),
    }
}

fn session_config(settings: &Settings) -> SessionConfig {
    let Settings {
        keepalive, limits, ..
    } = settings;
    SessionConfig {
        ping_interval: keepalive.ping_interval,
        pong_timeout: keepalive.pong_timeout,
        write_timeout: keepalive.write_timeout,
        close_timeout: keepalive.close_timeout,
        connection_age: Some(limits.connection_age).filter(|age| !age.is_zero()),
        message_bytes: limits.message_bytes,
        frame_bytes: limits.frame_bytes,
        bad_messages: limits.bad_messages,
        outcomes_pending: limits.outcomes_pending,
        message_rate: limits
            .message_rate
            .map(|rate| Rate::per_second(rate.into(), 1)),
        byte_rate: limits
            .byte_rate
            .map(|rate| Rate::per_second(rate, limits.message_bytes as u64)),
        echo: false,
    }
}

/// Sends everybody away; how many connections had to be cut.
async fn drain(state: &HttpState, settings: &config::DrainSettings, stop: Stop) -> u64 {
    let relay = &state.relay;
    let until = Instant::now() + settings.timeout;
    state.shutdown.advance(Stage::Unready);
    relay.metrics().drain_started(settings.timeout);
    info!(users = relay.users(), timeout = ?settings.timeout, "draining");
    if stop == Stop::Drain {
        sleep_until(until.min(Instant::now() + settings.delay)).await;
    }
    state.shutdown.advance(Stage::Draining);

    // A little before the end, whoever still has messages to take is cut, so that their senders can be
    // told and closed in order.
    let expiry = until - (settings.timeout / 10).min(EXPIRY_MARGIN);
    tokio::select! {
        () = async { send_away(relay, settings.spread).await; relay.emptied().await } => return 0,
        () = sleep_until(expiry) => {}
    }
    let mut left = 0;
    relay.directory().for_each(|client| {
        if client.held().0 > 0 {
            left += 1;
            client.command(Command::Abort);
        }
    });
    tokio::select! {
        () = relay.emptied() => return left,
        () = sleep_until(until) => {}
    }
    relay.directory().for_each(|client| {
        left += 1;
        client.command(Command::Abort);
    });
    left
}

/// The most of `drain.timeout` that is kept for telling senders what was given up.
const EXPIRY_MARGIN: Duration = Duration::from_millis(500);

/// Orders everybody to leave, evenly over `spread`.
async fn send_away(relay: &Relay, spread: Duration) {
    let mut clients: Vec<Arc<Client>> = Vec::with_capacity(relay.users());
    relay
        .directory()
        .for_each(|client| clients.push(client.clone()));
    fastrand::shuffle(&mut clients);
    let begin = Instant::now();
    let count = u32::try_from(clients.len()).unwrap_or(u32::MAX).max(1);
    let mut emptied = std::pin::pin!(relay.emptied());
    for (index, client) in (0..).zip(clients) {
        // The first at once and the last at the end.
        let due = begin + spread.mul_f64(f64::from(index) / f64::from(count.max(2) - 1));
        tokio::select! {
            () = sleep_until(due) => {}
            () = &mut emptied => return,
        }
        client.command(restart(spread));
    }
    // Whoever was in the middle of an upgrade when the round began.
    relay
        .directory()
        .for_each(|client| client.command(restart(spread)));
}

/// The command to come back after a while of one's own.
fn restart(spread: Duration) -> Command {
    let spread_ms = u64::try_from(spread.as_millis()).unwrap_or(u64::MAX);
    Command::Restart {
        after_ms: fastrand::u64(0..=spread_ms.max(COME_BACK_MS_MIN)),
    }
}

/// Even with no spread those who come back should not do so in one moment, milliseconds.
const COME_BACK_MS_MIN: u64 = 1000;
