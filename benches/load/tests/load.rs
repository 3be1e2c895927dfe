//! The load generator: it measures this relay and any other relay of the protocol, and finds every kind of
//! fault that a relay can have.
#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test may leave a task behind")]

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use clap::Parser;
use hyper_tungstenite::tungstenite::handshake::derive_accept_key;
use serde_json::{Value, json};
use switchboard::app::{App, Stop};
use switchboard::auth::issue_from;
use switchboard::config::{AuthMode, Settings, Strategy};
use switchboard_bench::{BenchError, BenchOptions, RunVerdict};
use tokio::sync::oneshot;

/// Options that keep a run short.
const BRIEF: &[&str] = &["--duration=150ms", "--warmup=50ms", "--pairs=2"];

/// Runs the load generator in this process against an address. Returns its verdict and its JSON output.
fn bench(address: SocketAddr, arguments: &[&str]) -> Result<(RunVerdict, Value), BenchError> {
    let url = format!("--url=ws://{address}/");
    let own = ["switchboard-bench", "--json", &url];
    let options = BenchOptions::try_parse_from([&own, arguments].concat()).unwrap();
    let mut printed = Vec::new();
    let verdict = switchboard_bench::run(&options, &mut printed)?;
    Ok((verdict, serde_json::from_slice(&printed).unwrap()))
}

/// Runs the load generator against a relay in this process.
async fn bench_app(strategy: Strategy, arguments: &'static [&'static str]) -> (RunVerdict, Value) {
    let change = |settings: &mut Settings| settings.routing.strategy = strategy;
    let run = |users, _| bench(users, &[BRIEF, arguments].concat()).unwrap();
    with_app(change, run).await
}

