//! Measures the cost of a cluster: latency and CPU per message on a node that runs alone, on a node of a cluster with a
//! local recipient, and between two nodes; messages per second between two nodes, compared with two async-nats clients
//! on the same server; joins a second; memory of many users; the time until users who lost their node are all back.
//!
//! Build it with `cargo build --release --bins --example cluster_figures`, and run
//! `target/release/examples/cluster_figures target/release/switchboard`, or with `cost`, `speed`, `size` or `return`
//! behind it for one part.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a measuring program: it panics on an error and prints its results"
)]

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::{env, fs};

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, sleep, sleep_until};

/// For latency: the number of pairs, and the messages per second of each pair.
const PAIRS: usize = 40;
const RATE: u64 = 100;
const MEASURED: Duration = Duration::from_secs(3);
/// Rounds of each setup, in turns; each figure is the median.
const ROUNDS: usize = 9;
/// For throughput: the number of senders, and the messages in flight of each sender.
const SENDERS: usize = 32;
const IN_FLIGHT: u64 = 128;
const USERS: usize = 15_000;
/// How many of them join at a time.
const JOINERS: usize = 50;
/// Users who come back at once, and the limits of their random wait before an attempt, as in src/ui/switchboard.js.
const RETURNING: usize = 10_000;
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The length of a message's text, in bytes.
const TEXT: usize = 64;

#[tokio::main]
async fn main() {
    let program = env::args()
        .nth(1)
        .expect("usage: cluster_figures PROGRAM [cost|speed|size|return]");
    let program = fs::canonicalize(program).expect("no such program");
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let nats = Nats::start();
    let part = env::args().nth(2);
    let is_wanted = |name| part.as_deref().is_none_or(|part| part == name);
    if is_wanted("cost") {
        cost(&program, &nats).await;
    }
    if is_wanted("speed") {
        speed(&program, &nats).await;
    }
    if is_wanted("size") {
        size(&program, &nats).await;
    }
    if is_wanted("return") {
        come_back(&program, &nats).await;
    }
}

/// Latency and CPU per message. The setups take turns, so that other load on the machine affects all of them alike.
async fn cost(program: &PathBuf, nats: &Nats) {
    let alone = Node::start(program, None).await;
    let first = Node::start(program, Some(nats)).await;
    let second = Node::start(program, Some(nats)).await;
    let setups: [(&str, &Node, &Node, Vec<u32>); 3] = [
        ("a node that runs alone", &alone, &alone, vec![alone.pid()]),
        (
            "in a cluster, recipient local",
            &first,
            &first,
            vec![first.pid()],
        ),
        (
            "across two nodes",
            &first,
            &second,
            vec![first.pid(), second.pid()],
        ),
    ];
    let mut found = [(); 3].map(|()| Vec::new());
    for round in 0..ROUNDS {
        for turn in 0..setups.len() {
            // Each setup follows each other setup.
            let which = (turn + round) % setups.len();
            let (_, from, to, pids) = &setups[which];
            found[which].push(talk(from, to, pids, nats).await);
        }
    }
    println!(
        "{PAIRS} pairs at {RATE} messages/s each, {TEXT} bytes, median of {ROUNDS} rounds of {MEASURED:?}\n"
    );
    println!("| | p50 | p99 | CPU of the nodes per message | CPU of NATS |\n| - | - | - | - | - |");
    let mut cpus = Vec::new();
    for ((name, ..), found) in setups.iter().zip(&found) {
        let figure = |of: fn(&Talk) -> f64| median(found.iter().map(of).collect());
        let (p50, p99) = (figure(|talk| talk.p50), figure(|talk| talk.p99));
        let (cpu, nats) = (figure(|talk| talk.cpu), figure(|talk| talk.nats));
        println!("| {name} | {p50:.0} µs | {p99:.0} µs | {cpu:.1} µs | {nats:.1} µs |");
        cpus.push((cpu, p50));
    }
    let share = |of: fn(&(f64, f64)) -> f64| of(&cpus[1]) / of(&cpus[0]);
    println!(
        "\nin a cluster with a local recipient, relative to a node that runs alone: CPU {:.3}, p50 {:.3}\n",
        share(|found| found.0),
        share(|found| found.1)
    );
}

struct Talk {
    p50: f64,
    p99: f64,
    cpu: f64,
    nats: f64,
}

