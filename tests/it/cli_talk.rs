//! The program as a client: `connect`, `send` and the other commands of operators, in pipes and on terminals.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::pty::openpty;
use nix::sys::termios::{Termios, tcgetattr};
use serde_json::{Value, json};

use super::cli::{Served, eventually, free_address, outcome, settings_file, switchboard};

const TOKEN: &str = "let-me-in-0123456789";

/// A relay with an API, in a process of its own, and the file of its settings.
pub(crate) struct Relay {
    pub(crate) served: Served,
    settings: PathBuf,
}

impl Relay {
    /// `more` are further lines of the settings, and `name` is part of the names of the files.
    pub(crate) fn start(name: &str, more: &str) -> Self {
        let (users, admin) = (free_address(), free_address());
        let token = settings_file(&format!("{name}-token"), TOKEN);
        let text = format!(
            "[server]\nlisten = [\"{users}\"]\n[admin]\nlisten = \"{admin}\"\ntoken_file = \"{}\"\n[drain]\ndelay = \"0s\"\n{more}",
            token.display()
        );
        let settings = settings_file(&format!("{name}.toml"), &text);
        let served = serve(users, &settings);
        Self { served, settings }
    }

    /// Starts it anew at the same addresses, after its end.
    pub(crate) fn start_again(&mut self) {
        self.served = serve(self.served.address, &self.settings);
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}/", self.served.address)
    }

    /// A command with the settings of this relay.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = switchboard(arguments);
        command.arg("-c").arg(&self.settings);
        command
    }
}

