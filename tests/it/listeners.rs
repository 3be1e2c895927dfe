//! The wiring of the listeners: what the limits of users do not do to operators, and where the work is done.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use switchboard::config::Strategy;
use tokio::time::Instant;

use crate::harness::{Handshake, Raw, Relay, eventually};
use crate::limits::Process;

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

#[tokio::test]
async fn the_accept_rate_does_not_hold_up_operators() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.admin.listen = Some(any());
        settings.limits.accept_rate = Some(1);
    })
    .await;
    for _ in 0..20 {
        assert_eq!(relay.admin("GET", "/livez").await.status, 200);
    }
    let deferred = "switchboard_accepts_deferred_total";
    assert_eq!(relay.metric(deferred, &[]).await, 0);
    relay.stop().await;
}

/// Proxies are in front of users, and Prometheus sends no header.
#[tokio::test]
async fn the_admin_listener_takes_no_header_of_the_proxy_protocol() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.admin.listen = Some(any());
        settings.server.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        settings.server.proxy_protocol = true;
    })
    .await;
    assert_eq!(relay.admin("GET", "/livez").await.status, 200);
    let mut peer = relay.raw_admin().await;
    peer.write(b"PROXY UNKNOWN\r\n").await;
    let request = Handshake::request("GET", "/livez");
    drop(peer.try_write(&request.bytes()).await);
    let status = peer.answer(true).await.map(|answer| answer.status);
    assert_ne!(status, Some(200));
    relay.stop().await;
}

#[tokio::test]
async fn the_admin_listener_has_a_limit_of_its_own() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.admin.listen = Some(any());
        settings.limits.header_timeout = Duration::from_mins(5);
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(relay.raw_admin().await);
    }
    // One more connection closes the oldest.
    assert_eq!(relay.admin("GET", "/livez").await.status, 200);
    let evicted = "switchboard_http_evicted_total";
    let count = relay.metric(evicted, &[]).await;
    assert!((80 - 64..=80 - 64 + 3).contains(&count), "{count}");
    drop(silent);
    relay.stop().await;
}

/// Sets the limit of open files of another process.
fn limit_files(process: u32, files: usize) {
    let limit = format!("--nofile={files}:620");
    let status = Command::new("prlimit")
        .args(["--pid", &process.to_string(), &limit])
        .status();
    assert!(status.expect("prlimit of util-linux").success());
}

/// Without a descriptor, accepting fails again and again. Each failure is counted, and followed by a pause.
#[tokio::test]
async fn a_failed_accept_is_counted_and_followed_by_a_pause() {
    let process = Process::start(620).await;
    // A connection from before the failure, because no other can be accepted.
    let mut operator = Raw::connect(process.admin()).await;
    assert_eq!(operator.http("GET", "/livez").await.status, 200);
    // As many as are open, without a gap between them.
    let is_open = |file: &usize| Path::new(&format!("/proc/{}/fd/{file}", process.id())).exists();
    let free = (0..620).find(|file| !is_open(file)).unwrap();
    limit_files(process.id(), free);
    let begin = Instant::now();
    let mut waiting = Raw::connect(process.users()).await;
    waiting.write(&Handshake::new().bytes()).await;
    let failed = async |operator: &mut Raw| {
        let text = operator.http("GET", "/metrics").await.body;
        let name = "switchboard_accept_errors_total ";
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.expect("the series exists").parse::<u32>().unwrap()
    };
    let mut count = 0;
    while count < 6 {
        count = failed(&mut operator).await;
        assert!(begin.elapsed() < Duration::from_secs(30), "{count} failed");
    }
    let pauses = begin.elapsed().as_millis() / 50;
    assert!(
        u128::from(count) <= 2 * (pauses + 1),
        "{count} in {pauses} pauses"
    );
    limit_files(process.id(), 620);
    let answer = waiting.answer(false).await.expect("an answer");
    assert_eq!(answer.status, 101);
}

/// The kernel runs the background threads only where no user needs the core.
#[tokio::test]
async fn tls_handshakes_are_computed_in_the_background() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("listeners-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), pair.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), pair.signing_key.serialize_pem()).unwrap();
    let file = |name: &str| folder.join(name).display().to_string();
    let process = Process::start_with(620, |users, admin| {
        vec![
            ("SWITCHBOARD__SERVER__LISTEN", users.to_string()),
            ("SWITCHBOARD__ADMIN__LISTEN", admin.to_string()),
            ("SWITCHBOARD__SERVER__TLS__CERT_FILE", file("cert.pem")),
            ("SWITCHBOARD__SERVER__TLS__KEY_FILE", file("key.pem")),
        ]
    })
    .await;
    let before = background_time(process.id());
    eventually("the background threads work", async || {
        let hello = crate::tls::hello_to(pair.cert.der().clone());
        let mut peer = Raw::connect(process.users()).await;
        peer.write(&hello).await;
        peer.read_a_little(6).await;
        let worked = background_time(process.id()).saturating_sub(before);
        // A handshake takes about 0.1 ms, and a thread without work none.
        (worked > Duration::from_millis(2)).then_some(())
    })
    .await;
    drop(process);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The CPU time of the background threads of a process.
fn background_time(process: u32) -> Duration {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let times = tasks.map(|task| {
        let task = task.unwrap().path();
        if read(task.join("comm")).trim() != "background" {
            return 0;
        }
        let nanoseconds = read(task.join("schedstat"));
        let nanoseconds = nanoseconds.split(' ').next().unwrap_or_default();
        nanoseconds.parse::<u64>().unwrap_or_default()
    });
    Duration::from_nanos(times.sum())
}

/// The rate of all is the node's fault, and the rate of one address is its own.
#[tokio::test]
async fn a_rate_of_all_answers_503_and_a_rate_of_an_address_429() {
    for (is_of_all, expected, reason) in [(true, 503, "rate"), (false, 429, "address_rate")] {
        let relay = Relay::start(Strategy::Directory, |settings| {
            settings.limits.handshake_rate = is_of_all.then_some(1);
            settings.limits.address_handshake_rate = (!is_of_all).then_some(1);
        })
        .await;
        let mut held = Vec::new();
        let refused = eventually("a refusal", async || {
            let mut peer = relay.raw().await;
            let answer = peer.ask(&Handshake::new()).await;
            held.push(peer);
            (answer.status != 101).then_some(answer)
        })
        .await;
        assert_eq!(refused.status, expected, "{refused:?}");
        let labels = [("reason", reason)];
        let rejected = "switchboard_handshakes_rejected_total";
        assert_eq!(relay.metric(rejected, &labels).await, 1);
        drop(held);
        relay.stop().await;
    }
}

/// After a failure that counts for a minute, it makes no sense to come back within it.
#[tokio::test]
async fn retry_after_covers_the_wait() {
    let folder = std::env::temp_dir().join(format!("listeners-secret-{}", std::process::id()));
    std::fs::write(&folder, [b'k'; 32]).unwrap();
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.auth.mode = switchboard::config::AuthMode::Jwt;
        settings.auth.secret_file = vec![folder.clone()];
        settings.limits.address_auth_failures = Some(1);
    })
    .await;
    let bad = Handshake::new().with("Authorization", "Bearer none");
    assert_eq!(relay.raw().await.ask(&bad).await.status, 401);
    let answer = relay.raw().await.ask(&bad).await;
    assert_eq!(answer.status, 429);
    let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((30..=71).contains(&seconds), "{seconds}");
    std::fs::remove_file(&folder).unwrap();
    relay.stop().await;
}