/// Runs the pairs at a fixed rate.
async fn talk(from: &Node, to: &Node, pids: &[u32], nats: &Nats) -> Talk {
    let epoch = Instant::now();
    let mut readers = Vec::new();
    let mut writers = Vec::new();
    for number in 0..PAIRS {
        let (id, reader, writer) = connect(to.addr).await;
        let (_, idle, sender) = connect(from.addr).await;
        readers.push(tokio::spawn(listen(reader, writer, epoch)));
        let begin = epoch + Duration::from_millis(500) + Duration::from_micros(number as u64 * 250);
        writers.push(tokio::spawn(send_at_rate(id, sender, idle, epoch, begin)));
    }
    sleep_until(epoch + Duration::from_secs(1)).await;
    let cpu = || pids.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>();
    let before = (cpu(), cpu_seconds(nats.pid()));
    sleep(MEASURED).await;
    let after = (cpu(), cpu_seconds(nats.pid()));
    for writer in writers {
        writer.await.unwrap();
    }
    let mut latencies = Vec::new();
    for reader in readers {
        latencies.extend(reader.await.unwrap());
    }
    latencies.sort_unstable();
    let messages = PAIRS as f64 * RATE as f64 * MEASURED.as_secs_f64();
    let at = |share: f64| latencies[(latencies.len() as f64 * share) as usize] as f64 / 1000.0;
    Talk {
        p50: at(0.5),
        p99: at(0.99),
        cpu: (after.0 - before.0) * 1e6 / messages,
        nats: (after.1 - before.1) * 1e6 / messages,
    }
}

async fn send_at_rate(
    to: u64,
    mut writer: OwnedWriteHalf,
    idle: OwnedReadHalf,
    epoch: Instant,
    begin: Instant,
) {
    let count = RATE * (MEASURED.as_secs() + 1);
    for number in 0..count {
        let due = begin + Duration::from_nanos(number * 1_000_000_000 / RATE);
        sleep_until(due).await;
        // The latency counts from here and not from `due`, because the timer is up to 1 ms late.
        let stamp = epoch.elapsed().as_nanos();
        let frame = frame(to, &format!("{stamp:0TEXT$}"));
        writer.write_all(&frame).await.unwrap();
    }
    drop(idle);
}

/// Receives messages. Returns their latencies in nanoseconds.
async fn listen(mut reader: OwnedReadHalf, writer: OwnedWriteHalf, epoch: Instant) -> Vec<u64> {
    let count = RATE * (MEASURED.as_secs() + 1);
    let mut latencies = Vec::new();
    let mut buffer = Vec::new();
    while (latencies.len() as u64) < count {
        assert_ne!(reader.read_buf(&mut buffer).await.unwrap(), 0);
        let now = epoch.elapsed().as_nanos() as u64;
        each_frame(&mut buffer, |payload| {
            let digits = payload.rsplit('"').nth(1).unwrap();
            latencies.push(now - digits.parse::<u64>().unwrap());
        });
    }
    drop(writer);
    latencies
}

/// Messages per second on one node, between two nodes, and between two NATS clients.
async fn speed(program: &PathBuf, nats: &Nats) {
    let first = Node::start(program, Some(nats)).await;
    let second = Node::start(program, Some(nats)).await;
    let mut local = Vec::new();
    let mut across = Vec::new();
    let mut bare = Vec::new();
    for _ in 0..3 {
        local.push(flood(&first, &first).await);
        across.push(flood(&first, &second).await);
        bare.push(bare_flood(nats).await);
    }
    let [local, across, bare] = [local, across, bare].map(median);
    println!(
        "{SENDERS} senders with {IN_FLIGHT} messages of {TEXT} bytes in flight each, median of 3 rounds\n"
    );
    println!("| | messages/s | relative to NATS clients |\n| - | - | - |");
    println!("| on one node | {local:.0} | |");
    println!(
        "| from one node to another | {across:.0} | {:.2} |",
        across / bare
    );
    println!("| async-nats clients, publisher to subscriber | {bare:.0} | 1 |\n");
    let lost = second.metric("switchboard_cluster_overrun_total").await;
    assert_eq!(lost, 0, "messages were lost");
}

