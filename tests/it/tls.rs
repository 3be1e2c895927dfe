//! Certificates on both listeners, and the operators' token. The client is rustls, and trusts the test's
//! certificate as its root.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use switchboard::app::{App, Report, Stop};
use switchboard::cli;
use switchboard::config::{self, Settings};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion, version,
};
use tokio_websockets::{ClientBuilder, Message};

use crate::harness::hold_the_clock;

const PATIENCE: Duration = Duration::from_secs(30);
const TOKEN: &str = "let-me-in";
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const THERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A relay with a certificate and an operators' token, and what a client needs to connect to it.
struct Secured {
    folder: PathBuf,
    certificate: CertificateDer<'static>,
    users: SocketAddr,
    admin: SocketAddr,
    settings: Settings,
    stop: oneshot::Sender<Stop>,
    run: JoinHandle<Report>,
}

impl Secured {
    async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "tls-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(folder.join("cert.pem"), cert.pem()).unwrap();
        std::fs::write(folder.join("key.pem"), signing_key.serialize_pem()).unwrap();
        std::fs::write(folder.join("token"), TOKEN).unwrap();

        let mut settings = Settings::default();
        settings.server.listen = vec!["127.0.0.1:0".parse().unwrap()];
        settings.server.tls = config::TlsSettings {
            cert_file: Some(folder.join("cert.pem")),
            key_file: Some(folder.join("key.pem")),
        };
        settings.admin.listen = Some("127.0.0.1:0".parse().unwrap());
        settings.admin.tls = settings.server.tls.clone();
        settings.admin.token_file = Some(folder.join("token"));
        change(&mut settings);
        let app = App::build(settings.clone()).await.unwrap();
        let (users, admin) = (app.addrs()[0], app.admin_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let run = tokio::spawn(app.run(async { stopped.await.unwrap_or(Stop::DrainNow) }));
        Self {
            folder,
            certificate: cert.der().clone(),
            users,
            admin,
            settings,
            stop,
            run,
        }
    }