fn serve(address: SocketAddr, settings: &Path) -> Served {
    let process = switchboard(&["-c", settings.to_str().unwrap()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let served = Served { process, address };
    eventually(|| TcpStream::connect(address).ok());
    served
}

/// The exit code, stdout and stderr of a run with this stdin.
fn piped(command: &mut Command, stdin: &[u8]) -> (Option<i32>, Vec<Value>, String) {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let stdin = stdin.to_vec();
    // A program that ends early leaves the rest.
    let writer = thread::spawn(move || drop(input.write_all(&stdin)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let frames = stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    (
        output.status.code(),
        frames.collect(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn in_a_pipe_frames_are_lines_and_the_exit_code_tells_of_the_outcomes() {
    let relay = Relay::start(
        "talk-pipe",
        "[limits]\nmessage_bytes = 100\nbad_messages = 2\n",
    );
    let own = r#"{"recipient_id":1,"message":"Hi","id":1}"#;
    let (code, frames, stderr) = piped(&mut relay.command(&["connect"]), own.as_bytes());
    assert_eq!((code, &*stderr), (Some(0), ""));
    let message = json!({"type": "message", "sender_id": 1, "message": "Hi"});
    let outcome = json!({"type": "outcome", "id": 1, "status": "delivered"});
    assert_eq!(frames[1..], [message, outcome]);
    let lost = r#"{"recipient_id":99,"message":"Hi","id":"a"}"#;
    for (sent, code, last) in [
        ("", 0, "welcome"),
        ("\n  \n", 0, "welcome"),
        (lost, 1, "outcome"),
        (r#"{"recipient_id":99,"message":"Hi"}"#, 0, "welcome"),
        (r#"{"recipient_id":"x","message":"Hi"}"#, 1, "error"),
        (r#"{"type":"ping","id":8}"#, 0, "pong"),
    ] {
        for arguments in [&["connect"] as &[&str], &["connect", &relay.url()]] {
            let (found, frames, stderr) = piped(&mut relay.command(arguments), sent.as_bytes());
            assert_eq!((found, &*stderr), (Some(code), ""), "{sent}: {frames:?}");
            assert_eq!(
                (&frames[0]["type"], &frames.last().unwrap()["type"]),
                (&json!("welcome"), &json!(last))
            );
        }
    }
    let flood = "nonsense\n".repeat(50);
    let (code, _, stderr) = piped(&mut relay.command(&["connect"]), flood.as_bytes());
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("the relay closed the connection: 1008 "),
        "{stderr}"
    );
    let (code, _, stderr) = piped(&mut relay.command(&["connect"]), b"{}\n\xff\n");
    assert_eq!(code, Some(1));
    assert!(
        stderr.ends_with(": line 2 of the input is not UTF-8\n"),
        "{stderr}"
    );
}

/// A relay stops reading from a client that does not read its outcomes.
#[test]
fn a_large_input_is_sent_while_its_outcomes_come() {
    let relay = Relay::start("talk-large", "[limits]\noutcomes_pending = 16\n");
    let line = |id| {
        format!(
            "{{\"recipient_id\":1,\"message\":\"{}\",\"id\":{id}}}\n",
            "x".repeat(1000)
        )
    };
    let lines: String = (0..10_000).map(line).collect();
    let (code, frames, stderr) = piped(&mut relay.command(&["connect"]), lines.as_bytes());
    let outcomes = frames.iter().filter(|frame| frame["type"] == "outcome");
    assert_eq!(outcomes.count(), 10_000, "{stderr}");
    let delivered = frames
        .iter()
        .filter(|frame| frame["status"] == "delivered")
        .count();
    assert_eq!(
        (code == Some(0), code.is_some()),
        (delivered == 10_000, true),
        "{stderr}"
    );
}

#[test]
fn a_token_is_given_or_signed_for_a_relay_that_requires_one() {
    let secret = settings_file("talk-secret", "0123456789abcdef0123456789abcdef");
    let wrong = settings_file("talk-wrong", "0123456789abcdef0123456789abcdeX");
    let (secret, wrong) = (secret.to_str().unwrap(), wrong.to_str().unwrap());
    let relay = Relay::start(
        "talk-token",
        &format!("[auth]\nmode = \"jwt\"\nsecret_file = \"{secret}\"\n"),
    );
    let url = relay.url();
    let issued = outcome(
        relay
            .command(&["token", "issue", "--subject", "alice"])
            .stdin(Stdio::null()),
    )
    .1;
    let issued = issued.trim();
    for arguments in [
        &["--token", issued] as &[&str],
        &["--key-file", secret, "--subject", "alice"],
        &["--key-file", secret],
    ] {
        let arguments = [&["connect", &*url], arguments].concat();
        let (code, frames, stderr) = piped(&mut switchboard(&arguments), b"");
        assert_eq!(
            (code, &frames[0]["type"]),
            (Some(0), &json!("welcome")),
            "{arguments:?}: {stderr}"
        );
    }
    // The settings of the relay have the key.
    let (code, _, stderr) = piped(&mut relay.command(&["connect"]), b"");
    assert_eq!(code, Some(0), "{stderr}");
    for arguments in [
        &[] as &[&str],
        &["--token", "x.y.z"],
        &["--key-file", wrong],
    ] {
        let arguments = [&["connect", &*url], arguments].concat();
        let (code, frames, stderr) = piped(&mut switchboard(&arguments), b"");
        assert_eq!((code, frames.len()), (Some(1), 0));
        let url = url.replace("ws:", "http:");
        let complaint = format!(
            "switchboard: {url} refuses the connection: 401 Unauthorized: unauthorized (--token"
        );
        assert!(stderr.starts_with(&complaint), "{stderr}");
    }
    let (code, _, stderr) = piped(&mut switchboard(&["connect", &url, "--token", "a\nb"]), b"");
    assert!(
        code == Some(1) && stderr.contains("invalid token"),
        "{stderr}"
    );
    let (code, _, stderr) = piped(
        &mut switchboard(&["connect", &url, "--key-file", "/no/such"]),
        b"",
    );
    assert!(
        code == Some(1) && stderr.contains("cannot be read"),
        "{stderr}"
    );
}

#[test]
fn what_is_no_relay_is_named() {
    let refused = free_address();
    let (code, _, stderr) = piped(
        &mut switchboard(&["connect", &format!("ws://{refused}/")]),
        b"",
    );
    assert!(
        code == Some(1) && stderr.contains(&refused.to_string()),
        "{stderr}"
    );
    for (answer, complaint) in [
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nno\x1b[2J\r\n",
            "404 Not Found: no\\u{1b}[2J",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "200 OK"),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            "is no relay of Switchboard",
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("ws://{}/chat?x=1", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 4096];
            let read = stream.read(&mut head).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&head[..read]).into_owned()
        });
        let (code, _, stderr) = piped(&mut switchboard(&["connect", &url]), b"");
        assert!(
            server
                .join()
                .unwrap()
                .starts_with("GET /chat?x=1 HTTP/1.1\r\n")
        );
        assert!(code == Some(1) && stderr.contains(complaint), "{stderr}");
    }
    for url in ["127.0.0.1:8080", "http://relay/", "ws://", "ws://me@relay/"] {
        let (code, _, stderr) = piped(&mut switchboard(&["connect", url]), b"");
        assert!(
            code == Some(2) && stderr.contains("ws:// or wss://"),
            "{url}: {stderr}"
        );
    }
}

#[test]
fn the_relay_of_the_settings_is_trusted_by_its_certificate() {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["relay.test".to_owned()]).unwrap();
    let cert = settings_file("talk-cert.pem", &cert.pem());
    let key = settings_file("talk-key.pem", &signing_key.serialize_pem());
    let files = format!(
        "cert_file = \"{}\"\nkey_file = \"{}\"\n",
        cert.display(),
        key.display()
    );
    let relay = Relay::start(
        "talk-tls",
        &format!("[server.tls]\n{files}[admin.tls]\n{files}"),
    );
    let (code, frames, stderr) = piped(&mut relay.command(&["connect"]), b"");
    assert_eq!((code, frames.len()), (Some(0), 1), "{stderr}");
    let (code, answers, stderr) = piped(&mut relay.command(&["status"]), b"");
    assert_eq!(
        (code, &answers[0]["ready"]),
        (Some(0), &json!(true)),
        "{stderr}"
    );
    // A URL is checked by the authorities of the machine.
    let url = format!("wss://{}/", relay.served.address);
    let (code, _, stderr) = piped(&mut switchboard(&["connect", &url]), b"");
    assert!(
        code == Some(1) && stderr.contains(&*relay.served.address.to_string()),
        "{stderr}"
    );
}

/// A program on a terminal.
pub(crate) struct OnTerminal {
    pub(crate) process: Child,
    keys: File,
    shown: Arc<Mutex<String>>,
    /// The program's side, whose mode can be looked at.
    side: OwnedFd,
    before: Termios,
}

impl OnTerminal {
    pub(crate) fn start(command: &mut Command) -> Self {
        let pty = openpty(None, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let side = || Stdio::from(pty.slave.try_clone().unwrap());
        let process = command
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        let shown = Arc::new(Mutex::new(String::new()));
        let mut screen = File::from(pty.master.try_clone().unwrap());
        let seen = shown.clone();
        thread::spawn(move || {
            let mut piece = [0; 4096];
            // The read fails when the last side is closed.
            while let Ok(read @ 1..) = screen.read(&mut piece) {
                seen.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&piece[..read]));
            }
        });
        Self {
            process,
            keys: pty.master.into(),
            shown,
            side: pty.slave,
            before,
        }
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn sees(&self, text: &str) -> String {
        eventually(|| {
            let shown = self.shown.lock().unwrap().clone();
            shown.contains(text).then_some(shown)
        })
    }

    pub(crate) fn ends(&mut self) -> Option<i32> {
        let code = eventually(|| self.process.try_wait().unwrap()).code();
        assert_eq!(
            tcgetattr(&self.side).unwrap(),
            self.before,
            "the mode of the terminal is restored"
        );
        code
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // Fails if the process has ended, and then there is nothing to kill.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[test]
fn on_a_terminal_two_users_talk_and_see_the_outcomes() {
    let relay = Relay::start("talk-terminal", "");
    let mut one = OnTerminal::start(&mut relay.command(&["connect"]));
    one.sees("You are user 1.");
    let mut two = OnTerminal::start(&mut switchboard(&["connect", &relay.url()]));
    two.sees("You are user 2.");
    one.press("Hello?\r");
    one.sees("to whom? /to 7 chooses user 7");
    one.press("/nothing\r");
    one.sees("no command /nothing");
    one.press("/to 2\r");
    one.sees("to 2> ");
    // Two keys to the left, and a letter between.
    one.press("Helo\x1b[D\x1b[Dl\r");
    two.sees("1: Hello");
    one.sees("delivered to 2");
    two.press("/to 1 Good day.\r");
    one.sees("2: Good day.");
    one.press("/to 99 Anybody?\r");
    one.sees("not delivered to 99: offline");
    let (code, ..) = outcome(&mut relay.command(&["send", "--to", "1", "a\u{1b}]0;title\u{7}b"]));
    assert_eq!(code, Some(0));
    let shown = one.sees("system: a\\u{1b}]0;title\\u{7}b");
    assert!(!shown.contains("\u{1b}]0;"), "{shown:?}");
    one.press("\x04");
    assert_eq!(one.ends(), Some(0));
    two.press("\x03");
    assert_eq!(two.ends(), Some(0));
}

#[test]
fn operators_read_json_in_a_pipe_and_text_on_a_terminal() {
    let relay = Relay::start("talk-operators", "");
    let mut user = OnTerminal::start(&mut relay.command(&["connect"]));
    user.sees("You are user 1.");
    let ask = |arguments: &[&str]| {
        let (code, mut answers, stderr) = piped(&mut relay.command(arguments), b"");
        (code, answers.pop().unwrap_or_default(), stderr)
    };
    let sent = ask(&["send", "--to", "1", "Dinner is ready."]);
    assert_eq!(
        (sent.0, sent.1),
        (
            Some(0),
            json!({"sender_id": 0, "recipient_id": 1, "status": "delivered"})
        )
    );
    user.sees("system: Dinner is ready.");
    let sent = ask(&["send", "--to", "99", "--from", "7", "Hello"]);
    assert_eq!(
        (sent.0, sent.1),
        (
            Some(1),
            json!({"sender_id": 7, "recipient_id": 99, "status": "offline"})
        )
    );
    let (code, users, _) = ask(&["users", "--sort", "queue", "--limit", "5"]);
    assert_eq!((code, &users["users"][0]["id"]), (Some(0), &json!(1)));
    assert_eq!(ask(&["users", "1"]).1["online"], true);
    assert_eq!(ask(&["users", "99"]).1["online"], false);
    assert_eq!(ask(&["status"]).1["users"], 1);
    assert_eq!(ask(&["log-filter"]).1, json!({"filter": "info"}));
    assert_eq!(
        ask(&["log-filter", "info,switchboard=debug"]).1["filter"],
        "info,switchboard=debug"
    );
    assert_eq!(
        ask(&["log-filter"]).1,
        json!({"filter": "switchboard=debug,info"})
    );
    let (code, _, stderr) = ask(&["log-filter", "loud"]);
    assert!(
        code == Some(1)
            && stderr.contains("/api/log-filter answers 400 Bad Request: filter must be"),
        "{stderr}"
    );
    let (code, _, stderr) = ask(&["drain", "--spread", "1d"]);
    assert!(
        code == Some(1) && stderr.contains("spread must be a duration"),
        "{stderr}"
    );
    for (arguments, words) in [
        (
            &["users"] as &[&str],
            &["user", "subject", "delivered", "switchboard.v1"] as &[&str],
        ),
        (&["status"], &["users", "messages received", "ready"]),
        (&["send", "--to", "1", "Again"], &["delivered"]),
        (&["log-filter"], &["switchboard=debug,info"]),
    ] {
        let mut terminal = OnTerminal::start(&mut relay.command(arguments));
        assert_eq!(terminal.ends(), Some(0));
        for word in words {
            let shown = terminal.sees(word);
            assert!(!shown.contains('{'), "{shown}");
        }
    }
    assert_eq!(ask(&["drain", "--spread", "0s"]).1, json!({"spread": "0s"}));
    user.sees("connecting again");
    user.press("\x04");
    assert_eq!(user.ends(), Some(1));
    user.sees("the relay closed the connection: 1012 ");
}

#[test]
fn an_operator_who_cannot_ask_is_told_why() {
    let relay = Relay::start("talk-refused", "");
    let token = settings_file("talk-other-token", "another");
    let text = settings_file("talk-two-lines", "a\nb\n");
    let (token, text) = (token.to_str().unwrap(), text.to_str().unwrap());
    let users = format!("http://{}", relay.served.address);
    let nowhere: SocketAddr = free_address();
    let nowhere = format!("http://{nowhere}");
    for (arguments, code, complaint) in [
        (
            &["--token-file", token] as &[&str],
            1,
            "answers 401 Unauthorized: the token of admin.token_file is required",
        ),
        (
            &["--token-file", "/no/such"],
            1,
            "/no/such (--token-file): cannot be read",
        ),
        (&["--token-file", text], 1, "one line of visible ASCII"),
        (&["--url", &users], 1, "answers 404 Not Found: no API"),
        (
            &["--url", &nowhere],
            1,
            &format!("cannot ask {nowhere}/api/status"),
        ),
        (
            &["--url", "relay:9090"],
            2,
            "begins with http:// or https://",
        ),
    ] {
        let (found, stdout, stderr) = outcome(relay.command(&["status"]).args(arguments));
        assert_eq!((found, &*stdout), (Some(code), ""), "{arguments:?}");
        assert!(stderr.contains(complaint), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("another"), "{stderr}");
    }
    let (code, _, stderr) = outcome(&mut switchboard(&["status"]));
    assert!(
        code == Some(1) && stderr.contains("admin.listen (-c), or a URL (--url)"),
        "{stderr}"
    );
    for arguments in [
        &["send", "--to", "0", "x"] as &[&str],
        &["send", "x"],
        &["users", "--limit", "0"],
        &["users", "--sort", "age"],
    ] {
        let (code, stdout, _) = outcome(&mut relay.command(arguments));
        assert_eq!((code, &*stdout), (Some(2), ""), "{arguments:?}");
    }
}