async fn flood(from: &Node, to: &Node) -> f64 {
    let until = Instant::now() + MEASURED;
    let mut tasks = Vec::new();
    for _ in 0..SENDERS {
        let (id, mut reader, writer) = connect(to.addr).await;
        let (_, idle, mut sender) = connect(from.addr).await;
        let heard = Arc::new(AtomicU64::new(0));
        let progress = Arc::new(tokio::sync::Notify::new());
        let (count, notify) = (heard.clone(), progress.clone());
        tasks.push(tokio::spawn(async move {
            let mut buffer = Vec::new();
            loop {
                let read = tokio::time::timeout_at(until, reader.read_buf(&mut buffer)).await;
                if read.is_err() {
                    break;
                }
                let mut frames = 0;
                each_frame(&mut buffer, |_| frames += 1);
                count.fetch_add(frames, Relaxed);
                notify.notify_one();
            }
            drop(writer);
            count.load(Relaxed)
        }));
        tokio::spawn(async move {
            let message = frame(id, &"x".repeat(TEXT));
            let mut sent = 0;
            while Instant::now() < until {
                let free = IN_FLIGHT - (sent - heard.load(Relaxed));
                if free < IN_FLIGHT / 4 {
                    progress.notified().await;
                    continue;
                }
                if sender
                    .write_all(&message.repeat(free as usize))
                    .await
                    .is_err()
                {
                    break;
                }
                sent += free;
            }
            drop(idle);
        });
    }
    let mut total = 0;
    for task in tasks {
        total += task.await.unwrap();
    }
    total as f64 / MEASURED.as_secs_f64()
}

async fn bare_flood(nats: &Nats) -> f64 {
    let url = format!("nats://127.0.0.1:{}", nats.port);
    let options = || async_nats::ConnectOptions::new().subscription_capacity(1 << 20);
    let publisher = options().connect(&url).await.unwrap();
    let subscriber = options().connect(&url).await.unwrap();
    let mut messages = subscriber.subscribe("bare.b.1.*").await.unwrap();
    subscriber.flush().await.unwrap();
    sleep(Duration::from_millis(50)).await;
    let until = Instant::now() + MEASURED;
    let heard = Arc::new(AtomicU64::new(0));
    let count = heard.clone();
    let listening = tokio::spawn(async move {
        while tokio::time::timeout_at(until, messages.next())
            .await
            .is_ok()
        {
            count.fetch_add(1, Relaxed);
        }
        count.load(Relaxed)
    });
    let payload = bytes::Bytes::from(vec![b'x'; TEXT + 5]);
    let mut sent = 0;
    let most = IN_FLIGHT * SENDERS as u64;
    while Instant::now() < until {
        if sent - heard.load(Relaxed) >= most {
            tokio::task::yield_now().await;
            continue;
        }
        let subject = format!("bare.b.1.{}", sent % 1024);
        publisher.publish(subject, payload.clone()).await.unwrap();
        sent += 1;
    }
    listening.await.unwrap() as f64 / MEASURED.as_secs_f64()
}

/// Joins a second, and the memory of many users, on a node that runs alone and on a node of a cluster.
async fn size(program: &PathBuf, nats: &Nats) {
    println!("{USERS} idle users on one node, who came {JOINERS} at a time\n");
    println!(
        "| | joins a second | resident before | with the users | per user | of NATS per user |"
    );
    println!("| - | - | - | - | - | - |");
    for (name, cluster) in [
        ("a node that runs alone", None),
        ("in a cluster", Some(nats)),
    ] {
        let node = Node::start(program, cluster).await;
        let resident = || [node.pid(), nats.pid()].map(resident_bytes);
        let before = resident();
        let begin = Instant::now();
        let addr = node.addr;
        let joiners = (0..JOINERS).map(|_| async move {
            let mut users = Vec::with_capacity(USERS / JOINERS);
            for _ in 0..USERS / JOINERS {
                users.push(connect(addr).await);
            }
            users
        });
        let users = futures_util::future::join_all(joiners).await;
        let rate = USERS as f64 / begin.elapsed().as_secs_f64();
        sleep(Duration::from_secs(2)).await;
        let after = resident();
        let each = [0, 1].map(|of: usize| after[of].saturating_sub(before[of]) / USERS as u64);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!(
            "| {name} | {rate:.0} | {:.1} MiB | {:.1} MiB | {} bytes | {} bytes |",
            mib(before[0]),
            mib(after[0]),
            each[0],
            each[1]
        );
        drop(users);
    }
}

