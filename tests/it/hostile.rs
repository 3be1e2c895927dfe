//! Attacks by peers, over real sockets. Each test ends with a balanced ledger and two well-behaved users that can
//! still talk.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::SockRef;
use switchboard::app::{App, Report, Stop};
use switchboard::auth;
use switchboard::config::{AuthMode, Secret, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// The time limit of each step of a test.
const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

struct Relay {
    addr: SocketAddr,
    stop: oneshot::Sender<Stop>,
    run: JoinHandle<Report>,
}

impl Relay {
    async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::default();
        settings.server.listen = vec!["127.0.0.1:0".parse().unwrap()];
        settings.keepalive.close_timeout = Duration::from_secs(1);
        settings.drain.spread = Duration::ZERO;
        change(&mut settings);
        let app = App::build(settings).await.unwrap();
        let addr = app.addrs()[0];
        let (stop, stopped) = oneshot::channel();
        let run = tokio::spawn(app.run(async { stopped.await.unwrap_or(Stop::DrainNow) }));
        Self { addr, stop, run }
    }

    /// A relay that requires a token signed with [`SECRET`].
    async fn start_with_secret(name: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let name = format!("hostile-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, SECRET).unwrap();
        let relay = Self::start(|settings| {
            settings.auth.mode = AuthMode::Jwt;
            settings.auth.secret_file = vec![path.clone()];
            change(settings);
        })
        .await;
        std::fs::remove_file(&path).unwrap();
        relay
    }

    /// The value of a series.
    async fn metric(&self, series: &str) -> u64 {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        let read = timeout(PATIENCE, stream.read_to_string(&mut text)).await;
        read.expect("metrics within the time limit").unwrap();
        let mut lines = text.lines();
        let line = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in {text}"))
            .parse()
            .unwrap()
    }

    async fn until(&self, series: &str, wanted: impl Fn(u64) -> bool) {
        let reached = async {
            while !wanted(self.metric(series).await) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let reached = timeout(PATIENCE, reached).await;
        assert!(reached.is_ok(), "{series} is {}", self.metric(series).await);
    }

    /// Checks that two new users can talk.
    async fn still_works(&self) {
        let mut first = User::join(self.addr).await;
        let mut second = User::join(self.addr).await;
        for _ in 0..3 {
            let (to, from) = (second.id, first.id);
            first.say(to, "hello").await;
            let expected = format!("{{\"sender_id\":{from},\"message\":\"hello\"}}");
            assert_eq!(second.hear().await, (1, expected.into_bytes()));
        }
    }

    /// Stops the relay after all users have left, and checks that the ledger balances.
    async fn end(self) {
        self.until("switchboard_connections", |users| users == 0)
            .await;
        let opened = self.metric("switchboard_connections_opened_total").await;
        let text = [1000, 1002, 1006, 1008, 1009, 4401].map(|code| code.to_string());
        let named = ["reset", "write_timeout", "pong_timeout", "other"].map(str::to_owned);
        let mut closed = 0;
        for code in text.iter().chain(&named) {
            for initiator in ["client", "server"] {
                let labels = format!("{{code=\"{code}\",initiator=\"{initiator}\"}}");
                let series = format!("switchboard_connections_closed_total{labels}");
                closed += self.metric(&series).await;
            }
        }
        assert_eq!(opened, closed);
        assert_eq!(self.metric("switchboard_session_panics_total").await, 0);
        self.stop.send(Stop::DrainNow).unwrap();
        let report = timeout(PATIENCE, self.run).await.unwrap().unwrap();
        assert_eq!((report.aborted, report.ledger.gap()), (0, 0));
        assert_eq!(report.ledger.mailbox, 0);
    }
}

/// A user on a plain socket.
struct User {
    id: u64,
    stream: TcpStream,
}

impl User {
    async fn join(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        let (head, stream) = ask(stream, "").await;
        Self::new(&head, stream)
    }

    /// Joins over a socket with a small receive buffer.
    async fn join_narrow(addr: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket.connect(addr).await.unwrap();
        let (head, stream) = ask(stream, "").await;
        Self::new(&head, stream)
    }

    fn new(head: &str, stream: TcpStream) -> Self {
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let (_, rest) = head.split_once("x-user-id: ").unwrap();
        let (id, _) = rest.split_once('\r').unwrap();
        Self {
            id: id.parse().unwrap(),
            stream,
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        let sent = timeout(PATIENCE, self.stream.write_all(bytes)).await;
        sent.expect("a write within the time limit").unwrap();
    }

    async fn say(&mut self, to: u64, text: &str) {
        let json = format!("{{\"recipient_id\":{to},\"message\":\"{text}\"}}");
        self.send(&frame(0x81, json.as_bytes())).await;
    }

    /// The opcode and the payload of the next frame that is no ping or pong.
    async fn hear(&mut self) -> (u8, Vec<u8>) {
        loop {
            let heard = async {
                let mut head = [0; 2];
                self.stream.read_exact(&mut head).await?;
                let length = match head[1] {
                    126 => usize::from(self.stream.read_u16().await?),
                    127 => usize::try_from(self.stream.read_u64().await?).unwrap(),
                    short => usize::from(short),
                };
                let mut payload = vec![0; length];
                self.stream.read_exact(&mut payload).await?;
                std::io::Result::Ok((head[0] & 0x0f, payload))
            };
            let heard = timeout(PATIENCE, heard).await;
            let (opcode, payload) = heard
                .expect("a frame within the time limit")
                .expect("a frame");
            if !matches!(opcode, 9 | 10) {
                return (opcode, payload);
            }
        }
    }

    async fn is_closed_with(&mut self, code: u16) {
        let (opcode, payload) = self.hear().await;
        assert_eq!(opcode, 8, "{}", String::from_utf8_lossy(&payload));
        assert_eq!(u16::from_be_bytes([payload[0], payload[1]]), code);
    }

    /// Resets the connection.
    fn reset(self) {
        SockRef::from(&self.stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
}

/// Requests an upgrade with additional header fields. Returns the head of the response.
async fn ask(mut stream: TcpStream, fields: &str) -> (String, TcpStream) {
    let request = format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(PATIENCE, stream.read_u8()).await;
        head.push(
            byte.expect("a head within the time limit")
                .expect("a whole head"),
        );
    }
    (String::from_utf8(head).unwrap(), stream)
}

/// Requests an upgrade from an address of the loopback network. Returns the status and the head of the response.
async fn status(relay: &Relay, from: Ipv4Addr, fields: &str) -> (String, String, TcpStream) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    let stream = socket.connect(relay.addr).await.unwrap();
    let (head, stream) = ask(stream, fields).await;
    (head.split(' ').nth(1).unwrap().to_owned(), head, stream)
}

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const THERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A frame with a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        short @ 0..126 => bytes.push(0x80 | u8::try_from(short).unwrap()),
        long => {
            bytes.push(0xfe);
            bytes.extend_from_slice(&u16::try_from(long).unwrap().to_be_bytes());
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_with_slow_heads_are_evicted() {
    let relay = Relay::start(|settings| settings.limits.handshakes = 8).await;
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(relay.addr).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: l")
            .await
            .unwrap();
        slow.push(stream);
    }
    relay.still_works().await;
    assert!(relay.metric("switchboard_http_evicted_total").await >= 92);
    drop(slow);
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_are_evicted() {
    let relay = Relay::start(|settings| settings.limits.handshakes = 8).await;
    let mut mute = Vec::new();
    for _ in 0..300 {
        mute.push(TcpStream::connect(relay.addr).await.unwrap());
    }
    relay.still_works().await;
    drop(mute);
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_connection_is_reset_unless_it_had_a_response() {
    let relay = Relay::start(|settings| settings.limits.handshakes = 2).await;
    let enter = || async { TcpStream::connect(relay.addr).await.unwrap() };
    let mut answered = enter().await;
    let request = b"GET /healthz HTTP/1.1\r\nHost: l\r\n\r\n";
    answered.write_all(request).await.unwrap();
    assert_eq!(answered.read_u8().await.unwrap(), b'H');
    let mut mute = enter().await;
    let rest = async |stream: &mut TcpStream| {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut rest));
        read.await
            .expect("an end within the time limit")
            .map_err(|it| it.kind())
    };
    // Two slots: the third connection evicts the first, the fourth evicts the second.
    let _third = enter().await;
    assert_ne!(rest(&mut answered).await.unwrap(), 0);
    let _fourth = enter().await;
    let end = rest(&mut mute).await;
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_at_any_step_leaves_nothing_behind() {
    let relay = Relay::start(|_| {}).await;
    let mut reader = User::join(relay.addr).await;
    let whole = frame(0x81, b"{\"recipient_id\":1,\"message\":\"x\"}");
    let request = b"GET / HTTP/1.1\r\nHost: l\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let all = [request.as_slice(), &whole, &frame(0x88, &[3, 232])].concat();
    for end in (0..all.len()).step_by(3) {
        let mut stream = TcpStream::connect(relay.addr).await.unwrap();
        stream.write_all(&all[..end]).await.unwrap();
        User { id: 0, stream }.reset();
    }
    for _ in 0..20 {
        let mut leaving = User::join(relay.addr).await;
        // Messages are in flight to the user that resets, and from it.
        reader.say(leaving.id, "x").await;
        leaving.say(reader.id, "x").await;
        leaving.reset();
    }
    relay.still_works().await;
    reader.send(&frame(0x88, &[3, 232])).await;
    drop(reader);
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_frame_is_refused_on_its_header() {
    let relay = Relay::start(|_| {}).await;
    let giant = |length: u64| [&[0x81, 0xff], length.to_be_bytes().as_slice(), &[0; 4]].concat();
    for (bytes, code) in [
        (giant(1 << 40), 1009),
        (giant(64 * 1024 + 1), 1009),
        (giant(1 << 63), 1002),
        (vec![0xc1, 0x80, 0, 0, 0, 0], 1002), // RSV1, as of a compressed message
        (vec![0x91, 0x80, 0, 0, 0, 0], 1002),
        (vec![0x83, 0x80, 0, 0, 0, 0], 1002),
        (vec![0x81, 0x00], 1002),
        (vec![0x09, 0x80, 0, 0, 0, 0], 1002),
        (vec![0x80, 0x80, 0, 0, 0, 0], 1002),
    ] {
        let mut user = User::join(relay.addr).await;
        user.send(&bytes).await;
        user.is_closed_with(code).await;
    }
    relay.still_works().await;
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fragments_of_one_byte_and_pings_are_bounded_by_the_rate() {
    let relay = Relay::start(|settings| settings.limits.message_rate = Some(100)).await;
    for (first, more) in [(0x01, 0x00), (0x89, 0x89)] {
        let mut user = User::join(relay.addr).await;
        let mut flood = frame(first, b" ");
        for _ in 0..1000 {
            flood.extend(frame(more, b" "));
        }
        user.send(&flood).await;
        user.is_closed_with(1008).await;
    }
    relay.still_works().await;
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_never_reads_costs_its_senders_nothing() {
    let relay = Relay::start(|settings| {
        settings.mailbox.bytes = 256 << 10;
        settings.keepalive.write_timeout = Duration::from_secs(2);
    })
    .await;
    let deaf = User::join_narrow(relay.addr).await;
    let mut senders = Vec::new();
    for _ in 0..20 {
        senders.push(User::join(relay.addr).await);
    }
    let text = "x".repeat(10_000);
    for _ in 0..20 {
        for sender in &mut senders {
            sender.say(deaf.id, &text).await;
        }
    }
    relay.still_works().await;
    let waiting = relay.metric("switchboard_mailbox_bytes").await;
    assert!(waiting <= 256 << 10, "{waiting} bytes");
    let cut = "switchboard_connections_closed_total{code=\"write_timeout\",initiator=\"server\"}";
    relay.until(cut, |count| count == 1).await;
    let full = "switchboard_messages_dropped_total{reason=\"queue_full\"}";
    assert!(relay.metric(full).await > 0);
    drop((deaf, senders));
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_reads_byte_by_byte_is_closed_like_one_that_never_reads() {
    let relay = Relay::start(|settings| {
        settings.mailbox.bytes = 256 << 10;
        settings.keepalive.write_timeout = Duration::from_secs(1);
    })
    .await;
    let mut slow = User::join_narrow(relay.addr).await;
    let mut sender = User::join(relay.addr).await;
    let text = "x".repeat(10_000);
    for _ in 0..100 {
        sender.say(slow.id, &text).await;
    }
    relay.still_works().await;
    let waiting = relay.metric("switchboard_mailbox_bytes").await;
    assert!(waiting <= 256 << 10, "{waiting} bytes");
    // Ten bytes a second, which is too slow for any write to make progress.
    let read = async {
        while slow.stream.read_u8().await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let cut = "switchboard_connections_closed_total{code=\"write_timeout\",initiator=\"server\"}";
    let is_cut = relay.until(cut, |count| count == 1);
    tokio::select! {
        () = is_cut => {}
        () = async { tokio::join!(read, std::future::pending::<()>()); } => {}
    }
    drop((slow, sender));
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_churn_leaves_nothing_behind() {
    let relay = Relay::start(|_| {}).await;
    let churn = (0..8).map(|_| {
        let addr = relay.addr;
        tokio::spawn(async move {
            for round in 0..40 {
                let mut user = User::join(addr).await;
                user.say(user.id, "x").await;
                if round % 2 == 0 {
                    user.reset();
                }
            }
        })
    });
    for churner in churn.collect::<Vec<_>>() {
        churner.await.unwrap();
    }
    relay.still_works().await;
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_guesses_tokens_is_soon_refused() {
    let relay = Relay::start_with_secret("guessed", |settings| {
        settings.limits.address_auth_failures = Some(5);
    })
    .await;
    let secret = Secret::new(SECRET);
    let settings = Settings::default().auth;
    let minute = Duration::from_mins(1);
    let good = auth::issue(&settings, &secret, "alice", minute).unwrap();
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    for attempt in 0..8 {
        let (code, head, _) = status(&relay, HERE, &bearer(&format!("{good}{attempt}"))).await;
        let expected = if attempt < 5 { "401" } else { "429" };
        assert_eq!(code, expected, "{head}");
        let hint = if attempt < 5 {
            "www-authenticate: Bearer\r\n"
        } else {
            "retry-after: "
        };
        assert!(head.contains(hint), "{head}");
    }
    // A valid token is refused from this address too. Other addresses are not limited.
    assert_eq!(status(&relay, HERE, &bearer(&good)).await.0, "429");
    for fields in [
        bearer(&good),
        format!("Sec-WebSocket-Protocol: switchboard.v1, bearer.{good}\r\n"),
    ] {
        let (code, head, stream) = status(&relay, THERE, &fields).await;
        assert_eq!(code, "101");
        assert!(!head.contains(&good), "a token is never echoed: {head}");
        let echoed = head.contains("sec-websocket-protocol: switchboard.v1\r\n");
        assert_eq!(echoed, fields.starts_with("Sec-"), "{head}");
        drop(stream);
    }
    let alone = format!("Sec-WebSocket-Protocol: bearer.{good}\r\n");
    assert_eq!(status(&relay, THERE, &alone).await.0, "400");
    assert_eq!(status(&relay, THERE, "").await.0, "401");
    for (reason, count) in [
        ("unauthorized", 6),
        ("address_failures", 4),
        ("malformed", 1),
    ] {
        let series = format!("switchboard_handshakes_rejected_total{{reason=\"{reason}\"}}");
        assert_eq!(relay.metric(&series).await, count, "{reason}");
    }
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_expires_ends_its_connection() {
    let relay = Relay::start_with_secret("expires", |settings| {
        settings.auth.leeway = Duration::from_secs(1);
    })
    .await;
    let settings = Settings::default().auth;
    let secret = Secret::new(SECRET);
    let fields = |lifetime| {
        let token = auth::issue(&settings, &secret, "alice", lifetime).unwrap();
        format!("Authorization: Bearer {token}\r\n")
    };
    // One token never expires: its user is connected before the other token expires, and after.
    let (_, head, stream) = status(&relay, HERE, &fields(Duration::MAX)).await;
    let mut friend = User::new(&head, stream);
    let fields = fields(Duration::from_secs(1));
    let (_, head, stream) = status(&relay, HERE, &fields).await;
    let mut user = User::new(&head, stream);
    user.is_closed_with(4401).await;
    let (code, ..) = status(&relay, HERE, &fields).await;
    assert_eq!(code, "401");
    let own = friend.id;
    friend.say(own, "still here").await;
    let expected = format!("{{\"sender_id\":{own},\"message\":\"still here\"}}");
    assert_eq!(friend.hear().await, (1, expected.into_bytes()));
    drop((user, friend));
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_proxy_headers_change_nothing_and_limits_of_an_address_hold() {
    let relay = Relay::start(|settings| {
        settings.limits.address_connections = Some(3);
        settings.server.trusted_proxies = vec!["127.0.0.2/32".parse().unwrap()];
    })
    .await;
    let mut here = Vec::new();
    for number in 0..5 {
        let forged =
            format!("X-Forwarded-For: 10.0.0.{number}\r\nForwarded: for=10.1.0.{number}\r\n");
        let (code, _, stream) = status(&relay, HERE, &forged).await;
        assert_eq!(code, if number < 3 { "101" } else { "429" });
        here.push(stream);
    }
    // A trusted proxy is believed, and the last address that it wrote counts.
    for number in 0..5 {
        let said = format!("X-Forwarded-For: 1.1.1.1, 10.0.0.{number}\r\n");
        let (code, _, stream) = status(&relay, THERE, &said).await;
        assert_eq!(code, "101");
        here.push(stream);
    }
    for number in 0..5 {
        let said = format!("X-Forwarded-For: 10.9.0.{number}, 10.0.0.99\r\n");
        let (code, _, stream) = status(&relay, THERE, &said).await;
        assert_eq!(code, if number < 3 { "101" } else { "429" });
        here.push(stream);
    }
    drop(here);
    relay
        .until("switchboard_connections", |users| users == 0)
        .await;
    // The permits are free again.
    assert_eq!(status(&relay, HERE, "").await.0, "101");
    relay.end().await;
}

/// A proxy that passes bytes on also passes on the forwarding headers that the client wrote itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwarding_headers_through_a_proxy_that_names_no_client_are_ignored() {
    let relay = Relay::start(|settings| {
        settings.limits.address_connections = Some(1);
        settings.server.trusted_proxies = vec!["127.0.0.2/32".parse().unwrap()];
        settings.server.proxy_protocol = true;
    })
    .await;
    let mut here = Vec::new();
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    for (header, client, expected) in [
        (&b"PROXY UNKNOWN\r\n"[..], 1, "101"),
        (b"PROXY UNKNOWN\r\n", 2, "429"),
        (local, 3, "429"),
        // The client's own address, and a forged one.
        (b"PROXY TCP4 127.0.0.2 127.0.0.1 1 2\r\n", 4, "429"),
        (b"PROXY TCP4 10.0.0.5 127.0.0.1 1 2\r\n", 5, "101"),
    ] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((THERE, 0))).unwrap();
        let mut stream = socket.connect(relay.addr).await.unwrap();
        stream.write_all(header).await.unwrap();
        let forged = format!("X-Forwarded-For: 10.0.0.{client}\r\n");
        let (head, stream) = ask(stream, &forged).await;
        assert_eq!(head.split(' ').nth(1), Some(expected), "{client}: {head}");
        here.push(stream);
    }
    drop(here);
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_beyond_the_rate_get_a_retry_after() {
    let relay = Relay::start(|settings| {
        settings.limits.handshake_rate = Some(5);
        settings.limits.address_handshake_rate = Some(2);
    })
    .await;
    // What is accepted at once is the rate of two seconds. More is accepted while the test runs, so each round asks
    // until it is refused.
    let one_address = vec![HERE; 250];
    let all_addresses = (2..252).map(|last| Ipv4Addr::new(127, 0, 0, last));
    let mut accepted = 0;
    for (addresses, code, least) in [
        (one_address, "429", 4),
        (all_addresses.collect(), "503", 10),
    ] {
        let mut refusal = None;
        for from in addresses {
            let answer = status(&relay, from, "").await;
            if answer.0 != "101" {
                refusal = Some(answer);
                break;
            }
            accepted += 1;
        }
        let (found, head, _) = refusal.expect("250 are refused somewhere");
        assert_eq!(found, code, "{head}");
        assert!(head.contains("retry-after: "), "{head}");
        assert!(accepted >= least, "{code} behind only {accepted}");
    }
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_accept_rate_wait_in_the_kernel() {
    let relay = Relay::start(|settings| settings.limits.accept_rate = Some(200)).await;
    let mut waiting = Vec::new();
    for _ in 0..100 {
        waiting.push(TcpStream::connect(relay.addr).await.unwrap());
    }
    let mut here = Vec::new();
    for stream in waiting {
        let (head, stream) = ask(stream, "").await;
        assert_eq!(head.split(' ').nth(1), Some("101"), "{head}");
        here.push(stream);
    }
    assert!(relay.metric("switchboard_accepts_deferred_total").await > 0);
    drop(here);
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_node_or_address_refuses_before_it_checks_the_token() {
    let relay = Relay::start_with_secret("places", |settings| {
        settings.limits.connections = Some(2);
        settings.limits.address_connections = Some(1);
    })
    .await;
    let minute = Duration::from_mins(1);
    let token = auth::issue(
        &Settings::default().auth,
        &Secret::new(SECRET),
        "alice",
        minute,
    );
    let good = format!("Authorization: Bearer {}\r\n", token.unwrap());
    let bad = "Authorization: Bearer x\r\n";
    let elsewhere = Ipv4Addr::new(127, 0, 0, 3);
    let (code, _, first) = status(&relay, HERE, &good).await;
    assert_eq!(code, "101");
    assert_eq!(
        status(&relay, HERE, bad).await.0,
        "429",
        "its address has one"
    );
    assert_eq!(status(&relay, THERE, bad).await.0, "401");
    let (code, _, second) = status(&relay, THERE, &good).await;
    assert_eq!(code, "101");
    assert_eq!(
        status(&relay, elsewhere, bad).await.0,
        "503",
        "there is no third"
    );
    drop((first, second));
    relay
        .until("switchboard_connections", |users| users == 0)
        .await;
    assert_eq!(status(&relay, elsewhere, bad).await.0, "401");
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_another_origin_may_not_connect() {
    let relay = Relay::start(|settings| {
        let origin = "https://*.example.com".to_owned();
        settings.server.allowed_origins = vec![origin.try_into().unwrap()];
    })
    .await;
    for (origin, expected) in [
        ("http://localhost", "101"),
        ("https://chat.example.com", "101"),
        ("https://example.com", "403"),
        ("https://evil.com", "403"),
        ("null", "403"),
    ] {
        let (code, ..) = status(&relay, HERE, &format!("Origin: {origin}\r\n")).await;
        assert_eq!(code, expected, "{origin}");
    }
    let rejected = "switchboard_handshakes_rejected_total{reason=\"origin\"}";
    assert_eq!(relay.metric(rejected).await, 3);
    relay.end().await;
}
