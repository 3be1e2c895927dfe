//! The program from outside: verbs, exit codes, stdout and stderr, signals.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use switchboard::config::{DEFAULT, Settings};
use tokio::time::Instant;

use crate::harness::profile;

pub(crate) fn switchboard(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
    command.args(arguments).env_clear().envs(profile());
    command
}

/// The exit code, stdout and stderr of a run.
pub(crate) fn outcome(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    (
        status.code(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}

/// Writes a file and returns its path, which ends with this name. A run of the tests before this one may have left
/// files beside its own, such as the file of ids.
pub(crate) fn settings_file(name: &str, text: &str) -> PathBuf {
    let name = format!("{}-{name}", std::process::id());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, text).unwrap();
    path
}

/// An address that was free a moment ago, so that nothing should listen on it.
pub(crate) fn free_address() -> SocketAddr {
    loop {
        // Below the ports that the kernel gives to connections and to listeners on port 0: one of these could take the
        // port before its owner listens.
        let address = SocketAddr::from(([127, 0, 0, 1], fastrand::u16(10_000..32_768)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

#[track_caller]
pub(crate) fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within 20 seconds");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn version_and_help_go_to_stdout() {
    let version = format!("switchboard {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        outcome(&mut switchboard(&["--version"])),
        (Some(0), version, String::new())
    );
    let (code, stdout, stderr) = outcome(&mut switchboard(&["--help"]));
    assert_eq!((code, &*stderr), (Some(0), ""));
    for word in [
        "serve",
        "check",
        "config",
        "healthcheck",
        "--config",
        "--listen",
        "78",
    ] {
        assert!(stdout.contains(word), "{word} in {stdout}");
    }
}

#[test]
fn config_default_prints_the_documented_file() {
    let printed = outcome(&mut switchboard(&["config", "default"]));
    assert_eq!(printed, (Some(0), DEFAULT.to_owned(), String::new()));
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [
        &["serv"] as &[&str],
        &["--lisen", "127.0.0.1:0"],
        &["--listen"],
        &["config"],
        &["config", "defaults"],
        &["check", "relay.toml"],
    ] {
        let (code, stdout, stderr) = outcome(&mut switchboard(arguments));
        assert_eq!((code, &*stdout), (Some(2), ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains("--help"), "{stderr}");
    }
}

#[test]
fn check_prints_what_takes_effect() {
    let base = settings_file(
        "base.toml",
        "[limits]\nconnections = 10\n[drain]\nspread = \"10s\"\n",
    );
    let site = settings_file("site.toml", "[drain]\nspread = \"20s\"\n");
    let (base, site) = (base.to_str().unwrap(), site.to_str().unwrap());
    let mut expected = Settings::default();
    expected.limits.connections = Some(10);
    expected.drain.spread = Duration::from_secs(20);
    expected.server.listen = vec!["[::1]:7000".parse().unwrap()];
    expected.mailbox.messages = 99;
    // Options may stand on either side of the verb, or on both.
    for arguments in [
        [
            "--config",
            base,
            "--config",
            site,
            "--listen",
            "[::1]:7000",
            "check",
        ],
        [
            "check",
            "--config",
            base,
            "--config",
            site,
            "--listen",
            "[::1]:7000",
        ],
        [
            "--config",
            base,
            "check",
            "--config",
            site,
            "--listen",
            "[::1]:7000",
        ],
    ] {
        let mut command = switchboard(&arguments);
        command.env("SWITCHBOARD__MAILBOX__MESSAGES", "99");
        // Kubernetes sets this variable for a Service of the name `switchboard`.
        command.env("SWITCHBOARD_PORT", "tcp://10.96.0.11:8080");
        let checked = outcome(&mut command);
        assert_eq!(
            checked,
            (Some(0), expected.to_string(), format!("{UNSET_RATES}\n")),
            "{arguments:?}"
        );
    }
}

#[test]
fn check_warns_on_stderr_if_the_machine_is_too_small() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 1000 && exec \"$0\" check"]);
    command
        .arg(env!("CARGO_BIN_EXE_switchboard"))
        .env_clear()
        .envs(profile());
    command.env("SWITCHBOARD__LIMITS__CONNECTIONS", "501");
    let (code, stdout, stderr) = outcome(&mut command);
    assert_eq!(code, Some(0));
    assert!(stdout.contains("connections = 501"), "{stdout}");
    let warning = "switchboard: warning: RLIMIT_NOFILE is 1000, which is enough for 196 users";
    assert!(stderr.starts_with(warning), "{stderr}");
    assert!(stderr.contains(UNSET_RATES), "{stderr}");
}

const UNSET_RATES: &str = "switchboard: warning: rates without a limit: limits.message_rate, limits.byte_rate, \
    limits.accept_rate, limits.handshake_rate, limits.address_handshake_rate, \
    limits.address_connections";

#[test]
fn check_warns_without_tls_rates_if_there_is_a_certificate() {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let cert = settings_file("check-cert.pem", &cert.pem());
    let key = settings_file("check-key.pem", &signing_key.serialize_pem());
    let mut command = switchboard(&["check"]);
    command.env("SWITCHBOARD__SERVER__TLS__CERT_FILE", cert);
    command.env("SWITCHBOARD__SERVER__TLS__KEY_FILE", key);
    let (code, _, stderr) = outcome(&mut command);
    let rates = "limits.address_handshake_rate, limits.tls_handshake_rate, \
        limits.address_tls_handshake_rate, limits.address_connections\n";
    assert_eq!((code, stderr.ends_with(rates)), (Some(0), true), "{stderr}");

    command.env("SWITCHBOARD__LIMITS__HANDSHAKE_RATE", "10");
    command.env("SWITCHBOARD__LIMITS__TLS_HANDSHAKE_RATE", "5");
    let (code, stdout, stderr) = outcome(&mut command);
    assert!(stdout.contains("\ntls_handshake_rate = 5\n"), "{stdout}");
    let reset =
        "switchboard: warning: limits.tls_handshake_rate is not above limits.handshake_rate: ";
    assert_eq!((code, stderr.contains(reset)), (Some(0), true), "{stderr}");
}

#[test]
fn check_names_the_file_that_cannot_be_used_and_shows_no_secret() {
    let secret = settings_file("secret", "hunter2-hunter2-hunter2-hunter2-\n");
    let mut command = switchboard(&["check"]);
    command.env("SWITCHBOARD__AUTH__MODE", "jwt");
    command.env("SWITCHBOARD__AUTH__SECRET_FILE", &secret);
    let (code, stdout, stderr) = outcome(&mut command);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(!stdout.contains("hunter2") && !stderr.contains("hunter2"));
    std::fs::write(&secret, "hunter2").unwrap();
    let (code, stdout, stderr) = outcome(&mut command);
    assert_eq!(code, Some(1));
    let path = secret.display();
    let complaint = format!("{path}: the secret has 7 bytes, but HS256 needs at least 32\n");
    assert!(stderr.ends_with(&complaint), "{stderr}");
    assert!(!stdout.contains("hunter2") && !stderr.contains("hunter2"));
    command.env("SWITCHBOARD__AUTH__SECRET_FILE", "/no/such/file");
    let (code, _, stderr) = outcome(&mut command);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("/no/such/file: cannot be read"), "{stderr}");
}

#[test]
fn a_token_is_issued_and_verified() {
    let secret = settings_file("token-secret", "0123456789abcdef0123456789abcdef");
    let token = |arguments: &[&str]| {
        let mut command = switchboard(&["token"]);
        command.args(arguments);
        command.env("SWITCHBOARD__AUTH__MODE", "jwt");
        command.env("SWITCHBOARD__AUTH__SECRET_FILE", &secret);
        outcome(&mut command)
    };
    let (code, issued, _) = token(&["issue", "--subject", "alice", "--expires-in", "10m"]);
    assert_eq!(
        (code, issued.matches('.').count()),
        (Some(0), 2),
        "{issued}"
    );
    let issued = issued.trim();
    let (code, stdout, _) = token(&["verify", issued]);
    assert_eq!(code, Some(0));
    assert!(
        stdout.starts_with("subject \"alice\", valid for 6"),
        "{stdout}"
    );
    let refused = |token: (Option<i32>, String, String), reason: &str| {
        let complaint = format!("switchboard: invalid token: {reason}\n");
        assert_eq!(token, (Some(1), String::new(), complaint));
    };
    let spoilt = issued.replacen('.', ".x", 1);
    let unsigned = "wrong signature: no key for HS256 has signed it";
    refused(token(&["verify", &spoilt]), unsigned);
    // Valid only because of the leeway.
    let (_, old, _) = token(&["issue", "--subject", "alice", "--expires-in", "0s"]);
    std::fs::write(&secret, "another-secret-0123456789abcdef0").unwrap();
    refused(token(&["verify", old.trim()]), unsigned);
}

/// A token of the secret of [`the_reason_of_an_invalid_token_is_named`].
fn signed(head: &str, claims: &str) -> String {
    let text = [head, claims].map(|part| BASE64URL_NOPAD.encode(part.as_bytes()));
    let text = text.join(".");
    let key = b"0123456789abcdef0123456789abcdef";
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key);
    let signature = ring::hmac::sign(&key, text.as_bytes());
    format!("{text}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
}

#[test]
fn the_reason_of_an_invalid_token_is_named() {
    let secret = settings_file("token-reasons", "0123456789abcdef0123456789abcdef");
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let head = r#"{"alg":"HS256"}"#;
    let far = format!(r#""exp":{},"iss":"us","aud":"relay""#, now + 600);
    let claims = |more: &str| signed(head, &format!("{{{far}{more}}}"));
    let replaced = |from: &str, to: &str| signed(head, &format!("{{{far}}}").replace(from, to));
    let past = format!(r#"{{"exp":{},"iss":"us","aud":"relay"}}"#, now - 100);
    let good = claims("");
    let (text, signature) = good.rsplit_once('.').unwrap();
    let forged = format!("{text}.{}", signature.chars().rev().collect::<String>());
    for (token, reason) in [
        (signed(head, &past), "expired 10"),
        (
            claims(&format!(r#","nbf":{}"#, now + 500)),
            "not valid before ",
        ),
        (
            claims(r#","nbf":"soon""#),
            r#"nbf is "soon", expected seconds"#,
        ),
        (
            replaced("relay", "x"),
            r#"aud is "x", expected "relay" (auth.audience)"#,
        ),
        (
            replaced(r#""relay""#, r#"["a","b"]"#),
            r#"aud is ["a","b"], expected "relay" (auth.audience)"#,
        ),
        (
            replaced("aud", "dua"),
            r#"aud is missing, expected "relay""#,
        ),
        (
            replaced("us", "them"),
            r#"iss is "them", expected "us" (auth.issuer)"#,
        ),
        (replaced("exp", "pxe"), "exp is missing, expected seconds"),
        (claims(r#","sub":42"#), "sub is 42, expected a text"),
        (
            signed(r#"{"alg":"HS384"}"#, "{}"),
            "unknown key: alg is HS384, and the known keys are for: HS256",
        ),
        (
            signed(r#"{"alg":"none"}"#, "{}"),
            r#"its head is not supported: alg is "none""#,
        ),
        (signed(head, "[]"), "malformed: its claims are not"),
        (signed("{", "{}"), "malformed: its head is not JSON"),
        (forged, "wrong signature: no key for HS256 has signed it"),
        (
            "one.two".to_owned(),
            "malformed: 2 parts between dots, expected 3",
        ),
        (good, ""),
    ] {
        let mut command = switchboard(&["token", "verify", &token]);
        command.env("SWITCHBOARD__AUTH__MODE", "jwt");
        command.env("SWITCHBOARD__AUTH__SECRET_FILE", &secret);
        command.env("SWITCHBOARD__AUTH__AUDIENCE", "relay");
        command.env("SWITCHBOARD__AUTH__ISSUER", "us");
        let (code, _, stderr) = outcome(&mut command);
        if reason.is_empty() {
            assert_eq!((code, &*stderr), (Some(0), ""));
            continue;
        }
        assert_eq!(code, Some(1), "{stderr}");
        let begin = format!("switchboard: invalid token: {reason}");
        assert!(stderr.starts_with(&begin), "{reason:?}: {stderr}");
    }
}

#[test]
fn check_refuses_a_token_that_no_header_can_carry() {
    let file = settings_file("admin-token", "");
    let keys = ["token_file", "metrics_token_file"];
    let cases = [
        ("hunter2-hunter22", 0),
        ("hunter2-hunter2\n", 0),
        ("hunter2\nhunter2\n", 1),
        (" hunter2", 1),
        ("hunter2 hunter2", 1),
        ("hünter2", 1),
    ];
    for (key, (text, code)) in keys.iter().flat_map(|key| cases.map(|case| (key, case))) {
        fs::write(&file, text).unwrap();
        let mut command = switchboard(&["check"]);
        command.env("SWITCHBOARD__ADMIN__LISTEN", "127.0.0.1:9090");
        let variable = format!("SWITCHBOARD__ADMIN__{}", key.to_uppercase());
        command.env(variable, &file);
        let (found, stdout, stderr) = outcome(&mut command);
        assert_eq!(found, Some(code), "{text:?}: {stderr}");
        let path = file.display();
        let complaint = format!("{path} (admin.{key}): is more than one line of visible ASCII\n");
        assert_eq!(stderr.ends_with(&complaint), code == 1, "{stderr}");
        let warning =
            format!("admin.{key}: 15 bytes can be guessed, because nothing limits the rate of");
        let is_short = text == "hunter2-hunter2\n";
        assert_eq!(stderr.contains(&warning), is_short, "{text:?}: {stderr}");
        assert!(!stdout.contains("nter2") && !stderr.contains("nter2"));
    }
}

#[test]
fn check_reads_the_credentials_for_nats() {
    let file = settings_file("no-pem", "hunter2");
    let file = file.to_str().unwrap();
    for (key, path, why) in [
        (
            "TOKEN_FILE",
            "/no/such/file",
            "(cluster.token_file): cannot be read",
        ),
        (
            "NKEY_FILE",
            file,
            "has no seed of an nkey (cluster.nkey_file)",
        ),
        (
            "TLS_CA_FILE",
            "/no/such/file",
            "(cluster.tls_ca_file): cannot be read",
        ),
        (
            "TLS_CA_FILE",
            file,
            "has no certificate in PEM (cluster.tls_ca_file)",
        ),
    ] {
        let mut command = switchboard(&["check"]);
        command.env(format!("SWITCHBOARD__CLUSTER__{key}"), path);
        assert_eq!(
            outcome(&mut command).0,
            Some(0),
            "{key} is not read without nats_url"
        );
        command.env("SWITCHBOARD__CLUSTER__NATS_URL", "nats://127.0.0.1:4222");
        let (code, _, stderr) = outcome(&mut command);
        assert_eq!(code, Some(1), "{key}");
        assert!(stderr.contains(path) && stderr.contains(why), "{stderr}");
        assert!(!stderr.contains("hunter2"), "{stderr}");
    }
}

#[test]
fn a_token_is_issued_by_the_algorithm_of_the_key() {
    let key = rcgen::KeyPair::generate().unwrap();
    let private = settings_file("token-private.pem", &key.serialize_pem());
    let public = settings_file("token-public.pem", &key.public_key_pem());
    let secret = settings_file("token-shared", "0123456789abcdef0123456789abcdef");
    let token = |arguments: &[&str], algorithm: &str| {
        let mut command = switchboard(&["token"]);
        command.args(arguments);
        command.env("SWITCHBOARD__AUTH__MODE", "jwt");
        command.env("SWITCHBOARD__AUTH__SECRET_FILE", &secret);
        command.env("SWITCHBOARD__AUTH__PUBLIC_KEY_FILE", &public);
        command.env("SWITCHBOARD__AUTH__ALGORITHM", algorithm);
        outcome(&mut command)
    };
    let by_secret = ["issue", "--subject", "alice"];
    let by_key = [&by_secret[..], &["--key-file", private.to_str().unwrap()]].concat();
    for (arguments, algorithm) in [
        (&by_secret[..], ""),
        (&by_secret, "ES256"),
        (&by_key, ""),
        (&by_key, "ES256"),
        (&by_key, "HS256"),
    ] {
        let (code, issued, stderr) = token(arguments, algorithm);
        assert_eq!(code, Some(0), "{arguments:?} {algorithm}: {stderr}");
        let (code, _, stderr) = token(&["verify", issued.trim()], algorithm);
        assert_eq!(code, Some(0), "{arguments:?} {algorithm}: {stderr}");
    }
    let (code, _, stderr) = token(&by_key, "RS256");
    assert_eq!(code, Some(1));
    assert!(
        stderr.ends_with("the key does not fit RS256 (auth.algorithm)\n"),
        "{stderr}"
    );
    std::fs::write(&private, "-----BEGIN EC PRIVATE KEY-----\nhunter2\n").unwrap();
    let (code, _, stderr) = token(&by_key, "");
    assert_eq!(code, Some(1));
    let complaint = ": not a private key in PEM (RSA; P-256, P-384 or Ed25519 in PKCS #8)\n";
    assert!(stderr.ends_with(complaint), "{stderr}");
}

/// A relay has a task that fetches keys. The verb has none, so it must run the refresher itself.
#[test]
fn a_token_of_an_unknown_key_makes_verify_fetch_the_set_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    let again = listener.try_clone().unwrap();
    let server = thread::spawn(move || {
        for listener in [listener, again] {
            answering(listener, answer).join().unwrap();
        }
    });
    let head = BASE64URL_NOPAD.encode(br#"{"alg":"ES256","kid":"unknown"}"#);
    let mut command = switchboard(&["token", "verify", &format!("{head}.e30.AAAA")]);
    command.env("SWITCHBOARD__AUTH__MODE", "jwt");
    command.env("SWITCHBOARD__AUTH__JWKS_URL", url);
    command.env("SWITCHBOARD__AUTH__JWKS_TIMEOUT", "15s");
    let begin = Instant::now();
    let (code, _, stderr) = outcome(&mut command);
    assert_eq!(code, Some(1));
    let unknown = r#"unknown key: kid is "unknown", and the known ids are []"#;
    assert!(
        stderr.ends_with(&format!("invalid token: {unknown}\n")),
        "{stderr}"
    );
    assert!(
        begin.elapsed() < Duration::from_secs(15),
        "the refresher fetched the set without a wait"
    );
    server.join().unwrap();
}

#[test]
fn a_wrong_configuration_ends_with_78_before_anything_is_bound() {
    // The address is taken: a program that binds it fails with another code.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let file = settings_file("wrong.toml", "[limits]\nhandshakes = \"lots\"\n");
    let file = file.to_str().unwrap();
    let arguments = ["--listen", &taken, "--config", file];
    for verb in [&[] as &[&str], &["serve"], &["check"], &["healthcheck"]] {
        let mut command = switchboard(verb);
        command
            .args(arguments)
            .env("SWITCHBOARD__DRAIN__DELYA", "1s");
        let (code, stdout, stderr) = outcome(&mut command);
        assert_eq!((code, &*stdout), (Some(78), ""), "{verb:?}");
        let lines: Vec<_> = stderr.lines().collect();
        assert_eq!(
            lines,
            [
                "switchboard: invalid configuration",
                &format!(
                    "  {file}: limits.handshakes: found \"lots\", allowed: a whole number from 1 to 1048576"
                ),
                "  SWITCHBOARD__DRAIN__DELYA: drain.delya: unknown key, allowed: drain.delay, \
                 drain.spread, drain.timeout (did you mean drain.delay?)",
            ],
            "{verb:?}"
        );
    }
    let (code, _, stderr) = outcome(switchboard(&["--listen", &taken]).arg("serve"));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(&taken), "{stderr}");
}

#[test]
fn an_unreadable_file_ends_with_78() {
    let mut command = switchboard(&["check", "--config", "no/such.toml"]);
    command.env("SWITCHBOARD__LOG__FILTER", OsStr::from_bytes(b"inf\xf6"));
    let (code, _, stderr) = outcome(&mut command);
    assert_eq!(code, Some(78));
    assert!(
        stderr.contains("\n  no/such.toml: cannot be read: No such file"),
        "{stderr}"
    );
    assert!(
        stderr.contains("\n  SWITCHBOARD__LOG__FILTER: cannot be read: is not UTF-8"),
        "{stderr}"
    );

    let file = settings_file("broken.toml", "[limits\n");
    let (code, _, stderr) = outcome(switchboard(&["check", "--config"]).arg(&file));
    assert_eq!(code, Some(78));
    assert!(stderr.contains("broken.toml: invalid TOML: "), "{stderr}");
    assert!(stderr.contains("line 1"), "{stderr}");
}

/// Answers one request with this. The thread returns the request.
fn answering(listener: TcpListener, answer: &'static str) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = String::new();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while !request.ends_with("\r\n\r\n") && reader.read_line(&mut request).unwrap() > 0 {}
        stream.write_all(answer.as_bytes()).unwrap();
        request
    })
}

#[test]
fn healthcheck_asks_the_admin_listener_if_there_is_one_else_the_first() {
    let nowhere = free_address().to_string();
    for admin in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = answering(listener, "HTTP/1.1 200 OK\r\n\r\n");
        // A listener on all addresses is reachable on the loopback address.
        let address = format!("0.0.0.0:{port}");
        let mut command = switchboard(&["healthcheck"]);
        if admin {
            command.env("SWITCHBOARD__ADMIN__LISTEN", &address);
            command.env("SWITCHBOARD__SERVER__LISTEN", &nowhere);
        } else {
            command.env(
                "SWITCHBOARD__SERVER__LISTEN",
                format!("{address},{nowhere}"),
            );
        }
        assert_eq!(
            outcome(&mut command),
            (Some(0), String::new(), String::new())
        );
        let request = server.join().unwrap();
        assert!(request.starts_with("GET /livez HTTP/1.1\r\n"), "{request}");
        assert!(
            request.contains(&format!("\r\nhost: 127.0.0.1:{port}\r\n")),
            "{request}"
        );
    }
}

#[test]
fn healthcheck_ends_with_1_and_the_reason_unless_it_is_200() {
    let cut_short = "connection closed before message completed";
    for (answer, reason) in [
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "503"),
        ("HTTP/1.1 2", cut_short),
        ("", cut_short),
        ("220 ready\r\n", "invalid HTTP version parsed"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = answering(listener, answer);
        let (code, _, stderr) = outcome(&mut switchboard(&["healthcheck", "--listen", &address]));
        assert_eq!(code, Some(1), "{answer:?}");
        let url = format!("http://{address}/livez");
        let begin = match reason {
            "503" => format!("switchboard: {url} answers 503 Service Unavailable\n"),
            _ => format!("switchboard: cannot ask {url}: "),
        };
        assert!(stderr.starts_with(&begin), "{stderr}");
        assert!(stderr.contains(reason), "{stderr}");
        server.join().unwrap();
    }
    let nobody = free_address().to_string();
    let (code, _, stderr) = outcome(&mut switchboard(&["healthcheck", "--listen", &nobody]));
    assert_eq!(code, Some(1));
    assert!(
        stderr.starts_with(&format!("switchboard: cannot ask http://{nobody}/livez: ")),
        "{stderr}"
    );
}

#[test]
fn healthcheck_does_not_wait_for_long() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let (code, _, stderr) = outcome(&mut switchboard(&["healthcheck", "--listen", &address]));
    assert_eq!(code, Some(1));
    assert_eq!(
        stderr,
        format!("switchboard: http://{address}/livez does not answer within 3s\n")
    );
}

/// A relay in a process of its own, killed with the test.
pub(crate) struct Served {
    pub(crate) process: Child,
    pub(crate) address: SocketAddr,
}

impl Served {
    /// A relay that answers. Its `drain.delay` is so long that only a second signal or SIGINT ends it soon.
    fn start() -> Self {
        Self::start_with("SWITCHBOARD__DRAIN__DELAY", "10m")
    }

    fn start_with(variable: &str, value: &str) -> Self {
        let address = free_address();
        let process = switchboard(&["--listen", &address.to_string()])
            .env("SWITCHBOARD__DRAIN__DELAY", "10m")
            .env("SWITCHBOARD__DRAIN__TIMEOUT", "11m")
            .env(variable, value)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let served = Self { process, address };
        eventually(|| {
            served
                .get("/livez")?
                .starts_with("HTTP/1.1 200 ")
                .then_some(())
        });
        served
    }

    pub(crate) fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &id])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Sends a signal to a process that may just have ended.
    fn signal_if_running(&self, name: &str) {
        let id = self.process.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).output();
        drop(sent.unwrap());
    }

    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        eventually(|| self.process.try_wait().unwrap()).code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Fails if the process has ended, and then there is nothing to kill.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[test]
fn healthcheck_finds_a_server_alive_and_its_drain_too() {
    let served = Served::start();
    let address = served.address.to_string();
    let mut check = switchboard(&["healthcheck", "--listen", &address]);
    assert_eq!(outcome(&mut check).0, Some(0));
    served.signal("TERM");
    eventually(|| {
        served
            .get("/readyz")?
            .starts_with("HTTP/1.1 503 ")
            .then_some(())
    });
    assert_eq!(outcome(&mut check).0, Some(0));
}

#[test]
fn the_worker_threads_are_as_many_as_the_setting_says() {
    let served = Served::start_with("SWITCHBOARD__SERVER__WORKER_THREADS", "3");
    let tasks = format!("/proc/{}/task", served.process.id());
    let workers = || {
        let names = fs::read_dir(&tasks).unwrap().map(|task| {
            let name = task.unwrap().path().join("comm");
            fs::read_to_string(name).unwrap_or_default()
        });
        names.filter(|name| name.starts_with("tokio")).count()
    };
    // A thread takes its name only after its start. Threads of the pool for blocking work have the same name and start
    // only when there is such work.
    eventually(|| (workers() >= 3).then_some(()));
    assert_eq!(workers(), 3);
}

/// A trusted proxy has to begin with a header, and from the same machine the check has the proxy's address.
#[test]
fn healthcheck_speaks_the_proxy_protocol_where_its_address_is_trusted() {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["relay.test".to_owned()]).unwrap();
    let cert = settings_file("health-cert.pem", &cert.pem());
    let key = settings_file("health-key.pem", &signing_key.serialize_pem());
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    for (trusted, tls) in [
        ("127.0.0.0/8", false),
        ("127.0.0.0/8", true),
        ("10.0.0.0/8", false),
        ("10.0.0.0/8", true),
    ] {
        let address = free_address();
        let command = |verb: &str| {
            let mut command = switchboard(&[verb, "--listen", &address.to_string()]);
            command.env("SWITCHBOARD__SERVER__PROXY_PROTOCOL", "true");
            command.env("SWITCHBOARD__SERVER__TRUSTED_PROXIES", trusted);
            if tls {
                command.env("SWITCHBOARD__SERVER__TLS__CERT_FILE", cert);
                command.env("SWITCHBOARD__SERVER__TLS__KEY_FILE", key);
            }
            command
        };
        let process = command("serve").stderr(Stdio::null()).spawn().unwrap();
        let served = Served { process, address };
        eventually(|| TcpStream::connect(served.address).ok());
        let checked = outcome(&mut command("healthcheck"));
        assert_eq!(
            checked,
            (Some(0), String::new(), String::new()),
            "{trusted}, tls {tls}"
        );
    }
}

#[test]
fn sigterm_drains_and_ends_with_0() {
    let address = free_address();
    let mut command = switchboard(&["serve", "--listen", &address.to_string()]);
    command
        .env("SWITCHBOARD__DRAIN__DELAY", "0s")
        .stderr(Stdio::null());
    let mut served = Served {
        process: command.spawn().unwrap(),
        address,
    };
    eventually(|| served.get("/livez"));
    served.signal("TERM");
    assert_eq!(served.exit_code(), Some(0));
}

#[test]
fn sigint_skips_the_delay_and_ends_with_0() {
    let mut served = Served::start();
    served.signal("INT");
    assert_eq!(served.exit_code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once_with_its_number() {
    for (second, code) in [("TERM", 143), ("INT", 130)] {
        let mut served = Served::start();
        served.signal("TERM");
        eventually(|| {
            served
                .get("/readyz")?
                .starts_with("HTTP/1.1 503 ")
                .then_some(())
        });
        served.signal(second);
        assert_eq!(served.exit_code(), Some(code));
    }
}

/// Makes a handshake, sends `said`, and returns all bytes received until they contain `word`.
fn hear(users: SocketAddr, target: &str, fields: &str, said: &str, word: &str) -> String {
    let mut stream = TcpStream::connect(users).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    write!(
        stream,
        "GET {target} HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    )
    .unwrap();
    if !said.is_empty() {
        // One text frame, masked with zeros.
        let length = u8::try_from(said.len()).unwrap();
        let head = [0x81, 0x80 | length, 0, 0, 0, 0];
        stream
            .write_all(&[&head, said.as_bytes()].concat())
            .unwrap();
    }
    let mut heard = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&heard).into_owned();
        if text.contains(word) {
            return text;
        }
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "no {word:?} in {text:?}");
        heard.extend_from_slice(&piece[..count]);
    }
}

/// A relay with a log that can be read while it runs.
struct Logged {
    served: Served,
    log: PathBuf,
}

impl Logged {
    fn start(name: &str, settings: &[(&str, &str)]) -> Self {
        let (address, log) = (free_address(), settings_file(name, ""));
        let process = switchboard(&["--listen", &address.to_string()])
            .envs(settings.iter().copied())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let served = Served { process, address };
        eventually(|| TcpStream::connect(address).ok());
        Self { served, log }
    }

    /// The lines that contain all words.
    fn lines(&self, words: &[&str]) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap();
        let lines = log
            .lines()
            .filter(|line| words.iter().all(|word| line.contains(word)));
        lines.map(str::to_owned).collect()
    }

    fn up_to(&self, words: &[&str]) -> String {
        eventually(|| self.lines(words).pop())
    }

    /// A user that has joined and reads nothing more.
    fn user(&self) -> TcpStream {
        let (stream, status) = handshake(self.served.address);
        assert_eq!(status, "101");
        stream
    }
}

/// The id of a user that joins.
fn joined_id(address: SocketAddr) -> String {
    let heard = hear(address, "/", "", "", "\r\n\r\n").to_ascii_lowercase();
    let (_, id) = heard.split_once("x-user-id: ").unwrap();
    id.split("\r\n").next().unwrap().to_owned()
}

/// A folder of this name that contains only a file with a secret, whose path is returned.
fn secret_alone(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    drop(fs::remove_dir_all(&folder));
    fs::create_dir(&folder).unwrap();
    let secret = folder.join("secret");
    fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    secret
}

/// Old owners come back with tickets, and messages for their ids must not reach a stranger until then.
#[test]
fn no_id_of_an_earlier_process_is_given_to_a_new_user() {
    let secret = secret_alone("ids-restart");
    let settings = [(
        "SWITCHBOARD__TICKETS__SECRET_FILE",
        secret.to_str().unwrap(),
    )];
    for (signal, ids) in [
        ("KILL", ["1", "2"]),
        ("INT", ["1001", "1002"]),
        ("KILL", ["2001", "2002"]),
    ] {
        let mut logged = Logged::start("ids-restart.log", &settings);
        let address = logged.served.address;
        assert_eq!([(); 2].map(|()| joined_id(address)), ids);
        logged.served.signal(signal);
        logged.served.exit_code();
        assert_eq!(logged.lines(&["WARN"]), [""; 0]);
    }
    // Without the secret, no ticket outlives the process, and the file is not used.
    let logged = Logged::start("ids-restart.log", &[]);
    assert_eq!(joined_id(logged.served.address), "1");
    drop(logged);
    fs::write(secret.with_extension("ids"), "many").unwrap();
    for verb in ["check", "serve"] {
        let (code, _, stderr) = outcome(switchboard(&[verb]).envs(settings));
        assert_eq!(code, Some(1), "{stderr}");
        assert!(
            stderr.contains("no number from 1 to 9007199254740991"),
            "{stderr}"
        );
    }
}

#[test]
fn the_file_of_ids_stays_ahead_of_those_that_are_given() {
    let secret = secret_alone("ids-ahead");
    let settings = [(
        "SWITCHBOARD__TICKETS__SECRET_FILE",
        secret.to_str().unwrap(),
    )];
    let logged = Logged::start("ids-ahead.log", &settings);
    let ids = secret.with_extension("ids");
    let until = |number: &str| {
        eventually(|| (fs::read_to_string(&ids).ok()?.trim() == number).then_some(()));
    };
    until("1000");
    // It is written again when half of them are used up.
    for id in 1..=501 {
        assert_eq!(joined_id(logged.served.address), id.to_string());
    }
    until("1501");
}

#[test]
fn a_secret_whose_folder_cannot_be_written_gets_a_warning() {
    // A folder in /proc takes no files, not even of root.
    let settings = [
        ("SWITCHBOARD__TICKETS__SECRET_FILE", "/proc/self/environ"),
        ("PADDING_OF_THE_SECRET", "0123456789abcdef0123456789abcdef"),
    ];
    let warning = "new users can get ids whose owners come back with a ticket";
    let (code, _, stderr) = outcome(switchboard(&["check"]).envs(settings));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains(warning), "{stderr}");
    let clustered = ("SWITCHBOARD__CLUSTER__NATS_URL", "nats://127.0.0.1:4222");
    let (code, _, stderr) = outcome(switchboard(&["check"]).envs(settings).envs([clustered]));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(!stderr.contains(warning), "{stderr}");
    let logged = Logged::start("ids-unwritable.log", &settings);
    logged.up_to(&["WARN", warning]);
    assert_eq!(logged.lines(&["WARN", warning]).len(), 1);
    assert_eq!(joined_id(logged.served.address), "1");
}

/// Makes a handshake. Returns the connection and the status of the response.
fn handshake(address: SocketAddr) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(
            b"GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    let status = str::from_utf8(&head[9..]).unwrap().to_owned();
    (stream, status)
}

#[test]
fn the_first_line_has_the_urls_of_the_listeners() {
    let logged = Logged::start("start-text", &[]);
    let url = format!("http://{}", logged.served.address);
    let line = logged.up_to(&["listening"]);
    assert!(line.contains(&format!("urls=[\"{url}\"]")), "{line}");

    let admin = free_address().to_string();
    for (admin, expected) in [("", None), (&*admin, Some(format!("http://{admin}")))] {
        let settings = [
            ("SWITCHBOARD__LOG__FORMAT", "json"),
            ("SWITCHBOARD__ADMIN__LISTEN", admin),
        ];
        let logged = Logged::start("start-json", &settings);
        let line: serde_json::Value = serde_json::from_str(&logged.up_to(&["listening"])).unwrap();
        let url = format!("http://{}", logged.served.address);
        assert_eq!(line["urls"], serde_json::json!([url]));
        assert_eq!(line.get("admin"), Some(&serde_json::json!(expected)));
        assert!(line["connections_max"].is_u64(), "{line}");
    }
}

#[test]
fn a_drain_after_sigint_tells_each_second_how_many_users_are_left() {
    let settings = [
        ("SWITCHBOARD__DRAIN__SPREAD", "10m"),
        ("SWITCHBOARD__DRAIN__TIMEOUT", "11m"),
    ];
    let mut logged = Logged::start("drain-int", &settings);
    let users = [logged.user(), logged.user()];
    logged.served.signal("INT");
    let words = ["users=", "a second Ctrl-C ends at once"];
    eventually(|| (logged.lines(&words).len() >= 3).then_some(()));
    logged.served.signal("INT");
    assert_eq!(logged.served.exit_code(), Some(130));
    drop(users);
}

#[test]
fn a_node_without_room_warns_once_of_each_kind() {
    let settings = [
        ("SWITCHBOARD__LIMITS__CONNECTIONS", "2"),
        ("SWITCHBOARD__LIMITS__HANDSHAKES", "2"),
        ("SWITCHBOARD__MAILBOX__MESSAGES", "1"),
    ];
    let logged = Logged::start("no-room", &settings);
    let address = logged.served.address;
    let (reader, mut writer) = (logged.user(), logged.user());
    let full = ["WARN", "the node is full", "limits.connections"];
    logged.up_to(&full);
    for _ in 0..3 {
        assert_eq!(handshake(address).1, "503");
    }
    let silent: Vec<_> = (0..6)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    let evicting = ["WARN", "limits.handshakes", "evicted="];
    logged.up_to(&evicting);
    // More than the kernel holds for a user that does not read.
    let message = format!(r#"{{"recipient_id":1,"message":"{}"}}"#, "m".repeat(60_000));
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    let frame = [
        &[0x81, 0xfe, length[0], length[1], 0, 0, 0, 0],
        message.as_bytes(),
    ]
    .concat();
    for _ in 0..200 {
        writer.write_all(&frame).unwrap();
    }
    let dropping = [
        "WARN",
        "messages are dropped",
        "mailbox.total_bytes",
        "dropped=",
    ];
    logged.up_to(&dropping);
    for words in [&full[..], &evicting, &dropping] {
        assert_eq!(logged.lines(words).len(), 1, "{words:?}");
    }
    drop((reader, silent));
}

/// A relay that logs everything, and a thread that returns its log.
fn verbose(settings: &[(&str, &str)], address: SocketAddr) -> (Served, thread::JoinHandle<String>) {
    let mut command = switchboard(&["--listen", &address.to_string()]);
    command
        .envs(settings.iter().copied())
        .env("SWITCHBOARD__LOG__FILTER", "trace")
        .stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let mut stderr = process.stderr.take().unwrap();
    let log = thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        text
    });
    eventually(|| TcpStream::connect(address).ok());
    (Served { process, address }, log)
}

