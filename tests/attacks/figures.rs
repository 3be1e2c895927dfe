//! Measures the effect of attacks on well-behaved users. For each attack, a pair exchanges messages before and during
//! it, and the program reports the relay's memory and counters and checks its ledger.
//!
//! Build it with `cargo build --release --bins --example attack_figures`, and run
//! `target/release/examples/attack_figures target/release/switchboard`. More arguments are names of attacks; without
//! them, all attacks run.
//!
//! The relay has a core of its own, and the rates of docker-compose.yml unless a row says otherwise. The attackers have
//! the lowest priority and share the other core with the pair and with all other threads of the machine. The latency of
//! a message ends when the relay has written it, so the time that the reader waits for its core is not part of it. All
//! programs run in a network namespace of their own, without connection tracking. Each figure is the median of three
//! rounds. The program needs root, to move threads and to set real-time priorities.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a measuring program: it panics on an error and prints its results"
)]

mod attack;
mod cores;
mod pair;
mod server;
mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs};

use nix::sched::{CloneFlags, unshare};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use switchboard::auth;
use switchboard::config::{Secret, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::rustls::pki_types::CertificateDer;

use cores::{Cores, RELAY_CORE};
use pair::{Pair, RATE, Talk};
use server::Server;

/// Rounds of a row, each of them without the attack and then with it.
const ROUNDS: usize = 3;
const BEFORE: Duration = Duration::from_secs(4);
/// Longer than the relay waits for a peer's close, so that the counters include it.
const DURING: Duration = Duration::from_secs(6);
/// The time in which an attack reaches its full rate.
const RAMP: Duration = Duration::from_secs(1);
/// The time limit for the end of an attack's connections.
const PATIENCE: Duration = Duration::from_secs(20);
/// The time limit for an attack's users to connect.
const ENTRY: Duration = Duration::from_mins(1);
/// The limit of memory growth in MiB: `mailbox.total_bytes`, and 400 more.
const GROWTH_MAX: u64 = 656;

/// A row of the table.
struct Row {
    name: &'static str,
    attack: &'static str,
    /// The number of attacking processes.
    processes: u32,
    variables: Vec<(&'static str, &'static str)>,
    files: Option<u32>,
    /// The number of the attack's users: the measurement begins when they are connected.
    users: i64,
    /// Bytes that wait for these users before the measurement begins.
    queued: i64,
}

fn row(name: &'static str, attack: &'static str) -> Row {
    Row {
        name,
        attack,
        processes: 1,
        variables: Vec::new(),
        files: None,
        users: 0,
        queued: 0,
    }
}

impl Row {
    fn with(mut self, key: &'static str, value: &'static str) -> Self {
        self.variables.push((key, value));
        self
    }

    fn with_processes(mut self, processes: u32) -> Self {
        self.processes = processes;
        self
    }

    fn with_files(mut self, files: u32) -> Self {
        self.files = Some(files);
        self
    }

    fn with_users(mut self, users: i64) -> Self {
        self.users = users;
        self
    }

    fn with_queued(mut self, bytes: i64) -> Self {
        self.queued = bytes;
        self
    }

    fn without_rates(self) -> Self {
        self.with("LIMITS__MESSAGE_RATE", "")
            .with("LIMITS__BYTE_RATE", "")
            .with("LIMITS__HANDSHAKE_RATE", "")
            .with("LIMITS__ACCEPT_RATE", "")
    }
}

fn rows() -> Vec<Row> {
    let row = |name, attack| row(name, attack);
    vec![
        row("2,000 request heads, a byte each 100 ms", "heads"),
        row("2,000 TLS hellos, a byte each 100 ms", "tls"),
        row("TLS hellos at full speed", "hellos")
            .with("LIMITS__HANDSHAKE_RATE", "500")
            .with("LIMITS__TLS_HANDSHAKE_RATE", "1000")
            .with("LIMITS__ADDRESS_TLS_HANDSHAKE_RATE", "20"),
        row("TLS hellos at full speed, rates off", "hellos").without_rates(),
        row("1,000 frames, a byte each 100 ms", "frames").with_users(1000),
        row("15,000 connections that never speak", "silent").with_processes(2),
        row("15,000 connections that never speak, rates off", "silent")
            .with_processes(2)
            .without_rates(),
        row("15,000 users who never speak", "idle")
            .with_processes(2)
            .with_users(15_000)
            .with("LIMITS__HANDSHAKE_RATE", "20000"),
        row("churn", "churn"),
        row("churn, rates off", "churn").without_rates(),
        row("ping flood", "pings"),
        row("ping flood, rates off", "pings").without_rates(),
        row("fragments of one byte", "fragments"),
        row("fragments of one byte, rates off", "fragments").without_rates(),
        row("lengths of 1 TiB", "giant"),
        row(
            "1,000 messages of 65,000 bytes that never arrive",
            "unfinished",
        )
        .with_users(1000),
        row("reserved bits", "reserved"),
        row("1,000 users write to one who never reads", "unread").with_users(1001),
        row("100 users who read a byte a second", "slow").with_users(200),
        row(
            "100 users who read a byte a second, all written to at once",
            "slow-at-once",
        )
        .with_users(200),
        // The relay gives the room for queued messages, 256 MiB, to all of them: less than 64 KiB to each.
        row("4,400 users who read nothing, 60 KB for each", "crowd")
            .with("KEEPALIVE__WRITE_TIMEOUT", "60s")
            .with("LIMITS__HANDSHAKE_RATE", "20000")
            .with_users(4500)
            .with_queued(240_000_000),
        row("TLS records of one byte", "records"),
        row("TLS records of one byte, rates off", "records").without_rates(),
        row("resets after each byte", "resets"),
        row("1,100 file descriptors, 15,000 connections", "idle")
            .with_processes(2)
            .with_files(1100),
        row(
            "1,100 file descriptors, 15,000 silent connections to all listeners",
            "silent-everywhere",
        )
        .with_processes(2)
        .with_files(1100),
        row("forged proxy headers", "proxies").with("LIMITS__ADDRESS_CONNECTIONS", "10"),
        row("guessed tokens", "tokens").with("LIMITS__ADDRESS_AUTH_FAILURES", "10"),
        row("a key server that hangs, unknown keys", "kids"),
    ]
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<_> = env::args().collect();
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    if let [_, verb, name, users, admin, folder] = &arguments[..]
        && verb == "attack"
    {
        let (users, admin) = (users.parse().unwrap(), admin.parse().unwrap());
        attack::run(name, users, admin, folder.into()).await;
    }
    let program = arguments
        .get(1)
        .expect("usage: attack_figures PROGRAM [NAME]...");
    let program = fs::canonicalize(program).expect("no such program");
    enter_network();
    let cores = Cores::divide();
    println!(
        "| attack | p50, µs | p99, µs | p99 ratio | memory, MiB: before, most, after | counters |"
    );
    println!("| - | - | - | -: | - | - |");
    let table = async {
        for row in rows() {
            if arguments.len() == 2 || arguments[2..].iter().any(|name| name == row.attack) {
                measure(&program, &row, cores.as_ref()).await;
            }
        }
    };
    // An interrupt drops `cores`, too, which restores the cores of all threads.
    tokio::select! {
        () = table => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.unwrap(),
    }
}

/// Enters a new network namespace, which has only a loopback interface. A machine with containers tracks connections:
/// some attacks fill its table, and the kernel then drops packets of the relay and of the attackers alike.
fn enter_network() {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        eprintln!("no network namespace of its own: {error}");
        return;
    }
    let mut command = Command::new("ip");
    let up = command.args(["link", "set", "lo", "up"]).status();
    assert!(
        up.expect("ip is not installed").success(),
        "ip could not start the loopback interface"
    );
}