/// The time until users who lose their connections at the same moment are all back with their ids, and what that took.
async fn come_back(program: &PathBuf, nats: &Nats) {
    println!(
        "\n{RETURNING} users lose their connections at once, and come back with their tickets\n"
    );
    println!(
        "| | half are back after | all | attempts a user | other ids |\n| - | - | - | - | - |"
    );
    for (name, cluster, is_killed) in [
        ("to a node that runs alone", None, false),
        ("to another node of a cluster", Some(nats), false),
        ("the same, and their node was killed", Some(nats), true),
    ] {
        let first = Node::with_tickets(program, cluster).await;
        let second = match cluster {
            Some(_) => Some(Node::with_tickets(program, cluster).await),
            None => None,
        };
        let joiners = (0..JOINERS).map(|_| async {
            let mut users = Vec::with_capacity(RETURNING / JOINERS);
            for _ in 0..RETURNING / JOINERS {
                users.push(welcome(first.addr, None).await.unwrap());
            }
            users
        });
        let users = futures_util::future::join_all(joiners).await;
        let users: Vec<_> = users.into_iter().flatten().collect();
        let to = second.as_ref().map_or(first.addr, |second| second.addr);
        let first = (!is_killed).then_some(first);
        let begin = Instant::now();
        let returning = users.into_iter().map(|user| {
            let Welcome { id, ticket, stream } = user;
            drop(stream);
            tokio::spawn(return_to(to, id, ticket, begin))
        });
        let returned = futures_util::future::join_all(returning.collect::<Vec<_>>()).await;
        let returned: Vec<_> = returned.into_iter().map(Result::unwrap).collect();
        let mut times: Vec<_> = returned.iter().map(|user| user.after).collect();
        times.sort_unstable();
        let attempts: u32 = returned.iter().map(|user| user.attempts).sum();
        let others = returned.iter().filter(|user| !user.is_same).count();
        println!(
            "| {name} | {:.1} s | {:.1} s | {:.2} | {others} |",
            times[RETURNING / 2].as_secs_f64(),
            times[RETURNING - 1].as_secs_f64(),
            f64::from(attempts) / RETURNING as f64
        );
        drop((first, second, returned));
    }
}

/// A user that is back.
struct Returned {
    after: Duration,
    attempts: u32,
    is_same: bool,
    _stream: TcpStream,
}

async fn return_to(to: SocketAddr, id: u64, ticket: String, begin: Instant) -> Returned {
    let mut attempts = 0;
    loop {
        let bound = BACKOFF_MIN * 2_u32.pow(attempts.min(6));
        sleep(bound.min(BACKOFF_MAX).mul_f64(fastrand::f64())).await;
        attempts += 1;
        if let Ok(user) = welcome(to, Some(&ticket)).await {
            return Returned {
                after: begin.elapsed(),
                attempts,
                is_same: user.id == id,
                _stream: user.stream,
            };
        }
    }
}

/// A user of switchboard.v1.
struct Welcome {
    id: u64,
    ticket: String,
    stream: TcpStream,
}