/// Starts a relay in this process, and calls `run` with its address and that of its operators.
async fn with_app<T: Send + 'static>(
    change: impl FnOnce(&mut Settings),
    run: impl FnOnce(SocketAddr, Option<SocketAddr>) -> T + Send + 'static,
) -> T {
    let mut settings = Settings::default();
    settings.server.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    change(&mut settings);
    let app = App::build(settings).await.unwrap();
    let (users, admin) = (app.addrs()[0], app.admin_addr());
    let (stop, stopped) = oneshot::channel();
    let running = tokio::spawn(app.run(async { stopped.await.unwrap_or(Stop::DrainNow) }));
    let found = tokio::task::spawn_blocking(move || run(users, admin))
        .await
        .unwrap();
    stop.send(Stop::DrainNow).unwrap();
    running.await.unwrap();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_scenario_is_clean_against_this_relay() {
    const FEW: &[&str] = &[
        "all",
        "--connections=60",
        "--senders=5",
        "--window=8",
        "--churn-rate=200",
        "--flood-rate=20000",
        "--rate=500",
    ];
    for strategy in [Strategy::Directory, Strategy::Router] {
        let (verdict, report) = bench_app(strategy, FEW).await;
        assert_eq!(verdict, RunVerdict::Clean, "{report:#}");
        assert_eq!(report["ok"], true);
        let outcomes = report["outcomes"].as_array().unwrap();
        let names: Vec<_> = outcomes
            .iter()
            .map(|outcome| outcome["scenario"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "pairs",
                "open-loop",
                "idle",
                "fan-in",
                "slow-reader",
                "churn",
                "isolation",
                "storm"
            ]
        );
        for outcome in outcomes {
            let check = &outcome["check"];
            assert!(check["sent"].as_u64().unwrap() > 0, "{outcome:#}");
            // Each scenario has read the server's metrics, and each row has figures.
            assert_eq!(check["account"]["received"], check["sent"], "{outcome:#}");
            for row in outcome["rows"].as_array().unwrap() {
                assert!(row["messages"].as_u64().unwrap() > 0, "{row:#}");
                assert!(row["latency_us"]["p99"].as_f64().unwrap() > 0.0, "{row:#}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_that_the_server_accounts_for_is_no_fault() {
    let flood = &["slow-reader", "--flood-rate=100000", "--flood-size=4KiB"];
    let (verdict, report) = bench_app(Strategy::Directory, flood).await;
    let check = &report["outcomes"][0]["check"];
    assert_eq!(verdict, RunVerdict::Clean, "{check:#}");
    assert!(check["lost"].as_u64().unwrap() > 0, "{check:#}");
    assert_eq!(check["account"]["dropped"]["queue_full"], check["lost"]);
}

/// A file of this name with this text.
fn file(name: &str, text: &str) -> String {
    let path = folder(name).join("file");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_that_cannot_be_read_leave_losses_unaccounted_and_no_fault() {
    let token = file("bench-metrics-token", "let-me-in-0123456789\n");
    let change = {
        let token = token.clone();
        |settings: &mut Settings| {
            settings.admin.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
            settings.admin.token_file = Some(token.into());
        }
    };
    let run = move |users: SocketAddr, admin: Option<SocketAddr>| {
        let metrics = format!("--metrics=http://{}/metrics", admin.unwrap());
        let token = format!("--metrics-token-file={token}");
        let flood = ["slow-reader", "--flood-rate=100000", "--flood-size=4KiB"];
        let url = format!("--url=ws://{users}/");
        for (arguments, reason) in [
            (&[] as &[&str], "404"),
            (&[&*metrics], "401"),
            (&[&*token], "404"),
        ] {
            let arguments = [BRIEF, &flood, &[&*url], arguments].concat();
            let (code, stdout, stderr) = outcome(&arguments);
            assert_eq!((code, &*stderr), (Some(0), ""), "{stdout}");
            let verdict =
                format!("  unaccounted: the server's metrics could not be read ({reason}): ");
            assert!(
                stdout.contains(&verdict) && !stdout.contains("FAULTY"),
                "{stdout}"
            );
            let address = if reason == "401" {
                admin.unwrap()
            } else {
                users
            };
            let note = format!("note: http://{address}/metrics answers {reason} ");
            assert!(
                stdout.matches(&*note).count() == 1 && stdout.contains("--metrics-token-file"),
                "{stdout}"
            );
        }
        let (verdict, report) = bench(users, &[BRIEF, &["pairs", &metrics]].concat()).unwrap();
        assert_eq!(verdict, RunVerdict::Unaccounted, "{report:#}");
        let check = &report["outcomes"][0]["check"];
        assert_eq!(
            (&check["lost"], &check["metrics_unreadable"]),
            (&0.into(), &"401".into())
        );
        let (verdict, report) =
            bench(users, &[BRIEF, &flood, &[&*metrics, &token]].concat()).unwrap();
        assert_eq!(verdict, RunVerdict::Clean, "{report:#}");
        let check = &report["outcomes"][0]["check"];
        assert_eq!(check["account"]["dropped"]["queue_full"], check["lost"]);
    };
    with_app(change, run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_requires_a_token_gets_one_whatever_the_environment_says() {
    let key = file("bench-key", "0123456789abcdef0123456789abcdef");
    let secret = PathBuf::from(&key);
    let change = |settings: &mut Settings| {
        settings.auth.mode = AuthMode::Jwt;
        settings.auth.secret_file = vec![secret];
    };
    let run = move |users: SocketAddr, _| {
        let url = format!("--url=ws://{users}/");
        let mut settings = Settings::default().auth;
        settings.secret_file = vec![PathBuf::from(&key)];
        let token = issue_from(&settings, None, "alice", Duration::from_mins(10)).unwrap();
        for (arguments, code) in [
            (&["--token", &*token] as &[&str], 0),
            (&["--key-file", &key], 0),
            (&[], 1),
            (&["--token", "a.b.c"], 1),
            (&["--token", "a b"], 2),
            (&["--key-file", "/no/such"], 1),
        ] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard-bench"));
            command.args([BRIEF, &["pairs", &*url], arguments].concat());
            // Settings of a server, some of them invalid.
            for (key, value) in [
                ("AUTH__ALGORITHM", "ES256"),
                ("SERVER__LISTEN", "nowhere"),
                ("NO__SUCH", "x"),
            ] {
                command.env(format!("SWITCHBOARD__{key}"), value);
            }
            let output = command.output().unwrap();
            let [stdout, stderr] =
                [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
            assert_eq!(
                output.status.code(),
                Some(code),
                "{arguments:?}: {stdout}{stderr}"
            );
            if code == 0 {
                assert!(stdout.contains("  ok: "), "{stdout}");
            } else if arguments.is_empty() || arguments[1] == "a.b.c" {
                let complaint = format!("switchboard-bench: {users}: no upgrade: ");
                assert!(stderr.starts_with(&complaint), "{stderr}");
                assert!(
                    stderr.contains("401 Unauthorized (--token or --key-file"),
                    "{stderr}"
                );
            } else {
                assert!(stderr.contains(arguments[0]), "{stderr}");
            }
        }
    };
    with_app(change, run).await;
}

#[test]
fn help_fits_80_columns() {
    let (code, help, _) = outcome(&["--help"]);
    let wide = help.lines().find(|line| line.chars().count() > 80);
    assert_eq!((code, wide), (Some(0), None));
}

/// What a [`TinyRelay`] does to one message in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Drops,
    Duplicates,
    Reorders,
    Alters,
    Misroutes,
    Misattributes,
    CutsOff,
}

/// A relay as small as those of the essay: no header that announces the id, no queue, no metrics.
#[derive(Debug)]
struct TinyRelay {
    fault: Fault,
    users: HashMap<u64, TcpStream>,
    relayed: u64,
    held: Option<(u64, Vec<u8>)>,
}

/// The number of the message that meets the fault.
const FAULTY_MESSAGE: u64 = 10;

impl TinyRelay {
    fn start(fault: Fault) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let relay = Arc::new(Mutex::new(Self {
            fault,
            users: HashMap::new(),
            relayed: 0,
            held: None,
        }));
        thread::spawn(move || {
            for stream in listener.incoming().map(Result::unwrap) {
                let relay = relay.clone();
                thread::spawn(move || user(stream, &relay));
            }
        });
        address
    }

    fn relay(&mut self, sender: u64, text: &[u8]) {
        let message: Value = serde_json::from_slice(text).unwrap();
        let mut recipient = message["recipient_id"].as_u64().unwrap();
        let mut out = json!({"sender_id": sender, "message": message["message"]});
        if !out["message"].as_str().unwrap().starts_with('#') {
            self.relayed += 1;
        }
        let mut times = 1;
        if self.relayed == FAULTY_MESSAGE {
            match self.fault {
                Fault::None => {}
                Fault::Drops => return,
                Fault::Duplicates => times = 2,
                Fault::Reorders => {
                    self.held = Some((recipient, served(&out)));
                    self.relayed -= 1;
                    self.fault = Fault::None;
                    return;
                }
                Fault::Alters => {
                    let text = out["message"].as_str().unwrap().to_owned();
                    out["message"] = text.replace("Go Br", "Go Be").into();
                }
                Fault::Misroutes => recipient = recipient % self.users.len() as u64 + 1,
                Fault::Misattributes => out["sender_id"] = (sender + 1).into(),
                Fault::CutsOff => {
                    self.users[&recipient]
                        .shutdown(std::net::Shutdown::Both)
                        .unwrap();
                }
            }
            self.relayed += 1;
        }
        for _ in 0..times {
            self.write(recipient, &served(&out));
        }
        if self
            .held
            .as_ref()
            .is_some_and(|(held, _)| *held == recipient)
        {
            let (_, frame) = self.held.take().unwrap();
            self.write(recipient, &frame);
        }
    }

    fn write(&mut self, recipient: u64, frame: &[u8]) {
        if let Some(stream) = self.users.get_mut(&recipient) {
            // The write fails for a user that has left.
            drop(stream.write_all(frame));
        }
    }
}

/// An unmasked text frame.
fn served(message: &Value) -> Vec<u8> {
    let text = message.to_string();
    let length = u8::try_from(text.len()).unwrap();
    assert!(length < 126, "the tests' messages are short");
    [&[0x81, length], text.as_bytes()].concat()
}

/// Serves one connection of the tiny relay until it ends.
fn user(mut stream: TcpStream, relay: &Mutex<TinyRelay>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let key = head
        .lines()
        .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))
        .unwrap();
    let accept = derive_accept_key(key.as_bytes());
    let id = {
        let mut relay = relay.lock().unwrap();
        let id = relay.users.len() as u64 + 1;
        relay.users.insert(id, stream.try_clone().unwrap());
        id
    };
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).unwrap();
    loop {
        let mut header = [0; 6];
        if stream.read_exact(&mut header).is_err() {
            return;
        }
        let [opcode, length, mask @ ..] = header;
        assert!((0x80..0x80 + 126).contains(&length), "masked and short");
        let mut payload = vec![0; usize::from(length & 0x7f)];
        stream.read_exact(&mut payload).unwrap();
        for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        if opcode == 0x81 {
            relay.lock().unwrap().relay(id, &payload);
        }
    }
}

/// Runs the scenario `pairs` against a tiny relay.
fn measure_tiny_relay(fault: Fault) -> Result<(RunVerdict, Value), BenchError> {
    let arguments = [BRIEF, &["pairs", "--window=8"]].concat();
    bench(TinyRelay::start(fault), &arguments)
}

#[test]
fn a_relay_that_announces_no_ids_is_measured_too() {
    let (verdict, report) = measure_tiny_relay(Fault::None).unwrap();
    assert_eq!(verdict, RunVerdict::Clean, "{report:#}");
    assert_eq!(report["outcomes"][0]["check"]["account"], Value::Null);
    assert!(report["outcomes"][0]["check"]["sent"].as_u64().unwrap() > FAULTY_MESSAGE);
}

#[test]
fn every_kind_of_fault_is_found() {
    for (fault, found) in [
        (Fault::Drops, &["lost", "unexplained"] as &[&str]),
        (Fault::Duplicates, &["duplicated"]),
        (Fault::Reorders, &["reordered"]),
        (Fault::Alters, &["altered", "lost", "unexplained"]),
        (Fault::Misroutes, &["misrouted", "lost", "unexplained"]),
        (Fault::Misattributes, &["altered", "lost", "unexplained"]),
    ] {
        let (verdict, report) = measure_tiny_relay(fault).unwrap();
        let check = &report["outcomes"][0]["check"];
        assert_eq!(verdict, RunVerdict::Faulty, "{fault:?}: {check:#}");
        for kind in [
            "lost",
            "unexplained",
            "duplicated",
            "reordered",
            "altered",
            "misrouted",
            "cut",
            "refused",
        ] {
            let expected = u64::from(found.contains(&kind));
            assert_eq!(check[kind], expected, "{fault:?}: {kind} in {check:#}");
        }
    }
    let (verdict, report) = measure_tiny_relay(Fault::CutsOff).unwrap();
    let check = &report["outcomes"][0]["check"];
    assert_eq!(
        (verdict, &check["cut"]),
        (RunVerdict::Faulty, &1.into()),
        "{check:#}"
    );
}

#[test]
fn a_server_that_is_not_there_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = bench(address, &["pairs"]).unwrap_err();
    assert!(matches!(error, BenchError::Upgrade { .. }), "{error}");
    assert!(
        error.to_string().starts_with(&format!("{address}: ")),
        "{error}"
    );
}

/// The exit code, stdout and stderr of the program.
fn outcome(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard-bench"));
    let output = command.args(arguments).output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_foreign_address_is_not_loaded() {
    // An address for documentation (RFC 5737), where no server is.
    let (code, stdout, stderr) = outcome(&["--url", "ws://192.0.2.1:8080/"]);
    assert_eq!((code, &*stdout), (Some(2), ""));
    assert!(stderr.contains("--i-own-this-server"), "{stderr}");
}

#[test]
fn more_connections_than_files_are_refused_before_any_is_made() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 200 && exec \"$0\" \"$@\""]);
    command.arg(env!("CARGO_BIN_EXE_switchboard-bench"));
    let output = command
        .args(["pairs", "--pairs=100", "--url", &url])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("200 connections are more than"), "{stderr}");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "a connection was made");
}