/// The settings of a row, with the files and the key server that they name.
struct Setup {
    folder: PathBuf,
    variables: Vec<(&'static str, String)>,
    certificate: Option<CertificateDer<'static>>,
    /// Additional header fields of the pair's upgrade requests.
    fields: String,
}

impl Setup {
    async fn new(row: &Row) -> Self {
        let folder = env::temp_dir().join(format!("attacks-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let variables = row.variables.iter();
        let mut setup = Self {
            variables: variables
                .map(|(key, value)| (*key, (*value).to_owned()))
                .collect(),
            folder,
            certificate: None,
            fields: String::new(),
        };
        match row.attack {
            "tls" | "hellos" | "records" => setup.set_certificate(),
            "tokens" => setup.set_secret(),
            "kids" => {
                setup.set_secret();
                let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let addr = server.local_addr().unwrap();
                tokio::spawn(hang(server));
                setup.put("AUTH__JWKS_URL", format!("http://{addr}/keys"));
            }
            _ => {}
        }
        setup
    }

    fn put(&mut self, key: &'static str, value: String) {
        self.variables.push((key, value));
    }

    fn file(&self, name: &str, contents: &[u8]) -> String {
        let path = self.folder.join(name);
        fs::write(&path, contents).unwrap();
        path.display().to_string()
    }

    fn set_certificate(&mut self) {
        let made = generate_simple_self_signed(["localhost".to_owned()]);
        let CertifiedKey { cert, signing_key } = made.unwrap();
        let file = self.file("cert.pem", cert.pem().as_bytes());
        self.put("SERVER__TLS__CERT_FILE", file);
        let file = self.file("key.pem", signing_key.serialize_pem().as_bytes());
        self.put("SERVER__TLS__KEY_FILE", file);
        self.certificate = Some(cert.der().clone());
    }

    fn set_secret(&mut self) {
        let secret = [b's'; 32];
        let file = self.file("secret", &secret);
        self.put("AUTH__MODE", "jwt".to_owned());
        self.put("AUTH__SECRET_FILE", file);
        let settings = Settings::default().auth;
        let hour = Duration::from_hours(1);
        let token = auth::issue(&settings, &Secret::new(&secret), "pair", hour).unwrap();
        self.fields = format!("Authorization: Bearer {token}\r\n");
    }
}

/// A key server that answers the first request, and never answers later ones.
async fn hang(server: TcpListener) {
    let body = "{\"keys\":[]}";
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut held = Vec::new();
    while let Ok((mut stream, _)) = server.accept().await {
        if held.is_empty() {
            let mut request = [0; 1024];
            assert_ne!(stream.read(&mut request).await.unwrap(), 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
        held.push(stream);
    }
}

/// The attacking processes; Drop kills them.
struct Attackers(Vec<Child>);

impl Attackers {
    fn begin(row: &Row, server: &Server, folder: &Path) -> Self {
        let this = env::current_exe().unwrap();
        let begin = |_| {
            let mut command = Command::new("nice");
            command.args(["-n", "19"]).arg(&this);
            command.args(["attack", row.attack]);
            command.args([server.users.to_string(), server.admin.to_string()]);
            command.arg(folder);
            command.stdout(Stdio::null()).spawn().unwrap()
        };
        Self((0..row.processes).map(begin).collect())
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

async fn measure(program: &Path, row: &Row, cores: Option<&Cores>) {
    let setup = Setup::new(row).await;
    let core = cores.map(|_| RELAY_CORE);
    let server = Server::start(program, &setup.variables, row.files, core).await;
    let memory = server.memory();
    let mut memory_most = memory;
    let mut probe_most = Duration::ZERO;
    let mut talks = Vec::new();
    let mut counters = Vec::new();
    for _ in 0..ROUNDS {
        // Each round has a new pair, which leaves before the relay pings it: the pair does not answer pings.
        let mut pair = Pair::join(&server, setup.certificate.as_ref(), &setup.fields).await;
        pair.talk(RAMP).await;
        let before = pair.talk(BEFORE).await;
        let counters_before = server.metrics().await;
        let attackers = Attackers::begin(row, &server, &setup.folder);
        ramp(row, &server, &mut pair).await;
        let watch = async {
            loop {
                memory_most = memory_most.max(server.memory());
                probe_most = probe_most.max(server.probe(setup.certificate.is_none()).await);
                sleep(Duration::from_millis(500)).await;
            }
        };
        let during = tokio::select! {
            during = pair.talk(DURING) => during,
            () = watch => unreachable!("the loop has no end"),
        };
        talks.push((before, during));
        counters.push((counters_before, server.metrics().await));
        drop(attackers);
        let left = until_gone(&server).await;
        assert_eq!(gap(&left), 0, "the ledger does not balance");
    }
    print_row(row, &talks, (memory, memory_most, server.memory()));
    println!(
        " slowest probe {} ms, {} |",
        probe_most.as_millis(),
        counted(&counters)
    );
    assert!(
        memory_most - memory < GROWTH_MAX,
        "memory grew by more than the limit"
    );
    fs::remove_dir_all(&setup.folder).unwrap();
}

/// Continues the pair's messages until the attack has reached its full rate and all its users are connected.
async fn ramp(row: &Row, server: &Server, pair: &mut Pair) {
    pair.talk(RAMP).await;
    let begin = Instant::now();
    loop {
        let metrics = server.metrics().await;
        let users = metrics["connections"] - 2;
        if users >= row.users && metrics["mailbox_bytes"] >= row.queued {
            return;
        }
        assert!(
            begin.elapsed() < ENTRY,
            "only {users} of {} users are connected, with {} of {} bytes",
            row.users,
            metrics["mailbox_bytes"],
            row.queued
        );
        pair.talk(RAMP / 4).await;
    }
}

/// Waits until only the pair is connected. Returns the counters.
async fn until_gone(server: &Server) -> BTreeMap<String, i64> {
    let begin = Instant::now();
    loop {
        let found = server.metrics().await;
        let alone = found["connections"] == 2 && found["mailbox_messages"] == 0;
        if alone || begin.elapsed() > PATIENCE {
            assert!(alone, "{} connections are left", found["connections"]);
            return found;
        }
        timeout(PATIENCE, sleep(Duration::from_millis(100)))
            .await
            .unwrap();
    }
}

fn gap(found: &BTreeMap<String, i64>) -> i64 {
    let sum = |begin: &str| -> i64 {
        let series = found.iter().filter(|(name, _)| name.starts_with(begin));
        series.map(|(_, value)| value).sum()
    };
    let settled = sum("messages_delivered_total") + sum("messages_dropped_total");
    sum("messages_received_total") - settled - sum("mailbox_messages")
}

/// Series with integer values.
type Counters = BTreeMap<String, i64>;

/// Describes the refusals and closes of all rounds, and the connections of the last round.
fn counted(counters: &[(Counters, Counters)]) -> String {
    let shown = [
        "connections_closed_total{",
        "handshakes_rejected_total{",
        "messages_dropped_total{",
        "http_evicted_total",
        "accept_errors_total",
        "accepts_deferred_total",
    ];
    let mut counts = BTreeMap::new();
    for (before, during) in counters {
        for (name, value) in during {
            // The values are from before the attackers are killed, so their last connections are not included.
            let count = value - before.get(name).copied().unwrap_or_default();
            if shown.iter().any(|it| name.starts_with(it)) && count > 0 {
                *counts.entry(name).or_default() += count;
            }
        }
    }
    let mut all = Vec::new();
    if let Some((_, during)) = counters.last() {
        let pending = during.get("http_connections").copied().unwrap_or_default();
        all.push(format!(
            "{} users, {pending} pending connections",
            during["connections"] - 2
        ));
    }
    for (name, count) in counts {
        let label = name.replace("_total", "").replace('"', "");
        let count: i64 = count;
        all.push(format!("`{label}` {count}"));
    }
    all.join(", ")
}

fn print_row(row: &Row, talks: &[(Talk, Talk)], memory: (u64, u64, u64)) {
    let middle = |of: &dyn Fn(&(Talk, Talk)) -> f64| {
        let mut all: Vec<_> = talks.iter().map(of).collect();
        all.sort_unstable_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (before, during) = (middle(&|it| it.0.p99), middle(&|it| it.1.p99));
    print!(
        "| {} | {:.0} → {:.0} | {before:.0} → {during:.0} | {:.1} | {} → {} → {} |",
        row.name,
        middle(&|it| it.0.p50),
        middle(&|it| it.1.p50),
        during / before,
        memory.0,
        memory.1,
        memory.2
    );
    let slowest = middle(&|it| it.1.rate);
    if slowest < f64::from(RATE) * 0.99 {
        print!(" {slowest:.0} messages per second,");
    }
}
