//! `switchboard connect` when its connection ends: it comes back where that can help, every message keeps its outcome,
//! and a signal leaves the terminal as it was.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use hyper_tungstenite::tungstenite::handshake::server::{
    ErrorResponse, Request as Upgrade, Response as Upgraded,
};
use hyper_tungstenite::tungstenite::protocol::CloseFrame;
use hyper_tungstenite::tungstenite::{Error, Message, Utf8Bytes, WebSocket, accept_hdr};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::cli::{eventually, settings_file, switchboard};
use super::cli_talk::{OnTerminal, Relay};

/// How long a test waits for what the other side does.
const PATIENCE: Duration = Duration::from_secs(20);

/// The program in a pipe whose input stays open.
struct InPipe {
    process: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl InPipe {
    fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (line, lines) = mpsc::channel();
        // Ends with the output, or with the test.
        thread::spawn(move || output.lines().try_for_each(|read| line.send(read.unwrap())));
        Self {
            input: process.stdin.take(),
            process,
            lines,
        }
    }

    fn write(&mut self, line: &Value) {
        let mut input = self.input.as_ref().unwrap();
        writeln!(input, "{line}").unwrap();
    }

    /// The next frame; null at the end of the output.
    #[track_caller]
    fn reads(&mut self) -> Value {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => serde_json::from_str(&line).unwrap(),
            Err(RecvTimeoutError::Disconnected) => Value::Null,
            Err(RecvTimeoutError::Timeout) => panic!("no frame within {PATIENCE:?}"),
        }
    }

    /// Ends the input. Returns the exit code and stderr.
    fn ends(mut self) -> (Option<i32>, String) {
        drop(self.input.take());
        let status = eventually(|| self.process.try_wait().unwrap());
        let mut complaints = String::new();
        let mut stderr = self.process.stderr.take().unwrap();
        stderr.read_to_string(&mut complaints).unwrap();
        (status.code(), complaints)
    }
}