/// Connects a user of switchboard.v1, or says why it was refused.
async fn welcome(addr: SocketAddr, ticket: Option<&str>) -> io::Result<Welcome> {
    let ticket = ticket.map_or_else(String::new, |ticket| format!(", ticket.{ticket}"));
    let protocol = format!("Sec-WebSocket-Protocol: switchboard.v1{ticket}\r\n");
    let (_, mut rest, mut stream) = handshake(addr, &protocol).await?;
    let mut frame = None;
    while frame.is_none() {
        each_frame(&mut rest, |text| {
            frame.get_or_insert_with(|| serde_json::from_str::<serde_json::Value>(text).unwrap());
        });
        if frame.is_none() && stream.read_buf(&mut rest).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let frame = frame.unwrap();
    Ok(Welcome {
        id: frame["user_id"].as_u64().unwrap(),
        ticket: frame["ticket"].as_str().unwrap().to_owned(),
        stream,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Connects a user without a subprotocol.
async fn connect(addr: SocketAddr) -> (u64, OwnedReadHalf, OwnedWriteHalf) {
    let (head, _, stream) = handshake(addr, "").await.unwrap();
    let id = head.split("x-user-id: ").nth(1).unwrap();
    let id = id.split('\r').next().unwrap().parse().unwrap();
    let (reader, writer) = stream.into_split();
    (id, reader, writer)
}

/// Upgrades a connection. Returns the head of the answer, and what came behind it.
async fn handshake(addr: SocketAddr, lines: &str) -> io::Result<(String, Vec<u8>, TcpStream)> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{lines}\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    let length = loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let rest = head.split_off(length);
    let head = String::from_utf8(head).unwrap();
    if !head.starts_with("HTTP/1.1 101") {
        return Err(io::Error::other(head));
    }
    Ok((head, rest, stream))
}

/// A message as a frame of a client, with a mask of zeros (RFC 6455 section 5.2).
fn frame(to: u64, text: &str) -> Vec<u8> {
    let payload = format!("{{\"recipient_id\":{to},\"message\":\"{text}\"}}");
    let length = u16::try_from(payload.len()).unwrap();
    let mut frame = vec![0x81];
    if length < 126 {
        frame.push(0x80 | length as u8);
    } else {
        frame.push(0xFE);
        frame.extend(length.to_be_bytes());
    }
    frame.extend([0; 4]);
    frame.extend(payload.as_bytes());
    frame
}

/// Removes whole frames of the relay from the buffer, and calls `f` with each text.
fn each_frame(buffer: &mut Vec<u8>, mut f: impl FnMut(&str)) {
    let mut start = 0;
    loop {
        let rest = &buffer[start..];
        let (length, head) = match *rest {
            [_, 126, high, low, ..] => (usize::from(u16::from_be_bytes([high, low])), 4),
            [_, length @ 0..126, ..] => (usize::from(length), 2),
            _ => break,
        };
        let Some(payload) = rest.get(head..head + length) else {
            break;
        };
        if rest[0] == 0x81 {
            f(std::str::from_utf8(payload).unwrap());
        }
        start += head + length;
    }
    buffer.drain(..start);
}

/// What these figures store: NATS, and the secret of tickets.
fn folder() -> PathBuf {
    env::temp_dir().join(format!("cluster-figures-{}", std::process::id()))
}

struct Nats {
    port: u16,
    process: Child,
    store: PathBuf,
}

impl Nats {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let path = env::var_os("PATH").unwrap_or_default();
        let program = env::split_paths(&path)
            .chain([PathBuf::from("/usr/sbin")])
            .map(|folder| folder.join("nats-server"))
            .find(|program| program.is_file())
            .expect("nats-server is not installed");
        let store = folder();
        fs::create_dir(&store).unwrap();
        let process = Command::new(program)
            .args([
                "--addr",
                "127.0.0.1",
                "--port",
                &port.to_string(),
                "--jetstream",
            ])
            .arg("--store_dir")
            .arg(&store)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            port,
            process,
            store,
        }
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        fs::remove_dir_all(&self.store).unwrap();
    }
}

struct Node {
    addr: SocketAddr,
    process: Child,
}

impl Node {
    async fn start(program: &PathBuf, nats: Option<&Nats>) -> Self {
        Self::run(Command::new(program), nats).await
    }

    /// Starts a node whose tickets are good at every other node of this kind.
    async fn with_tickets(program: &PathBuf, nats: Option<&Nats>) -> Self {
        let secret = folder().join("tickets");
        fs::write(&secret, [b't'; 32]).unwrap();
        let mut command = Command::new(program);
        command.env("SWITCHBOARD__TICKETS__SECRET_FILE", secret);
        Self::run(command, nats).await
    }

    async fn run(mut command: Command, nats: Option<&Nats>) -> Self {
        command.args(["--listen", "127.0.0.1:0"]);
        if let Some(nats) = nats {
            let url = format!("nats://127.0.0.1:{}", nats.port);
            command.env("SWITCHBOARD__CLUSTER__NATS_URL", url);
        }
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let line = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("urls=[")));
        let line = line.unwrap().unwrap();
        let addr = line.split("urls=[\"http://").nth(1).unwrap();
        let addr = addr.split('"').next().unwrap().parse().unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        let node = Self { addr, process };
        while node.get("/readyz").await.0 != 200 {
            sleep(Duration::from_millis(20)).await;
        }
        node
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }

    /// The value of a metric without labels; 0 if it does not exist.
    async fn metric(&self, name: &str) -> u64 {
        let (_, answer) = self.get("/metrics").await;
        let mut lines = answer.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or(0)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// CPU time of all threads of a process, in seconds. The kernel counts it in nanoseconds.
fn cpu_seconds(pid: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let nanos = threads.map(|thread| {
        let path = thread.unwrap().path().join("schedstat");
        let stat = fs::read_to_string(path).unwrap();
        let nanos = stat.split(' ').next().unwrap();
        nanos.parse::<u64>().unwrap()
    });
    nanos.sum::<u64>() as f64 / 1e9
}

fn resident_bytes(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