#[test]
fn the_exit_code_and_the_table_show_the_verdict() {
    for (fault, code, line) in [
        (Fault::None, 0, "  ok: "),
        (Fault::Duplicates, 1, "; 1 duplicated\n"),
    ] {
        let url = format!("ws://{}/", TinyRelay::start(fault));
        let arguments = [&["pairs", "--window=8", "--url", &url], BRIEF].concat();
        let (found, stdout, stderr) = outcome(&arguments);
        assert_eq!(found, Some(code), "{stdout}{stderr}");
        assert!(stdout.contains(line), "{stdout}");
        assert_eq!(stderr, "", "no progress bar where there is no terminal");
    }
}

/// A folder of this name, empty.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    drop(fs::remove_dir_all(&path));
    fs::create_dir(&path).unwrap();
    path
}

/// Checks that a document loads nothing from elsewhere. The namespace of SVG is only a name.
#[track_caller]
fn assert_self_contained(document: &str) {
    let document = document.replace("http://www.w3.org/2000/svg", "");
    for reference in [
        "http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link",
    ] {
        assert!(!document.contains(reference), "{reference}");
    }
}

#[test]
fn the_report_is_one_page_with_charts_of_latency_and_throughput() {
    let page = folder("bench-report").join("report.html");
    let report = format!("--report={}", page.display());
    let arguments = [BRIEF, &["pairs", "open-loop", &report]].concat();
    let (verdict, _) = bench(TinyRelay::start(Fault::None), &arguments).unwrap();
    assert_eq!(verdict, RunVerdict::Clean);
    let html = fs::read_to_string(page).unwrap();
    // The page shows the URL that was measured as text.
    assert_self_contained(&html.replace("ws://", ""));
    assert_eq!(html.matches("<svg ").count(), 4);
    assert_eq!(html.matches("<polyline ").count(), 4);
    assert!(html.contains("prefers-color-scheme:dark"));
    assert!(html.contains("each arrived once, in order, unaltered"));
}