impl Drop for InPipe {
    fn drop(&mut self) {
        // Fails if the process has ended, and then there is nothing to kill.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn message(to: u64, id: u64) -> Value {
    json!({"recipient_id": to, "message": "Hi", "id": id})
}

fn outcome_of(id: u64, status: &str) -> Value {
    json!({"type": "outcome", "id": id, "status": status})
}

/// A relay whose users keep their ids across a restart.
fn relay_with_tickets(name: &str) -> Relay {
    let secret = settings_file(
        &format!("{name}-tickets"),
        "0123456789abcdef0123456789abcdef",
    );
    // The first line belongs to the section of the drain: a user comes back within that time.
    let more = format!(
        "spread = \"1s\"\n[tickets]\nsecret_file = \"{}\"\n",
        secret.display()
    );
    Relay::start(name, &more)
}

#[test]
fn a_pipe_follows_a_drain_with_the_same_id_and_sends_what_was_written_meanwhile() {
    let mut relay = relay_with_tickets("return-pipe");
    let mut user = InPipe::start(&mut relay.command(&["connect"]));
    assert_eq!(user.reads()["user_id"], 1);
    user.write(&message(1, 1));
    assert_eq!(user.reads()["type"], "message");
    assert_eq!(user.reads(), outcome_of(1, "delivered"));
    relay.served.signal("INT");
    assert_eq!(user.reads()["type"], "reconnect");
    assert_eq!(relay.served.exit_code(), Some(0));
    for id in 2..50 {
        user.write(&message(1, id));
    }
    relay.start_again();
    let welcome = user.reads();
    assert_eq!(
        (&welcome["user_id"], &welcome["resumed"]),
        (&json!(1), &json!(true)),
        "{welcome}"
    );
    let mut frames: Vec<_> = (2..50).flat_map(|_| [user.reads(), user.reads()]).collect();
    frames.retain(|frame| frame["type"] == "outcome");
    let expected: Vec<_> = (2..50).map(|id| outcome_of(id, "delivered")).collect();
    assert_eq!(frames, expected);
    let (code, stderr) = user.ends();
    assert_eq!((code, stderr.lines().count()), (Some(0), 1), "{stderr}");
    assert!(
        stderr.contains("the relay closed the connection: 1012 ")
            && stderr.contains("connecting again"),
        "{stderr}"
    );
}

#[test]
fn a_terminal_follows_a_drain_and_says_so_in_one_line() {
    let mut relay = relay_with_tickets("return-terminal");
    let mut user = OnTerminal::start(&mut relay.command(&["connect"]));
    user.sees("You are user 1.");
    relay.served.signal("INT");
    let shown = user.sees("connecting again");
    assert!(
        shown.contains("the relay closed the connection: 1012 "),
        "{shown}"
    );
    assert_eq!(relay.served.exit_code(), Some(0));
    user.press("/to 1 typed meanwhile\r");
    relay.start_again();
    user.sees("You are user 1 again.");
    user.sees("1: typed meanwhile");
    let shown = user.sees("  delivered to 1");
    assert_eq!(shown.matches("connecting again").count(), 1, "{shown}");
    assert!(!shown.contains("after_ms"), "{shown}");
    user.press("\x04");
    assert_eq!(user.ends(), Some(0));
}

#[test]
fn a_terminal_is_as_before_when_its_user_leaves_without_the_relay() {
    let relay = Relay::start("return-leaves", "");
    let mut user = OnTerminal::start(&mut relay.command(&["connect"]));
    user.sees("You are user 1.");
    relay.served.signal("KILL");
    user.sees("connecting again");
    user.press("/to 7 never sent\r");
    user.sees("to 7> ");
    user.press("\x04");
    assert_eq!(user.ends(), Some(1));
    user.sees("  not delivered to 7: not_sent");
}

#[test]
fn a_signal_ends_the_program_and_leaves_the_terminal_as_it_was() {
    let relay = Relay::start("return-signal", "");
    // The editor takes SIGINT as Ctrl-C, which leaves.
    for (name, code) in [("HUP", 129), ("INT", 0), ("TERM", 143)] {
        let mut user = OnTerminal::start(&mut relay.command(&["connect"]));
        user.sees("You are user ");
        // The editor has the terminal. Before, the terminal itself would echo the keys.
        user.sees("> ");
        user.press("half a line");
        user.sees("half a line");
        let id = user.process.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.unwrap().success());
        assert_eq!(user.ends(), Some(code), "{name}");
    }
    // Also while there is no connection.
    drop(relay);
    let relay = Relay::start("return-signal-away", "");
    let mut user = OnTerminal::start(&mut relay.command(&["connect"]));
    user.sees("You are user 1.");
    drop(relay);
    user.sees("connecting again");
    let id = user.process.id().to_string();
    let sent = Command::new("kill").args(["-s", "TERM", &id]).status();
    assert!(sent.unwrap().success());
    assert_eq!(user.ends(), Some(143));
}

/// What a relay would have to be told to do in these tests.
struct Scripted(TcpListener);

