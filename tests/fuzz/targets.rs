//! The fuzz targets: each takes any bytes, and panics where something that must always hold does not. cargo-fuzz
//! runs them, and so does a plain test that replays the corpora and mutates them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{FORWARDED, HeaderName, HeaderValue};
use serde_json::value::RawValue;
use switchboard::admission::token_bucket::Rate;
use switchboard::auth::{self, Auth};
use switchboard::config::Overflow;
use switchboard::config::{AuthMode, ForwardedHeader, Settings, Sources};
use switchboard::directory::{Budget, Command, MailboxBounds};
use switchboard::http::TrustedProxies;
use switchboard::ledger::LedgerTotals;
use switchboard::net::proxy_protocol::{self, Parsed};
use switchboard::protocol::{Dialect, decode as decode_message};
use switchboard::relay::{Membership, Relay};
use switchboard::session::{Session, SessionConfig, SessionContext, Welcome};
use switchboard::telemetry::metrics::Metrics;
use switchboard::telemetry::traces::Traces;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::runtime::{Builder, Runtime};

/// A target and its name.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All targets.
pub(crate) const TARGETS: [Target; 6] = [
    ("decode", decode),
    ("configuration", configuration),
    ("session", session),
    ("proxy_header", proxy_header),
    ("forwarded_for", forwarded_for),
    ("token", token),
];

/// A message of a client: a decoded message means the same to `serde_json`.
pub(crate) fn decode(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for dialect in [Dialect::Bare, Dialect::V1] {
        if let Ok(inbound) = decode_message(text, dialect) {
            // Raw, because unknown members may hold lone surrogates, which the grammar allows and `String` does not.
            let members: BTreeMap<String, &RawValue> =
                serde_json::from_str(text).expect("it is a JSON object");
            let value = |name: &str| -> serde_json::Value {
                serde_json::from_str(members[name].get()).expect("a decoded member is JSON")
            };
            assert_eq!(value("recipient_id"), inbound.recipient.get());
            let message: String = serde_json::from_str(inbound.message).expect("a string");
            assert_eq!(value("message"), message);
            if let Some(id) = inbound.id {
                let id: serde_json::Value = serde_json::from_str(id).expect("an id is JSON");
                assert_eq!(value("id"), id);
            }
        }
    }
}

/// A file of settings: valid settings print as a file that resolves to the same settings.
pub(crate) fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let resolve = |text: &str| {
        let files = vec![("fuzz.toml".to_owned(), text.to_owned())];
        Settings::resolve(&Sources {
            files,
            ..Sources::default()
        })
    };
    match resolve(text) {
        Ok(settings) => {
            let again = resolve(&settings.to_string()).expect("printed settings are valid");
            assert_eq!(again, settings);
            let _said = settings.exposure_warnings();
        }
        Err(error) => assert!(!error.problems().is_empty()),
    }
}

/// A PROXY protocol header: its length is within the input, and each part of it counts as incomplete.
pub(crate) fn proxy_header(bytes: &[u8]) {
    if let Ok(Parsed::Header { length, .. }) = proxy_protocol::parse(bytes) {
        assert!(length <= bytes.len());
        for end in 1..length {
            assert_eq!(
                proxy_protocol::parse(&bytes[..end]),
                Ok(Parsed::Incomplete),
                "{end}"
            );
        }
    }
}

/// Forwarding headers, one a line: from a stranger they change nothing, and from a proxy the client is
/// never a proxy while another address was named behind it.
pub(crate) fn forwarded_for(bytes: &[u8]) {
    let ours: IpAddr = [10, 0, 0, 1].into();
    let stranger: IpAddr = [192, 0, 2, 1].into();
    for (header, name) in [
        (
            ForwardedHeader::XForwardedFor,
            HeaderName::from_static("x-forwarded-for"),
        ),
        (ForwardedHeader::Forwarded, FORWARDED),
    ] {
        let proxies = TrustedProxies::new(vec!["10.0.0.0/8".parse().expect("a network")], header);
        let mut headers = HeaderMap::new();
        for line in bytes.split(|byte| *byte == b'\n') {
            if let Ok(value) = HeaderValue::from_bytes(line) {
                headers.append(&name, value);
            }
        }
        assert_eq!(proxies.client_addr(stranger, &headers), stranger);
        let client = proxies.client_addr(ours, &headers);
        assert_eq!(client, client.to_canonical());
        // The proxy writes its entry into a header of its own, or at the end of the client's. In both cases
        // only that entry counts.
        let mut written = headers.clone();
        let entry = match header {
            ForwardedHeader::XForwardedFor => "198.51.100.7",
            ForwardedHeader::Forwarded => "for=198.51.100.7",
        };
        written.append(&name, HeaderValue::from_static(entry));
        let expected: IpAddr = [198, 51, 100, 7].into();
        assert_eq!(proxies.client_addr(ours, &written), expected);
        if let Some(value) = headers.get(&name) {
            let value = [value.as_bytes(), b", ", entry.as_bytes()].concat();
            let value = HeaderValue::from_bytes(&value).expect("a header with more of the kind");
            let written = HeaderMap::from_iter([(name, value)]);
            assert_eq!(proxies.client_addr(ours, &written), expected);
        }
    }
}