#[test]
fn the_strategies_are_compared_in_relays_that_it_starts() {
    let folder = folder("bench-compare");
    let (svg, page) = (folder.to_str().unwrap(), folder.join("compare.html"));
    let arguments = ["--compare-strategies", "--rounds=1", "--json", "--svg", svg];
    let more = [
        "--window=4",
        "--unpinned",
        "--report",
        page.to_str().unwrap(),
    ];
    let (code, stdout, stderr) = outcome(&[BRIEF, &arguments, &more].concat());
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let found: Value = serde_json::from_str(&stdout).unwrap();
    for (figures, name) in found["strategies"]
        .as_array()
        .unwrap()
        .iter()
        .zip(["directory", "router"])
    {
        assert_eq!(figures["strategy"], name);
        let counts = |list: &str, count: &str| -> Vec<u64> {
            let points = figures[list].as_array().unwrap();
            points
                .iter()
                .map(|point| point[count].as_u64().unwrap())
                .collect()
        };
        assert_eq!(counts("by_pairs", "pairs"), [1, 2]);
        assert_eq!(counts("beside_floods", "floods"), [0, 1, 2]);
        let positive = |figure: &Value| figure.as_f64().unwrap() > 0.0;
        for point in figures["by_pairs"].as_array().unwrap() {
            assert!(positive(&point["messages_per_second"]), "{point}");
            assert!(positive(&point["cpu_us_per_message"]), "{point}");
        }
        assert!(positive(&figures["slow_reader"]["p99_during_us"]));
    }
    for name in ["throughput", "cpu", "quiet-pair", "slow-reader"] {
        let svg = fs::read_to_string(folder.join(format!("{name}.svg"))).unwrap();
        assert_self_contained(&svg);
        // A line for each strategy, or two where the chart has two figures of each.
        let lines = if name.contains('-') { 4 } else { 2 };
        assert_eq!(svg.matches("<polyline ").count(), lines, "{name}");
    }
    assert_self_contained(&fs::read_to_string(page).unwrap());
}