impl Scripted {
    fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("ws://{}/", listener.local_addr().unwrap());
        (Self(listener), url)
    }

    fn accept(&self) -> TcpStream {
        let (stream, _) = eventually(|| self.0.accept().ok());
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Accepts a connection and sends a welcome. Returns the ticket that the client has shown.
    #[expect(clippy::result_large_err, reason = "the library's callback")]
    fn welcome(&self) -> (WebSocket<TcpStream>, Option<String>) {
        let stream = self.accept();
        let mut ticket = None;
        let upgrade = |request: &Upgrade, mut answer: Upgraded| -> Result<_, ErrorResponse> {
            let shown = request.headers().get("x-ticket");
            ticket = shown.map(|ticket| ticket.to_str().unwrap().to_owned());
            let protocol = "switchboard.v1".parse().unwrap();
            answer
                .headers_mut()
                .insert("sec-websocket-protocol", protocol);
            Ok(answer)
        };
        let mut socket = accept_hdr(stream, upgrade).unwrap();
        let resumed = ticket.is_some();
        let welcome = json!({"type": "welcome", "user_id": 1, "heartbeat_ms": 25000, "ticket": "t", "resumed": resumed});
        send(&mut socket, &welcome);
        (socket, ticket)
    }

    /// Refuses the next connection with this status.
    fn refuse(&self, status: &str) {
        let stream = self.accept();
        let mut head = BufReader::new(&stream).lines();
        while head.next().is_some_and(|line| !line.unwrap().is_empty()) {}
        let answer =
            format!("HTTP/1.1 {status}\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n");
        (&stream).write_all(answer.as_bytes()).unwrap();
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

fn send(socket: &mut WebSocket<TcpStream>, frame: &Value) {
    socket.send(Message::text(frame.to_string())).unwrap();
}

/// Closes, and reads until the client has answered.
fn close(mut socket: WebSocket<TcpStream>, code: u16) {
    let (code, reason) = (code.into(), Utf8Bytes::from_static("as the script says"));
    socket.close(Some(CloseFrame { code, reason })).unwrap();
    while socket.read().is_ok() {}
}

/// Answers the close of the client.
fn until_closed(mut socket: WebSocket<TcpStream>) {
    let error = loop {
        if let Err(error) = socket.read() {
            break error;
        }
    };
    assert!(matches!(error, Error::ConnectionClosed), "{error}");
}

#[test]
fn a_lost_connection_is_made_again_unless_the_relay_says_that_it_cannot_help() {
    let key_file = settings_file("return-key", "0123456789abcdef0123456789abcdef");
    let token: &[&str] = &["--token", "a"];
    let signed: &[&str] = &["--key-file", key_file.to_str().unwrap()];
    for (code, arguments, comes_back) in [
        (1001, token, true),
        (1011, token, true),
        (1012, token, true),
        (1013, token, true),
        // A new token is signed for each attempt.
        (4401, signed, true),
        (4401, token, false),
        (4409, token, false),
        (4410, token, false),
        // The relay refuses what this side has sent.
        (1002, token, false),
        (1007, token, false),
        (1008, token, false),
        (1009, token, false),
    ] {
        let (relay, url) = Scripted::start();
        let mut user = InPipe::start(switchboard(&["connect", &url]).args(arguments));
        let (socket, ticket) = relay.welcome();
        assert_eq!(ticket, None);
        assert_eq!(user.reads()["resumed"], false);
        close(socket, code);
        let complaint = format!("the relay closed the connection: {code} as the script says");
        if comes_back {
            relay.refuse("503 Service Unavailable");
            let (socket, ticket) = relay.welcome();
            assert_eq!(ticket.as_deref(), Some("t"), "{code}");
            assert_eq!(user.reads()["resumed"], true, "{code}");
            drop(user.input.take());
            until_closed(socket);
        } else {
            assert_eq!(user.reads(), Value::Null, "{code}");
        }
        let (exit_code, stderr) = user.ends();
        assert_eq!(exit_code, Some(i32::from(!comes_back)), "{code}: {stderr}");
        assert!(stderr.contains(&complaint), "{stderr}");
    }
}

#[test]
fn a_refusal_ends_the_attempts_only_if_another_one_cannot_differ() {
    for (status, is_final) in [
        ("401 Unauthorized", true),
        ("403 Forbidden", true),
        ("429 Too Many Requests", false),
        ("502 Bad Gateway", false),
    ] {
        let (relay, url) = Scripted::start();
        let mut user = InPipe::start(&mut switchboard(&["connect", &url]));
        // The connection fails without a close.
        drop(relay.welcome());
        assert_eq!(user.reads()["type"], "welcome");
        relay.refuse(status);
        if !is_final {
            let (socket, _) = relay.welcome();
            assert_eq!(user.reads()["resumed"], true, "{status}");
            drop(user.input.take());
            until_closed(socket);
        }
        assert_eq!(user.reads(), Value::Null);
        let (code, stderr) = user.ends();
        assert_eq!(code, Some(i32::from(is_final)), "{stderr}");
        let complaint = format!("refuses the connection: {status}: no");
        assert_eq!(stderr.contains(&complaint), is_final, "{stderr}");
    }
}

#[test]
fn every_message_has_an_outcome_when_the_connection_is_lost() {
    let (relay, url) = Scripted::start();
    let mut user = InPipe::start(&mut switchboard(&["connect", &url]));
    let (mut socket, _) = relay.welcome();
    assert_eq!(user.reads()["type"], "welcome");
    for id in 1..=3 {
        user.write(&message(2, id));
        socket.read().unwrap();
    }
    user.write(&json!({"type": "ping", "id": 9}));
    socket.read().unwrap();
    send(&mut socket, &outcome_of(2, "delivered"));
    assert_eq!(user.reads(), outcome_of(2, "delivered"));
    drop(socket);
    // The relay has read 1 and 3, and may have delivered them.
    assert_eq!(user.reads(), outcome_of(1, "unknown"));
    assert_eq!(user.reads(), outcome_of(3, "unknown"));
    // A message that is written meanwhile has not left this side, and does when there is a connection again.
    user.write(&message(2, 4));
    let (mut socket, _) = relay.welcome();
    assert_eq!(user.reads()["resumed"], true);
    assert_eq!(
        socket.read().unwrap(),
        Message::text(message(2, 4).to_string())
    );
    let address = relay.address();
    drop((socket, relay));
    assert_eq!(user.reads(), outcome_of(4, "unknown"));
    // The input ends without a connection: nothing waits for a relay that may never return.
    eventually(|| TcpStream::connect(address).is_err().then_some(()));
    user.write(&message(2, 5));
    drop(user.input.take());
    assert_eq!(user.reads(), outcome_of(5, "not_sent"));
    let (code, stderr) = user.ends();
    assert_eq!(code, Some(1));
    assert!(stderr.contains("the connection failed"), "{stderr}");
}

#[test]
fn after_reconnect_nothing_is_sent_and_the_relay_says_how_long_to_wait() {
    const AFTER: Duration = Duration::from_millis(1500);
    let (relay, url) = Scripted::start();
    let mut user = InPipe::start(&mut switchboard(&["connect", &url]));
    let (mut socket, _) = relay.welcome();
    assert_eq!(user.reads()["type"], "welcome");
    let reconnect = json!({"type": "reconnect", "after_ms": 1500});
    send(&mut socket, &reconnect);
    assert_eq!(user.reads(), reconnect);
    user.write(&message(1, 1));
    // Outcomes still come.
    send(&mut socket, &json!({"type": "dropped", "count": 1}));
    assert_eq!(user.reads()["type"], "dropped");
    let closing = Utf8Bytes::from_static("draining");
    let (code, reason) = (1012.into(), closing);
    socket.close(Some(CloseFrame { code, reason })).unwrap();
    let closed_at = Instant::now();
    let answer = socket.read().unwrap();
    assert!(matches!(answer, Message::Close(Some(_))), "{answer}");
    drop(socket);
    let (mut socket, _) = relay.welcome();
    assert!(closed_at.elapsed() >= AFTER, "{:?}", closed_at.elapsed());
    assert_eq!(user.reads()["resumed"], true);
    assert_eq!(
        socket.read().unwrap(),
        Message::text(message(1, 1).to_string())
    );
    send(&mut socket, &outcome_of(1, "delivered"));
    assert_eq!(user.reads(), outcome_of(1, "delivered"));
    drop(user.input.take());
    until_closed(socket);
    assert_eq!(user.ends().0, Some(0));
}