thread_local! {
    // Without I/O: with it, each step of the clock would make a system call.
    static RUNTIME: Runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    static AUTH: Auth = load_auth();
    // Shared by all runs, because registering the metrics costs more than a run. A ledger that balances after
    // each run balances in sum, too.
    static METRICS: Arc<Metrics> = Arc::new(Metrics::new(1));
}

fn load_auth() -> Auth {
    let name = format!(
        "switchboard-fuzz-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    );
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, [b'x'; 64]).expect("a file can be written");
    let mut settings = Settings::default().auth;
    settings.mode = AuthMode::Jwt;
    settings.secret_file = vec![path.clone()];
    let loading = async { Auth::load(&settings).await.expect("a secret").0 };
    let loaded = RUNTIME.with(|runtime| runtime.block_on(loading));
    std::fs::remove_file(&path).expect("the file was written");
    loaded
}

/// A token, in each place that may have one: no token is admitted, because the key has signed none.
pub(crate) fn token(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else {
        return;
    };
    for name in ["authorization", "sec-websocket-protocol"] {
        let name = HeaderName::from_static(name);
        let headers = HeaderMap::from_iter([(name, value.clone())]);
        let query = std::str::from_utf8(bytes).ok();
        let _tokens = auth::bearer_entries(&headers).count();
        let Some(token) = auth::token(&headers, query) else {
            continue;
        };
        let verified =
            AUTH.with(|auth| RUNTIME.with(|runtime| runtime.block_on(auth.verify(token))));
        assert!(
            verified.is_err(),
            "{token} was accepted without a signature"
        );
    }
}

/// One session. The bytes say what its client, a sender, the clock and the operator do, in any order. It ends,
/// the ledger balances, and its output is valid WebSocket.
pub(crate) fn session(bytes: &[u8]) {
    RUNTIME.with(|runtime| runtime.block_on(play(bytes)));
}

async fn join(relay: &Relay, dialect: Dialect) -> Membership {
    let membership = relay.join(dialect, None, None).await;
    membership.expect("an id is left")
}

async fn play(bytes: &[u8]) {
    let mut script = Script(bytes);
    let kind = script.byte();
    let dialect = if kind & 1 == 0 {
        Dialect::Bare
    } else {
        Dialect::V1
    };
    let overflow = match kind >> 1 & 3 {
        0 => Overflow::DropOldest,
        1 => Overflow::Disconnect,
        _ => Overflow::DropNewest,
    };
    let metrics = METRICS.with(Arc::clone);
    let bounds = MailboxBounds {
        messages: 8,
        bytes: 4096,
        max_age: Duration::MAX,
        overflow,
        budget: Budget::new(8192),
    };
    let relay = Relay::new(bounds, 3, metrics.clone(), Arc::new(Traces::off()));
    let context = Arc::new(SessionContext::new(config(kind), metrics.clone()));
    let membership = join(&relay, dialect).await;
    let client = membership.client().clone();
    let (ours, mut peer) = duplex(1 + usize::from(kind >> 4) * 100);
    let start = |io, membership| {
        let session = Session::new(io, &[], membership, &Welcome::default(), context.clone());
        tokio::spawn(session)
    };
    let session = start(ours, membership);
    let sender = relay.join(Dialect::Bare, None, None).await;
    let (from_sender, mut senders) = duplex(1 << 16);
    let sending = start(from_sender, sender.expect("an id is left"));

    let mut heard = Vec::new();
    while !script.0.is_empty() {
        step(&mut script, &mut peer, &mut senders, &client, &mut heard).await;
        tokio::task::yield_now().await;
    }
    // At the end everything is read, and no user is left.
    client.command(Command::Close {
        code: 1000,
        reason: "fuzz run over",
    });
    let rest = async {
        let _ended = peer.shutdown().await;
        let _read = peer.read_to_end(&mut heard).await;
        session.await.expect("a session does not panic");
        drop(senders);
        sending.await.expect("a session does not panic");
    };
    tokio::time::timeout(Duration::from_hours(1), rest)
        .await
        .expect("a session ends");
    let figures = LedgerTotals::read(&metrics, || relay.stats().mailbox_messages);
    assert_eq!((figures.gap(), figures.mailbox), (0, 0), "{figures:?}");
    assert_eq!(relay.users(), 0);
    check_frames(&heard);
}