#[test]
fn a_late_relay_is_measured_as_late() {
    // The relay stalls once. The latency of the messages that are due meanwhile contains the stall.
    const DELAY: Duration = Duration::from_millis(200);
    const STALL_AT: usize = 30_000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let behind = TinyRelay::start(Fault::None);
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map(Result::unwrap) {
            let server = TcpStream::connect(behind).unwrap();
            thread::spawn({
                let (from, to) = (server.try_clone().unwrap(), stream.try_clone().unwrap());
                move || forward(from, to, |_| ())
            });
            // The stall comes after the probes that find the ids and after some of the messages.
            let mut passed = 0;
            let stall = move |bytes: usize| {
                let before = passed;
                passed += bytes;
                if before < STALL_AT && passed >= STALL_AT {
                    thread::sleep(DELAY);
                }
            };
            thread::spawn(move || forward(stream, server, stall));
        }
    });
    let rate = [
        "open-loop",
        "--rate=1000",
        "--duration=1s",
        "--warmup=0s",
        "--pairs=1",
    ];
    let (verdict, report) = bench(address, &rate).unwrap();
    assert_eq!(verdict, RunVerdict::Clean, "{report:#}");
    let latency = &report["outcomes"][0]["rows"][0]["latency_us"];
    let (max, p90) = (latency["max"].as_f64(), latency["p90"].as_f64());
    // Of 1,000 messages the 200 that were due in the stall are late, by 200 ms down to 0.
    assert!(max.unwrap() >= 150_000.0, "{latency:#}");
    assert!(p90.unwrap() >= 50_000.0, "{latency:#}");
}

/// Copies bytes until either side ends.
fn forward(mut from: TcpStream, mut to: TcpStream, mut seen: impl FnMut(usize)) {
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        seen(read);
        if to.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
}