/// The response to an operator's message with this token.
pub(crate) fn post(admin: SocketAddr, token: &str, body: &str) -> String {
    let length = body.len();
    let head = format!(
        "POST /api/messages HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\
         Authorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    exchange(admin, &(head + body))
}

/// At level trace, with valid and invalid tokens in each place, a ticket, and messages of users and of an
/// operator. Each of them and each secret contains the word that the test searches for, or is searched for.
#[test]
fn no_token_secret_message_or_query_is_ever_logged() {
    let text = |name: &str| format!("hunter2-{name}-0123456789abcdef0123456789");
    let file = |name: &str| settings_file(name, &text(name)).display().to_string();
    let (users, admin) = (free_address(), free_address());
    let settings = [
        ("SWITCHBOARD__AUTH__MODE", "jwt"),
        ("SWITCHBOARD__AUTH__SECRET_FILE", &file("log-jwt")),
        ("SWITCHBOARD__AUTH__QUERY_TOKEN", "true"),
        ("SWITCHBOARD__TICKETS__SECRET_FILE", &file("log-tickets")),
        ("SWITCHBOARD__ADMIN__LISTEN", &admin.to_string()),
        ("SWITCHBOARD__ADMIN__TOKEN_FILE", &file("log-admin")),
    ];
    let mut issue = switchboard(&["token", "issue", "--subject", "hunter2"]);
    let token = outcome(issue.envs(settings)).1.trim().to_owned();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let forged = format!("{signed}.{}", "hunter2".repeat(6));
    let (mut served, log) = verbose(&settings, users);

    let v1 = "Sec-WebSocket-Protocol: switchboard.v1";
    let said = r#"{"recipient_id":1,"message":"hunter2"}"#;
    let fields = format!("{v1}\r\nAuthorization: Bearer {token}\r\n");
    let heard = hear(users, "/?hunter2", &fields, said, r#""message":"hunter2""#);
    let (_, ticket) = heard.split_once(r#""ticket":""#).unwrap();
    let (ticket, _) = ticket.split_once('"').unwrap();
    let fields = format!("{v1}, bearer.{token}, ticket.{ticket}\r\n");
    hear(users, "/", &fields, "", r#""resumed":true"#);
    let target = format!("/?token={token}");
    hear(users, &target, "", "{hunter2", "not a JSON object");
    for (target, fields) in [
        ("/", format!("{v1}\r\nAuthorization: Bearer {forged}\r\n")),
        ("/", format!("{v1}, bearer.{forged}\r\n")),
        (&*format!("/?token={forged}"), String::new()),
    ] {
        hear(users, target, &fields, "", "401 Unauthorized");
    }
    let body = r#"{"recipient_id":9,"message":"hunter2"}"#;
    for (given, code) in [("hunter2", 401), (&*text("log-admin"), 200)] {
        let answer = post(admin, given, body);
        let status = format!("HTTP/1.1 {code} ");
        assert!(answer.starts_with(&status), "{answer}");
    }
    served.signal("INT");
    assert_eq!(served.exit_code(), Some(0));
    let log = log.join().unwrap();
    assert_eq!(log.matches("upgrade accepted").count(), 3, "{log}");
    assert_eq!(log.matches("upgrade refused").count(), 3, "{log}");
    for secret in ["hunter2", signature, ticket, "token="] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

/// The test searches for the line of a refused upgrade, which has the level debug.
#[test]
fn the_api_changes_the_log_filter_and_sighup_restores_that_of_the_file() {
    let users = free_address();
    let admin = free_address();
    let token_file = settings_file("log-filter-token", "let-me-in\n");
    let token_path = token_file.to_str().unwrap();
    let file = settings_file(
        "log-filter.toml",
        &format!(
            "[server]\nlisten = [\"{users}\"]\n[admin]\nlisten = \"{admin}\"\n\
             token_file = \"{token_path}\"\n[log]\nfilter = \"info\"\n"
        ),
    );
    let mut command = switchboard(&["--config", file.to_str().unwrap()]);
    command.stderr(Stdio::piped());
    let mut served = Served {
        process: command.spawn().unwrap(),
        address: users,
    };
    let log = BufReader::new(served.process.stderr.take().unwrap());
    let (tell, lines) = mpsc::channel();
    thread::spawn(move || log.lines().try_for_each(|line| tell.send(line.unwrap())));
    // Lines come in order, so a line that does not come before a later one was not written.
    let up_to = |word: &str| {
        let mut seen = String::new();
        while !seen.contains(word) {
            let line = lines.recv_timeout(Duration::from_secs(20));
            seen += &line.unwrap_or_else(|_| panic!("no {word:?} in {seen:?}"));
        }
        seen
    };
    up_to("listening");
    eventually(|| served.get("/livez"));
    let set_filter = |filter: &str| set_log_filter(admin, filter);
    let refused = || ask_for_an_upgrade_without_a_key(users);
    let line = "upgrade refused";

    refused();
    set_filter("debug");
    let seen = up_to("has changed the log filter");
    assert!(!seen.contains(line), "{seen}");

    refused();
    up_to(line);

    set_filter("info,switchboard::http=warn");
    up_to("has changed the log filter");
    refused();
    set_filter("info,switchboard=debug");
    let seen = up_to("has changed the log filter");
    assert!(!seen.contains(line), "{seen}");
    refused();
    up_to(line);

    served.signal("HUP");
    up_to("settings reloaded");
    refused();
    // Level info is shown again by the filter of the file.
    set_filter("off");
    let seen = up_to("changes the log filter");
    assert!(!seen.contains(line), "{seen}");

    refused();
    served.signal("HUP");
    let seen = up_to("settings reloaded");
    assert!(
        !seen.contains(line) && !seen.contains("has changed"),
        "{seen}"
    );
}

#[test]
fn a_refused_origin_is_logged_once_with_the_setting_that_allows_it() {
    let settings = [("SWITCHBOARD__SERVER__ALLOWED_ORIGINS", "https://a.com")];
    let logged = Logged::start("log-origins", &settings);
    for (host, origin) in [
        ("relay", "https://b.com"),
        ("relay", "null"),
        ("relay", "https://b.com"),
        ("chat.test:80", "http://chat.test"),
        ("relay", "https://b.com/path"),
    ] {
        let head = format!(
            "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Origin: {origin}\r\n\r\n"
        );
        let answer = exchange(logged.served.address, &head);
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    }
    let lines = eventually(|| {
        let lines = logged.lines(&["page refused"]);
        (lines.len() >= 4).then_some(lines)
    });
    assert_eq!(lines.len(), 4, "{lines:?}");
    for (line, setting) in lines.iter().zip([
        r#"server.allowed_origins = ["https://a.com", "https://b.com"]"#,
        r#"server.allowed_origins = ["https://a.com", "null"]"#,
        r#"server.allowed_hosts = ["chat.test"]"#,
        "none, because this is not one origin",
    ]) {
        assert!(line.contains(" WARN "), "{line}");
        assert!(line.contains(setting), "{setting} in {line}");
    }
}

fn set_log_filter(admin: SocketAddr, filter: &str) {
    let body = format!(r#"{{"filter":"{filter}"}}"#);
    let length = body.len();
    let head = format!(
        "PUT /api/log-filter HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\
         Authorization: Bearer let-me-in\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    let answer = exchange(admin, &(head + &body));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with(&body), "{answer}");
}

fn ask_for_an_upgrade_without_a_key(users: SocketAddr) {
    let head = "GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade, close\r\n\
                Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n";
    let answer = exchange(users, head);
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn logs_go_to_stderr_in_the_format_of_the_settings() {
    let address = free_address();
    let mut command = switchboard(&["--listen", &address.to_string()]);
    command
        .env("SWITCHBOARD__LOG__FORMAT", "json")
        .stderr(Stdio::piped());
    let mut served = Served {
        process: command.spawn().unwrap(),
        address,
    };
    let mut line = String::new();
    BufReader::new(served.process.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    for field in ["timestamp", "level", "message"] {
        assert!(line[field].is_string(), "{field} in {line}");
    }
}

/// The program in a folder of this name that contains nothing else.
pub(crate) fn alone(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    drop(fs::remove_dir_all(&folder));
    fs::create_dir(&folder).unwrap();
    let relay = folder.join("switchboard");
    fs::hard_link(env!("CARGO_BIN_EXE_switchboard"), &relay).unwrap();
    relay
}

#[test]
fn bench_runs_the_program_beside_it_with_the_same_arguments_and_exit_code() {
    let relay = alone("bench-beside");
    // A shell script instead of the load generator: it prints its arguments and exits with a given code.
    symlink("/bin/sh", relay.with_file_name("switchboard-bench")).unwrap();
    let script = r#"echo "$@"; exit 7"#;
    let mut command = Command::new(&relay);
    command.args(["bench", "-c", script, "sh", "--json", "-h", "--", "--url=x"]);
    let (code, stdout, stderr) = outcome(&mut command);
    assert_eq!((code, &*stderr), (Some(7), ""));
    assert_eq!(stdout, "--json -h -- --url=x\n");
}

#[test]
fn bench_runs_the_program_on_path_if_none_is_beside_it() {
    let relay = alone("bench-path");
    let folder = relay.with_file_name("elsewhere");
    fs::create_dir(&folder).unwrap();
    symlink("/bin/sh", folder.join("switchboard-bench")).unwrap();
    let mut command = Command::new(&relay);
    command.args(["bench", "-c", "exit 9"]).env("PATH", &folder);
    assert_eq!(outcome(&mut command).0, Some(9));
}

#[test]
fn bench_without_its_program_tells_how_to_build_it() {
    let relay = alone("bench-missing");
    let folder = relay.parent().unwrap();
    for arguments in [&["bench"] as &[_], &["bench", "--help"]] {
        let mut command = Command::new(&relay);
        let (code, stdout, stderr) = outcome(command.args(arguments).env("PATH", folder));
        assert_eq!((code, &*stdout), (Some(1), ""));
        assert!(stderr.contains("switchboard-bench is neither"), "{stderr}");
        assert!(
            stderr.contains("`cargo install --locked --path benches/load`"),
            "{stderr}"
        );
    }
}

#[test]
fn a_second_signal_ends_a_slow_start_at_once() {
    // The start waits for this key server, which answers nothing.
    let keys = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/keys", keys.local_addr().unwrap());
    let address = free_address();
    let process = switchboard(&["--listen", &address.to_string()])
        .env("SWITCHBOARD__AUTH__MODE", "jwt")
        .env("SWITCHBOARD__AUTH__JWKS_URL", url)
        .env("SWITCHBOARD__AUTH__JWKS_TIMEOUT", "1m")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut starting = Served { process, address };
    let _request = keys.accept().unwrap();
    let begin = Instant::now();
    starting.signal("TERM");
    // Two signals that come at once may be one.
    assert!(starting.process.try_wait().unwrap().is_none());
    eventually(|| {
        starting.signal_if_running("TERM");
        starting.process.try_wait().unwrap()
    });
    assert_eq!(starting.exit_code(), Some(128 + 15));
    assert!(
        begin.elapsed() < Duration::from_secs(15),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn a_forwarding_header_of_a_stranger_is_logged_once() {
    let settings = [
        ("SWITCHBOARD__SERVER__PROXY_PROTOCOL", "true"),
        ("SWITCHBOARD__SERVER__TRUSTED_PROXIES", "10.0.0.0/8"),
    ];
    let logged = Logged::start("log-strangers", &settings);
    // A connection without a byte, such as a probe, has no header.
    drop(TcpStream::connect(logged.served.address).unwrap());
    for address in ["10.0.0.1", "10.0.0.2", "10.0.0.3"] {
        let fields = format!("X-Forwarded-For: {address}\r\nForwarded: for={address}\r\n");
        hear(logged.served.address, "/", &fields, "", "x-user-id");
    }
    // All of the above were logged before this one.
    hear(
        logged.served.address,
        "/",
        "Origin: https://b.com\r\n",
        "",
        "403",
    );
    logged.up_to(&["page refused"]);
    let lines = logged.lines(&["server.trusted_proxies"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("a forwarding header"), "{lines:?}");
}