    async fn connect(
        &self,
        addr: SocketAddr,
        version: &'static SupportedProtocolVersion,
    ) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(addr).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let connector = TlsConnector::from(self.client(version));
        connector.connect(name, stream).await.unwrap()
    }

    fn client(&self, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
        trusting(self.certificate.clone(), version)
    }

    /// The bytes of a `ClientHello`.
    fn hello(&self) -> Vec<u8> {
        hello_to(self.certificate.clone())
    }

    /// Sends `before` and a hello from an address. Returns the server's reaction, and the connection, still open.
    async fn say_hello(&self, from: Ipv4Addr, before: &str) -> (Heard, TcpStream) {
        let mut stream = connect_from(from, self.users).await;
        let hello = [before.as_bytes(), &self.hello()].concat();
        stream.write_all(&hello).await.unwrap();
        (heard(&mut stream).await, stream)
    }

    /// Sends hellos one after the other. Returns how many were answered before the first that was not.
    async fn answered(&self, hellos: usize, from: Ipv4Addr, before: &str) -> usize {
        let mut answered = 0;
        for number in 0..hellos {
            let (heard, _) = self.say_hello(from, before).await;
            answered += usize::from(heard == Heard::ServerHello);
            let in_order = answered == number + 1 || heard == Heard::Reset;
            assert!(in_order, "{number} of {hellos} from {from}: {heard:?}");
        }
        answered
    }

    async fn metric(&self, series: &str) -> u64 {
        let fields = format!("Authorization: Bearer {TOKEN}\r\n");
        let answer = self.get(self.admin, "/metrics", &fields).await;
        let mut lines = answer.lines();
        let value = lines.find_map(|line| line.strip_prefix(&format!("switchboard_{series} ")));
        value.expect(series).parse().unwrap()
    }

    async fn rejected(&self, reason: &str) -> u64 {
        let series = format!("handshakes_rejected_total{{reason=\"{reason}\"}}");
        self.metric(&series).await
    }

    /// Waits until this number of connections is pending.
    async fn until_connections(&self, count: u64) {
        let reached = async { while self.metric("http_connections").await != count {} };
        timeout(PATIENCE, reached)
            .await
            .expect("this number within the time limit");
    }

    /// The head and the body of the response to a GET.
    async fn get(&self, addr: SocketAddr, path: &str, fields: &str) -> String {
        let mut stream = self.connect(addr, &version::TLS13).await;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut answer));
        // rustls returns an error where the end comes without a close_notify.
        let ended = read.await.expect("a response within the time limit");
        ended.expect("a close_notify before the end");
        String::from_utf8(answer).unwrap()
    }

    /// Stops the relay, and checks that the ledger balances.
    async fn end(self) {
        self.stop.send(Stop::DrainNow).unwrap();
        let report = timeout(PATIENCE, self.run).await.unwrap().unwrap();
        assert_eq!((report.aborted, report.ledger.gap()), (0, 0));
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// A client that trusts this certificate.
fn trusting(
    certificate: CertificateDer<'static>,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// The bytes of a `ClientHello` to a server with this certificate.
pub(crate) fn hello_to(certificate: CertificateDer<'static>) -> Vec<u8> {
    let name = "localhost".try_into().unwrap();
    let config = trusting(certificate, &version::TLS13);
    let mut client = ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// The first reaction of a server.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// It has sent a `ServerHello`, which costs a key agreement and a signature.
    ServerHello,
    Reset,
    Other(Vec<u8>),
}

async fn heard(stream: &mut TcpStream) -> Heard {
    let mut head = [0; 6];
    let read = timeout(PATIENCE, stream.read_exact(&mut head));
    match read.await.expect("a reaction within the time limit") {
        // A record of the handshake with a ServerHello (RFC 8446 sections 5.1 and 4).
        Ok(_) if (head[0], head[5]) == (22, 2) => Heard::ServerHello,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Heard::Reset,
        _ => Heard::Other(head.to_vec()),
    }
}

async fn connect_from(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Requests an upgrade. Returns the head of the response.
async fn upgrade(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(PATIENCE, stream.read_u8()).await;
        head.push(
            byte.expect("a head within the time limit")
                .expect("a whole head"),
        );
    }
    String::from_utf8(head).unwrap()
}

/// A text frame of up to 65,535 bytes, with a mask of zeros.
fn text_frame(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap().to_be_bytes();
    let mut frame = match length {
        [0, short] if short < 126 => vec![0x81, 0x80 | short, 0, 0, 0, 0],
        [high, low] => vec![0x81, 0xfe, high, low, 0, 0, 0, 0],
    };
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// The text of the next frame, which has at least 126 bytes.
async fn long_text(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = [0; 4];
    let read = timeout(PATIENCE, stream.read_exact(&mut head));
    read.await.expect("a frame within the time limit").unwrap();
    assert_eq!(head[..2], [0x81, 126]);
    let mut text = vec![0; u16::from_be_bytes([head[2], head[3]]).into()];
    stream.read_exact(&mut text).await.unwrap();
    String::from_utf8(text).unwrap()
}

/// An alert that is lost leaves the client with a reset that says nothing (RFC 8446 section 6.2).
#[tokio::test]
async fn a_handshake_that_fails_ends_with_its_alert_and_without_a_reset() {
    let relay = Secured::start(|_| {}).await;
    let no_hello = [22, 3, 1, 0, 4, 1, 0, 0, 0].to_vec();
    let hello_and_no_more = [relay.hello(), [23, 3, 3, 0, 32].to_vec(), vec![0; 32]].concat();
    for begin in [
        no_hello,
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        hello_and_no_more,
    ] {
        let mut stream = TcpStream::connect(relay.users).await.unwrap();
        // What is not read when a socket closes makes the kernel reset the connection.
        let sent = [begin, vec![0; 30_000]].concat();
        stream.write_all(&sent).await.unwrap();
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        read.expect("an end within the time limit")
            .expect("an end without a reset");
        // The content of an alert after the hello is encrypted.
        let has_alert = answer
            .windows(3)
            .any(|head| matches!(head, [21 | 23, 3, 3]));
        assert!(has_alert, "{answer:?}");
        stream.shutdown().await.unwrap();
    }
    relay.until_connections(0).await;
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_talk_over_both_versions_of_tls() {
    let relay = Secured::start(|_| {}).await;
    let mut old = relay.connect(relay.users, &version::TLS12).await;
    let mut new = relay.connect(relay.users, &version::TLS13).await;
    assert!(upgrade(&mut old).await.contains("x-user-id: 1\r\n"));
    assert!(upgrade(&mut new).await.contains("x-user-id: 2\r\n"));
    // Larger than a TLS record, and larger than one write encrypts.
    let long = "x".repeat(60_000);
    for _ in 0..5 {
        let send =
            |to: u32| text_frame(&format!("{{\"recipient_id\":{to},\"message\":\"{long}\"}}"));
        old.write_all(&send(2)).await.unwrap();
        new.write_all(&send(1)).await.unwrap();
        for (stream, from) in [(&mut new, 1), (&mut old, 2)] {
            let expected = format!("{{\"sender_id\":{from},\"message\":\"{long}\"}}");
            assert_eq!(long_text(stream).await, expected);
        }
    }
    drop((old, new));
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_need_the_token_and_health_does_not() {
    let relay = Secured::start(|_| {}).await;
    let status = |answer: &str| answer.split(' ').nth(1).unwrap().to_owned();
    for path in ["/livez", "/healthz", "/readyz"] {
        assert_eq!(status(&relay.get(relay.admin, path, "").await), "200");
    }
    for fields in [
        "",
        "Authorization: Bearer let-me-im\r\n",
        "Authorization: Bearer let-me\r\n",
        "Authorization: Basic let-me-in\r\n",
        "Authorization: Bearer let-me-in\r\nAuthorization: Bearer let-me-in\r\n",
    ] {
        let answer = relay.get(relay.admin, "/metrics", fields).await;
        assert_eq!(status(&answer), "401", "{fields}");
        assert!(answer.contains("www-authenticate: Bearer\r\n"), "{answer}");
        assert!(!answer.contains("switchboard_"), "{answer}");
    }
    let fields = format!("Authorization: Bearer {TOKEN}\r\n");
    let answer = relay.get(relay.admin, "/metrics", &fields).await;
    assert!(answer.contains("\nswitchboard_connections 0\n"), "{answer}");
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_token_reads_metrics_and_opens_nothing_else() {
    for has_api in [true, false] {
        let relay = Secured::start(|settings| {
            let path = settings.admin.token_file.take().unwrap();
            let metrics_token = path.with_file_name("metrics-token");
            std::fs::write(&metrics_token, "scrape-me\n").unwrap();
            settings.admin.metrics_token_file = Some(metrics_token);
            settings.admin.token_file = has_api.then_some(path);
        })
        .await;
        let api = if has_api {
            ["200", "401"]
        } else {
            ["404", "404"]
        };
        for (path, operators, scrapers) in [
            ("/metrics", "401", "200"),
            ("/api/status", api[0], api[1]),
            ("/livez", "200", "200"),
        ] {
            for (token, status) in [(TOKEN, operators), ("scrape-me", scrapers)] {
                let fields = format!("Authorization: Bearer {token}\r\n");
                let answer = relay.get(relay.admin, path, &fields).await;
                let found = answer.split(' ').nth(1).unwrap();
                assert_eq!(found, status, "{path} with {token}: {answer}");
            }
        }
        let answer = relay.get(relay.admin, "/metrics", "").await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        relay.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_health_check_uses_tls_and_accepts_only_its_own_server() {
    let relay = Secured::start(|_| {}).await;
    let mut settings = relay.settings.clone();
    settings.admin.listen = Some(relay.admin);
    cli::healthcheck(&settings).await.unwrap();
    settings.admin.listen = Some(relay.users);
    let unhealthy = cli::healthcheck(&settings).await.unwrap_err();
    assert!(unhealthy.to_string().contains("404"), "{unhealthy}");
    let other = Secured::start(|_| {}).await;
    settings.admin.listen = Some(other.admin);
    cli::healthcheck(&settings).await.unwrap_err();
    relay.end().await;
    other.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unfinished_tls_handshake_is_closed_and_delays_no_user() {
    let relay = Secured::start(|settings| {
        settings.limits.header_timeout = Duration::from_secs(1);
        settings.limits.handshakes = 4;
    })
    .await;
    let begin = Instant::now();
    let mut slow = TcpStream::connect(relay.users).await.unwrap();
    // The head of a record, and never its content.
    slow.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    let mut many = Vec::new();
    for _ in 0..3 {
        many.push(TcpStream::connect(relay.users).await.unwrap());
    }
    assert_eq!(
        timeout(PATIENCE, slow.read(&mut [0]))
            .await
            .unwrap()
            .unwrap(),
        0
    );
    assert!(
        begin.elapsed() >= Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
    for _ in 0..20 {
        many.push(TcpStream::connect(relay.users).await.unwrap());
    }
    let mut user = relay.connect(relay.users, &version::TLS13).await;
    assert!(upgrade(&mut user).await.starts_with("HTTP/1.1 101 "));

    // Bytes that are not TLS.
    let mut plain = TcpStream::connect(relay.users).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, plain.read_to_end(&mut answer));
    let _reset_or_end = read.await.expect("an end within the time limit");
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    drop((user, many));
    relay.end().await;
}

#[tokio::test]
async fn tls_handshakes_beyond_the_rate_of_an_address_are_reset() {
    let clock = hold_the_clock();
    let relay = Secured::start(|settings| {
        settings.limits.address_tls_handshake_rate = Some(1);
    })
    .await;
    // The burst is two seconds of the rate.
    assert_eq!(relay.answered(20, HERE, "").await, 2);
    // The relay sends nothing, and the slot is free at once although the client keeps its socket.
    let (heard, stays) = relay.say_hello(HERE, "").await;
    assert_eq!(heard, Heard::Reset);
    relay.until_connections(0).await;
    drop(stays);
    assert_eq!(relay.rejected("address_tls_rate").await, 19);
    assert_eq!(relay.rejected("tls_rate").await, 0);

    assert_eq!(relay.answered(3, THERE, "").await, 2);
    tokio::time::advance(Duration::from_secs(1)).await;
    let mut user = relay.connect(relay.users, &version::TLS13).await;
    assert!(upgrade(&mut user).await.starts_with("HTTP/1.1 101 "));
    assert_eq!(relay.say_hello(HERE, "").await.0, Heard::Reset);
    drop((user, clock));
    relay.end().await;
}

#[tokio::test]
async fn operators_connect_when_the_total_tls_rate_is_exceeded() {
    let clock = hold_the_clock();
    let relay = Secured::start(|settings| {
        settings.limits.tls_handshake_rate = Some(2);
        settings.limits.address_tls_handshake_rate = Some(1);
    })
    .await;
    assert_eq!(relay.answered(3, HERE, "").await, 2);
    assert_eq!(relay.answered(3, THERE, "").await, 2);
    let elsewhere = Ipv4Addr::new(127, 0, 0, 3);
    assert_eq!(relay.answered(3, elsewhere, "").await, 0);
    for _ in 0..10 {
        let answer = relay.get(relay.admin, "/livez", "").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    // The third from elsewhere also exceeds the rate of its address, which is checked first.
    assert_eq!(relay.rejected("address_tls_rate").await, 3);
    assert_eq!(relay.rejected("tls_rate").await, 2);

    tokio::time::advance(Duration::from_secs(1)).await;
    let mut user = relay.connect(relay.users, &version::TLS12).await;
    assert!(upgrade(&mut user).await.starts_with("HTTP/1.1 101 "));
    drop((user, clock));
    relay.end().await;
}

#[tokio::test]
async fn an_incomplete_hello_uses_up_no_rate() {
    let clock = hold_the_clock();
    let relay = Secured::start(|settings| {
        settings.limits.tls_handshake_rate = Some(1);
    })
    .await;
    let hello = relay.hello();
    let (first, rest) = hello.split_at(hello.len() / 2);
    let mut slow = Vec::new();
    for _ in 0..5 {
        let mut stream = connect_from(HERE, relay.users).await;
        stream.write_all(first).await.unwrap();
        slow.push(stream);
    }
    let mut plain = connect_from(HERE, relay.users).await;
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(matches!(heard(&mut plain).await, Heard::Other(_)));
    drop(plain);
    relay.until_connections(5).await;
    assert_eq!(relay.answered(1, HERE, "").await, 1);

    // A whole hello counts.
    let mut becomes = Vec::new();
    for mut stream in slow {
        stream.write_all(rest).await.unwrap();
        becomes.push(heard(&mut stream).await);
    }
    let (answered, others) = becomes.split_first().unwrap();
    assert_eq!(*answered, Heard::ServerHello);
    assert!(others.iter().all(|it| *it == Heard::Reset), "{becomes:?}");
    assert_eq!(relay.rejected("tls_rate").await, 4);
    drop(clock);
    relay.end().await;
}

#[tokio::test]
async fn clients_of_a_proxy_do_not_share_the_rate_of_one_address() {
    let clock = hold_the_clock();
    let relay = Secured::start(|settings| {
        settings.server.trusted_proxies = vec!["127.0.0.2/32".parse().unwrap()];
        settings.limits.address_tls_handshake_rate = Some(1);
        settings.limits.tls_handshake_rate = Some(6);
    })
    .await;
    assert_eq!(relay.answered(5, HERE, "").await, 2);
    // The proxy names the client only in the headers of a request.
    assert_eq!(relay.answered(20, THERE, "").await, 10);
    assert_eq!(relay.rejected("address_tls_rate").await, 3);
    assert_eq!(relay.rejected("tls_rate").await, 10);
    drop(clock);
    relay.end().await;
}

#[tokio::test]
async fn clients_that_a_proxy_names_first_are_counted_one_by_one() {
    let clock = hold_the_clock();
    let relay = Secured::start(|settings| {
        settings.server.trusted_proxies = ["127.0.0.2/32", "10.0.0.0/8"]
            .map(|network| network.parse().unwrap())
            .to_vec();
        settings.server.proxy_protocol = true;
        settings.limits.address_tls_handshake_rate = Some(1);
    })
    .await;
    let named = |client: &str| {
        let family = if client.contains(':') { "TCP6" } else { "TCP4" };
        format!("PROXY {family} {client} {client} 4711 443\r\n")
    };
    for (headers, expected) in [
        ([named("192.0.2.1"), named("192.0.2.1")], 2),
        ([named("192.0.2.1"), named("192.0.2.1")], 0),
        ([named("192.0.2.2"), named("192.0.2.2")], 2),
        ([named("2001:db8::1"), named("2001:db8::2")], 2),
        ([named("2001:db8::3"), named("2001:db8:0:1::3")], 1),
        // An address of a trusted proxy has no rate of its own: the proxy may be in front of this one, or speak for itself.
        ([named("10.0.0.1"), named("10.0.0.1")], 2),
        ([named("10.0.0.1"), named("10.0.0.1")], 2),
        (
            ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN\r\n"].map(str::to_owned),
            2,
        ),
        (
            ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN\r\n"].map(str::to_owned),
            2,
        ),
    ] {
        let mut answered = 0;
        for header in &headers {
            let (heard, _) = relay.say_hello(THERE, header).await;
            answered += usize::from(heard == Heard::ServerHello);
        }
        assert_eq!(answered, expected, "{headers:?}");
    }
    // A peer that is no proxy counts by its own address.
    assert_eq!(relay.answered(5, HERE, "").await, 2);
    drop(clock);
    relay.end().await;
}

/// A running relay takes the certificate that the files have 10 s later, on both listeners.
#[tokio::test]
async fn a_renewed_certificate_is_served_without_a_restart() {
    let clock = hold_the_clock();
    let mut relay = Secured::start(|_| {}).await;
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(relay.folder.join("cert.pem"), cert.pem()).unwrap();
    std::fs::write(relay.folder.join("key.pem"), signing_key.serialize_pem()).unwrap();
    let old = relay.certificate.clone();
    // The tasks of the relay run, and the time to the first reading has begun.
    relay.get(relay.admin, "/livez", "").await;
    for (seconds, expected) in [(9, old), (2, cert.der().clone())] {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        for addr in [relay.users, relay.admin] {
            // The clock stands still, so the time limit is a number of attempts.
            let mut served = false;
            for _ in 0..200 {
                relay.certificate = expected.clone();
                let stream = TcpStream::connect(addr).await.unwrap();
                let connector = TlsConnector::from(relay.client(&version::TLS13));
                let name = "localhost".try_into().unwrap();
                if connector.connect(name, stream).await.is_ok() {
                    served = true;
                    break;
                }
                tokio::task::yield_now().await;
            }
            assert!(served, "{addr} after {seconds} s more");
        }
    }
    drop(clock);
    relay.end().await;
}

/// Reads to the end, which is an error unless a `close_notify` comes before it (RFC 8446 section 6.1).
async fn read_to_close_notify(what: &str, stream: &mut TlsStream<TcpStream>) -> Vec<u8> {
    let mut read = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut read)).await;
    let ended = ended.expect("an end within the time limit");
    assert!(ended.is_ok(), "{what}: {ended:?} after {read:?}");
    read
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_end_of_a_connection_begins_with_a_close_notify() {
    let relay = Secured::start(|settings| {
        settings.keepalive.close_timeout = Duration::from_secs(1);
        settings.limits.header_timeout = Duration::from_secs(2);
    })
    .await;
    for version in [&version::TLS12, &version::TLS13] {
        let ask = |fields: &str| format!("GET / HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
        let upgrade_with = |version: u8| {
            ask(&format!(
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: {version}\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            ))
        };
        for (what, request) in [
            ("Connection: close", ask("Connection: close\r\n")),
            ("a refused handshake", upgrade_with(12)),
            ("a request that is none", "what?\r\n\r\n".to_owned()),
            (
                "an early answer",
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".to_owned(),
            ),
            ("a head that does not end", "GET / HTTP/1.1\r\n".to_owned()),
            ("no request", String::new()),
        ] {
            let mut stream = relay.connect(relay.users, version).await;
            stream.write_all(request.as_bytes()).await.unwrap();
            read_to_close_notify(what, &mut stream).await;
        }

        let close = |code: u16| [&[0x88, 0x82, 0, 0, 0, 0], &code.to_be_bytes()[..]].concat();
        for (what, last_frame, answers) in [
            ("a close by the peer", close(1000), false),
            ("a close by the relay", text_frame("no JSON"), true),
            (
                "a close by the relay without an answer",
                text_frame("no JSON"),
                false,
            ),
        ] {
            let mut stream = relay.connect(relay.users, version).await;
            assert!(upgrade(&mut stream).await.starts_with("HTTP/1.1 101 "));
            stream.write_all(&last_frame).await.unwrap();
            if answers {
                stream.write_all(&close(1007)).await.unwrap();
            }
            let read = read_to_close_notify(what, &mut stream).await;
            assert_eq!(read[0], 0x88, "{what}: {read:?}");
        }

        // The peer ends its stream without a close frame, and reads on.
        let mut stream = relay.connect(relay.users, version).await;
        assert!(upgrade(&mut stream).await.starts_with("HTTP/1.1 101 "));
        stream.shutdown().await.unwrap();
        read_to_close_notify("the end of the peer's stream", &mut stream).await;
    }
    relay.end().await;
}

/// Carries bytes both ways, a kilobyte each tenth of a second.
async fn slow_link(near: DuplexStream, far: TcpStream) {
    async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let mut piece = [0; 1024];
        while let Ok(count @ 1..) = from.read(&mut piece).await {
            if to.write_all(&piece[..count]).await.is_err() {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
    let (from_near, to_near) = tokio::io::split(near);
    let (from_far, to_far) = tokio::io::split(far);
    tokio::join!(carry(from_near, to_far), carry(from_far, to_near));
}

/// A record is a step for the session, and takes longer than a pong may.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_behind_a_slow_link_stays() {
    let relay = Secured::start(|settings| {
        settings.keepalive.ping_interval = Duration::from_millis(300);
        settings.keepalive.pong_timeout = Duration::from_secs(1);
    })
    .await;
    let (near, theirs) = duplex(64 << 10);
    let far = TcpStream::connect(relay.users).await.unwrap();
    tokio::spawn(slow_link(theirs, far));
    let connector = TlsConnector::from(relay.client(&version::TLS13));
    let name = "localhost".try_into().unwrap();
    let stream = connector.connect(name, near).await.unwrap();
    let (mut user, answer) = ClientBuilder::new()
        .uri("ws://localhost/")
        .unwrap()
        .connect_on(stream)
        .await
        .unwrap();
    let id: u64 = answer.headers()["x-user-id"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let text = "x".repeat(20_000);
    let message = format!("{{\"recipient_id\":{id},\"message\":\"{text}\"}}");
    user.send(Message::text(message)).await.unwrap();
    let received = async {
        loop {
            let message = user.next().await.expect("the relay keeps the connection");
            if let Some(json) = message.unwrap().as_text() {
                return json.len();
            }
        }
    };
    let received = timeout(PATIENCE, received).await.unwrap();
    assert!(received > text.len(), "{received}");
    relay.end().await;
}