fn config(kind: u8) -> SessionConfig {
    let rate = (kind & 8 != 0).then(|| Rate::per_second(4, 1));
    SessionConfig {
        ping_interval: Duration::from_secs(25),
        pong_timeout: Duration::from_secs(10),
        slowest_rate: 4096,
        write_timeout: Duration::from_secs(10),
        close_timeout: Duration::from_secs(5),
        message_bytes: 1024,
        frame_bytes: 2048,
        bad_messages: 4,
        outcomes_pending: 4,
        connection_age: None,
        message_rate: rate,
        byte_rate: rate,
        echo: false,
    }
}

async fn step(
    script: &mut Script<'_>,
    peer: &mut DuplexStream,
    sender: &mut DuplexStream,
    client: &switchboard::directory::Client,
    heard: &mut Vec<u8>,
) {
    let within = Duration::from_millis(1);
    match script.byte() % 8 {
        0 => {
            let bytes = script.take();
            let _taken = tokio::time::timeout(within, peer.write_all(bytes)).await;
        }
        1 | 2 => {
            let first = script.byte();
            let frame = frame(first, script.take());
            let _taken = tokio::time::timeout(within, peer.write_all(&frame)).await;
        }
        3 => {
            let text = "x".repeat(script.byte().into());
            let json = format!(
                "{{\"recipient_id\":{},\"message\":\"{text}\"}}",
                client.id()
            );
            let frame = frame(0x81, json.as_bytes());
            let _taken = tokio::time::timeout(within, sender.write_all(&frame)).await;
        }
        4 => {
            let mut room = [0; 256];
            let read = tokio::time::timeout(within, peer.read(&mut room)).await;
            if let Ok(Ok(count)) = read {
                heard.extend_from_slice(&room[..count]);
            }
        }
        5 => tokio::time::sleep(Duration::from_millis(100 * u64::from(script.byte()))).await,
        6 => {
            let _ended = peer.shutdown().await;
        }
        _ => client.command(match script.byte() % 3 {
            0 => Command::Restart {
                after_ms: 7,
                within_ms: 60_000,
            },
            1 => Command::Abort,
            _ => Command::Close {
                code: 1008,
                reason: "closed by script",
            },
        }),
    }
}

/// A frame with a mask of zeros and any first byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    if let Ok(short @ 0..126) = u8::try_from(payload.len()) {
        bytes.push(0x80 | short);
    } else {
        bytes.push(0xfe);
        let length = u16::try_from(payload.len()).expect("a script is short");
        bytes.extend_from_slice(&length.to_be_bytes());
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// Asserts that `bytes` are whole, unmasked and unfragmented frames of the kinds that the relay sends, with
/// nothing behind a close frame. The last frame may be incomplete, as the connection ended there.
fn check_frames(mut bytes: &[u8]) {
    while let [first, second, rest @ ..] = bytes {
        assert!(matches!(first, 0x81 | 0x88 | 0x89 | 0x8a), "{first:#x}");
        assert!(second & 0x80 == 0, "a mask");
        let (length, rest) = match (second, rest) {
            (126, [high, low, rest @ ..]) => (u16::from_be_bytes([*high, *low]).into(), rest),
            (126, _) => return,
            (short, rest) => (usize::from(*short), rest),
        };
        let Some((payload, rest)) = rest.split_at_checked(length) else {
            return;
        };
        match first {
            0x81 => {
                let text = std::str::from_utf8(payload).expect("a text frame is text");
                let value: serde_json::Value = serde_json::from_str(text).expect("it is JSON");
                assert!(value.is_object());
            }
            0x88 => assert!(rest.is_empty(), "something follows a close frame"),
            _ => {}
        }
        bytes = rest;
    }
}

/// The input as a source of decisions; zeros when it is used up.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        match self.0 {
            [first, rest @ ..] => {
                self.0 = rest;
                *first
            }
            [] => 0,
        }
    }

    /// Takes as many bytes as the next byte says, or 16 for each step above 199.
    fn take(&mut self) -> &'a [u8] {
        let length = match self.byte() {
            large @ 200.. => usize::from(large - 199) * 16,
            small => small.into(),
        };
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
