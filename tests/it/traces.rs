//! The spans of handshakes and messages as an OTLP receiver decodes them, and the log filter of a running
//! process. Each relay is a process of its own, because a process has one place for spans and logs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use hyper::StatusCode;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Attribute;
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_websockets::ClientBuilder;

use super::cli::{free_address, post};
use super::harness::{Client, Dialect, Handshake, Raw, Scrape, eventually, profile, within};
use super::otlp::{Manner, Receiver};

/// The variables of a relay that traces everything and sends spans at once.
const ALL: [(&str, &str); 2] = [
    ("SWITCHBOARD__TRACING__SAMPLE_RATIO", "1"),
    ("SWITCHBOARD__TRACING__EXPORT_INTERVAL", "20ms"),
];

/// A relay in a process of its own, with its log.
#[derive(Debug)]
struct Relay {
    addr: SocketAddr,
    process: Child,
    log: Arc<Mutex<Vec<Value>>>,
}

impl Relay {
    /// A relay on a free port that traces to this endpoint.
    async fn start(endpoint: &str, variables: &[(&str, &str)]) -> Self {
        Self::start_with(&[], endpoint, variables).await
    }

    async fn start_with(options: &[&str], endpoint: &str, variables: &[(&str, &str)]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_switchboard"))
            .args(["--listen", "127.0.0.1:0"])
            .args(options)
            .env_clear()
            .envs(profile())
            .env("SWITCHBOARD__TRACING__OTLP_ENDPOINT", endpoint)
            .env("SWITCHBOARD__DRAIN__DELAY", "0s")
            .env("SWITCHBOARD__DRAIN__SPREAD", "0s")
            // The end does not wait for clients that no longer read.
            .env("SWITCHBOARD__KEEPALIVE__CLOSE_TIMEOUT", "100ms")
            .env("SWITCHBOARD__LOG__FORMAT", "json")
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let log = Arc::<Mutex<Vec<Value>>>::default();
        tokio::spawn({
            let log = log.clone();
            async move {
                while let Some(line) = lines.next_line().await.unwrap() {
                    let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                    log.lock().unwrap().push(line);
                }
            }
        });
        let mut relay = Self {
            addr: SocketAddr::from(([0, 0, 0, 0], 0)),
            process,
            log,
        };
        let listening = relay.logs("listening").await;
        let url = listening["urls"][0].as_str().unwrap();
        relay.addr = url.strip_prefix("http://").unwrap().parse().unwrap();
        relay
    }

    /// Waits for the first line with this message and returns it.
    async fn logs(&self, message: &str) -> Value {
        eventually(message, async || self.logged(message).first().cloned()).await
    }

    /// The lines with this message so far.
    fn logged(&self, message: &str) -> Vec<Value> {
        let lines = self.log.lock().unwrap();
        let lines = lines.iter().filter(|line| line["message"] == message);
        lines.cloned().collect()
    }

    async fn v1(&self) -> Client {
        Client::connect(self.addr, Dialect::V1).await
    }

    /// Connects a user by a handshake with this query and this `traceparent`.
    async fn v1_with(&self, query: &str, traceparent: &str) -> Client {
        self.v1_traced(query, &[("traceparent", traceparent)]).await
    }

    /// Connects a user by a handshake with this query and these headers.
    async fn v1_traced(&self, query: &str, headers: &[(&str, &str)]) -> Client {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let header = |name: &str| name.parse().unwrap();
        let mut builder = ClientBuilder::new()
            .uri(&format!("ws://{}/{query}", self.addr))
            .unwrap();
        for (name, value) in [("sec-websocket-protocol", "switchboard.v1")]
            .iter()
            .chain(headers)
        {
            let value = value.parse().unwrap();
            builder = builder.add_header(header(name), value).unwrap();
        }
        let (socket, response) = builder.connect_on(stream).await.unwrap();
        let id = response.headers()["x-user-id"].to_str().unwrap();
        let mut client = Client {
            id: id.parse().unwrap(),
            dialect: Dialect::V1,
            socket,
        };
        assert_eq!(client.hear().await["type"], "welcome");
        client
    }

    async fn scrape(&self) -> Scrape {
        let answer = Raw::connect(self.addr).await.http("GET", "/metrics").await;
        Scrape::parse(&answer.body)
    }

    async fn received(&self) -> u64 {
        let scrape = self.scrape().await;
        scrape.value("switchboard_messages_received_total", &[])
    }

    /// Spans that the receiver accepted, and those that were lost for this reason.
    async fn spans(&self, reason: &str) -> (u64, u64) {
        let scrape = self.scrape().await;
        let reason = [("reason", reason)];
        (
            scrape.value("switchboard_trace_spans_exported_total", &[]),
            scrape.value("switchboard_trace_spans_dropped_total", &reason),
        )
    }

    fn signal(&self, name: &str) {
        let id = self.process.id().expect("it runs").to_string();
        let kill = std::process::Command::new("kill")
            .args(["-s", name, &id])
            .status();
        assert!(kill.unwrap().success());
    }

    /// Drains the relay and waits for its end.
    async fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        within("the end of the process", self.process.wait())
            .await
            .unwrap()
    }
}

/// The spans of this name.
fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

#[track_caller]
fn only<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    match *named(spans, name) {
        [span] => span,
        ref others => panic!("one {name}, not {others:?}"),
    }
}

fn attributes(attributes: &[KeyValue]) -> BTreeMap<&str, Value> {
    let value = |attribute: &KeyValue| match attribute.value.clone()?.value? {
        Attribute::StringValue(text) => Some(Value::from(text)),
        Attribute::IntValue(number) => Some(Value::from(number)),
        Attribute::BoolValue(value) => Some(Value::from(value)),
        other => panic!("{other:?}"),
    };
    let pair = |attribute| (KeyValue::key(attribute), value(attribute).unwrap());
    attributes.iter().map(pair).collect()
}

trait Key {
    fn key(&self) -> &str;
}

impl Key for KeyValue {
    fn key(&self) -> &str {
        &self.key
    }
}

fn hex(bytes: &[u8]) -> String {
    let hex = |hex: String, byte| format!("{hex}{byte:02x}");
    bytes.iter().fold(String::new(), hex)
}

/// The `traceparent` of a span.
fn traceparent(span: &Span) -> String {
    format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id))
}

/// The outcome of the message by its last span.
fn outcome(span: &Span) -> Option<String> {
    let attributes = attributes(&span.attributes);
    let outcome = attributes.get("switchboard.outcome")?.as_str()?;
    (outcome != "queued").then(|| outcome.to_owned())
}

fn status(span: &Span) -> SpanStatus {
    span.status.as_ref().map_or(SpanStatus::Unset, Status::code)
}

#[tokio::test]
async fn a_message_is_a_tree_of_two_spans_in_either_strategy() {
    for strategy in ["directory", "router"] {
        let receiver = Receiver::start(Manner::Takes).await;
        let strategy = ("SWITCHBOARD__ROUTING__STRATEGY", strategy);
        // Spans are sent only at the end of the process.
        let delay = ("OTEL_BSP_SCHEDULE_DELAY", "600000");
        let mut relay = Relay::start(&receiver.endpoint(), &[ALL[0], strategy, delay]).await;
        let mut ann = relay.v1_with("?ticket=hush", "").await;
        let mut ben = relay.v1().await;
        ann.ask(ben.id, "Go Braves!", 1).await;
        let heard = ben.hear().await;
        ann.learns(1, "delivered").await;
        assert!(receiver.spans().is_empty());
        assert_eq!(relay.stop().await.code(), Some(0));

        let spans = receiver.spans();
        assert_eq!(spans.len(), 4, "{spans:?}");
        let (send, process) = (
            only(&spans, "send users/{id}"),
            only(&spans, "process users/{id}"),
        );
        assert_eq!(send.kind(), SpanKind::Producer);
        assert_eq!(process.kind(), SpanKind::Consumer);
        assert_eq!(hex(&send.parent_span_id), "");
        assert_eq!(process.parent_span_id, send.span_id);
        assert_eq!(process.trace_id, send.trace_id);
        let links = process
            .links
            .iter()
            .map(|link| (&link.trace_id, &link.span_id));
        assert_eq!(links.collect::<Vec<_>>(), [(&send.trace_id, &send.span_id)]);
        assert!(send.start_time_unix_nano <= process.start_time_unix_nano);
        assert!(process.start_time_unix_nano <= process.end_time_unix_nano);
        for (span, operation, outcome) in
            [(send, "send", "queued"), (process, "process", "delivered")]
        {
            let expected = json!({
                "messaging.system": "switchboard",
                "messaging.operation.name": operation,
                "messaging.operation.type": operation,
                "messaging.destination.template": "users/{id}",
                "messaging.message.body.size": 10,
                "server.address": "127.0.0.1",
                "server.port": relay.addr.port(),
                "switchboard.outcome": outcome,
            });
            assert_eq!(json!(attributes(&span.attributes)), expected);
            assert_eq!((status(span), span.events.len()), (SpanStatus::Unset, 0));
        }
        assert_eq!(
            heard,
            json!({"type": "message", "sender_id": ann.id, "message": "Go Braves!", "traceparent": traceparent(send)})
        );
        assert!(!receiver.has_seen("Braves"));
        assert!(!receiver.has_seen("hush"));
    }
}

#[tokio::test]
async fn a_message_of_an_operator_has_spans_with_its_size() {
    let receiver = Receiver::start(Manner::Takes).await;
    let (admin, token) = (free_address(), "0123456789abcdef0123456789abcdef");
    let file = settings_file("traces-admin-token", token);
    let settings = [
        ALL[0],
        ALL[1],
        ("SWITCHBOARD__ADMIN__LISTEN", &admin.to_string()),
        ("SWITCHBOARD__ADMIN__TOKEN_FILE", file.to_str().unwrap()),
    ];
    let relay = Relay::start(&receiver.endpoint(), &settings).await;
    let mut ben = relay.v1().await;
    let body = format!("{{\"recipient_id\":{},\"message\":\"Go Braves!\"}}", ben.id);
    let answer = post(admin, token, &body);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    ben.hear().await;
    let spans = receiver.spans_once(3).await;
    for name in ["send users/{id}", "process users/{id}"] {
        let attributes = attributes(&only(&spans, name).attributes);
        assert_eq!(attributes["messaging.message.body.size"], 10, "{name}");
    }
}

#[tokio::test]
async fn a_handshake_is_a_server_span_of_a_service_with_a_name() {
    let receiver = Receiver::start(Manner::Takes).await;
    let named_so = ("OTEL_SERVICE_NAME", "relay-of-a-test");
    let more = ("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=n1,team=a");
    let debug = ("SWITCHBOARD__LOG__FILTER", "debug");
    let relay = Relay::start(
        &receiver.endpoint(),
        &[ALL[0], ALL[1], named_so, more, debug],
    )
    .await;
    let _ann = relay.v1_with("?ticket=hush", "").await;
    let handshake = only(&receiver.spans_once(1).await, "GET /").clone();
    assert_eq!(
        (handshake.kind(), status(&handshake)),
        (SpanKind::Server, SpanStatus::Unset)
    );
    let expected = json!({
        "http.request.method": "GET",
        "http.route": "/",
        "http.response.status_code": 101,
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": relay.addr.port(),
        "url.path": "/",
        "url.scheme": "http",
    });
    assert_eq!(json!(attributes(&handshake.attributes)), expected);
    let (resource, scope) = {
        let got = receiver.got.lock().unwrap();
        let first = got.spans[0].clone();
        (first.resource.unwrap(), first.scope_spans[0].scope.clone())
    };
    let resource = attributes(&resource.attributes);
    assert_eq!(resource["service.name"], "relay-of-a-test");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (&resource["service.instance.id"], &resource["team"]),
        (&"n1".into(), &"a".into())
    );
    let InstrumentationScope { name, version, .. } = scope.unwrap();
    assert_eq!(
        (&*name, &*version),
        ("switchboard", env!("CARGO_PKG_VERSION"))
    );

    // A log line within the span has its ids.
    let accepted = relay.logs("upgrade accepted").await;
    assert_eq!(accepted["trace_id"], hex(&handshake.trace_id));
    assert_eq!(accepted["span_id"], hex(&handshake.span_id));
    assert_eq!(relay.logged("listening")[0].get("trace_id"), None);
    assert!(!receiver.has_seen("hush"));
}

#[tokio::test]
async fn the_standard_variables_win() {
    let receiver = Receiver::start(Manner::Takes).await;
    let endpoint = receiver.endpoint();
    let variables = [
        ("SWITCHBOARD__TRACING__SAMPLE_RATIO", "0"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "x-team=a,authorization=Bearer%20b",
        ),
        ("OTEL_TRACES_SAMPLER", "always_on"),
        ALL[1],
    ];
    let relay = Relay::start("http://127.0.0.1:1", &variables).await;
    let _ann = relay.v1().await;
    only(&receiver.spans_once(1).await, "GET /");
    let heads = receiver.got.lock().unwrap().heads.clone();
    assert_eq!(heads[0]["x-team"], "a");
    assert_eq!(heads[0]["authorization"], "Bearer b");

    let off = [ALL[0], ALL[1], ("OTEL_SDK_DISABLED", "true")];
    let mut relay = Relay::start(&endpoint, &off).await;
    let mut ann = relay.v1().await;
    ann.say(ann.id, "hi").await;
    ann.hears(ann.id, "hi").await;
    assert_eq!(relay.stop().await.code(), Some(0));
    assert_eq!(receiver.spans().len(), 1);
}

#[tokio::test]
async fn a_refused_handshake_has_a_span_with_the_status() {
    let receiver = Receiver::start(Manner::Takes).await;
    let full = ("SWITCHBOARD__LIMITS__CONNECTIONS", "1");
    let relay = Relay::start(&receiver.endpoint(), &[ALL[0], ALL[1], full]).await;
    let _ann = relay.v1().await;
    assert!(Client::upgrade(relay.addr, Dialect::Bare).await.is_err());
    let spans = receiver.spans_once(2).await;
    let refused = spans.iter().find(|span| status(span) == SpanStatus::Error);
    let refused = attributes(&refused.unwrap().attributes);
    assert_eq!(refused["http.response.status_code"], 503);
    assert_eq!(refused["error.type"], "503");
}

#[tokio::test]
async fn every_outcome_that_a_sender_learns_is_on_a_span() {
    let receiver = Receiver::start(Manner::Takes).await;
    let few = ("SWITCHBOARD__MAILBOX__MESSAGES", "4");
    let relay = Relay::start(&receiver.endpoint(), &[ALL[0], ALL[1], few]).await;
    let mut ann = relay.v1().await;
    let stalled = Raw::connect_narrow(relay.addr).await;
    let stalled = stalled.joined(Dialect::V1).await.narrowed();
    let stalled_id = ann.id + 1;

    // The socket takes some messages, the mailbox a few more, and the rest is refused.
    let long = "x".repeat(60_000);
    for id in 0..40 {
        ann.ask(stalled_id, &long, id).await;
    }
    ann.ask(1_000_000, "nobody", 40).await;
    ann.ask(ann.id, &"x".repeat(66_000), 41).await;
    ann.ask(ann.id, "myself", 42).await;
    eventually("all are received", async || {
        (relay.received().await == 43).then_some(())
    })
    .await;
    drop(stalled);
    let mut learnt = BTreeMap::<String, usize>::new();
    while learnt.values().sum::<usize>() < 43 {
        let heard = ann.hear().await;
        if let Some(status) = heard["status"].as_str() {
            *learnt.entry(status.to_owned()).or_default() += 1;
        }
    }
    for status in [
        "delivered",
        "queue_full",
        "disconnected",
        "offline",
        "too_large",
    ] {
        assert!(learnt.contains_key(status), "no {status} in {learnt:?}");
    }

    let told = eventually("a span says each outcome", async || {
        let spans = receiver.spans();
        let mut told = BTreeMap::<String, usize>::new();
        for span in &spans {
            if let Some(outcome) = outcome(span) {
                let failed = (outcome != "delivered").then_some(&outcome);
                assert_eq!(
                    attributes(&span.attributes).get("error.type"),
                    failed.map(|outcome| json!(outcome)).as_ref()
                );
                assert_eq!(status(span) == SpanStatus::Error, failed.is_some());
                *told.entry(outcome).or_default() += 1;
            }
        }
        (told.values().sum::<usize>() >= 43).then_some(told)
    })
    .await;
    assert_eq!(told, learnt);
}

const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

/// Sends a message with this `traceparent`, valid or not. Returns the one that the recipient gets.
async fn traceparent_behind(ann: &mut Client, ben: &mut Client, traceparent: Value) -> Value {
    let message = json!({"recipient_id": ben.id, "message": "hi", "traceparent": traceparent});
    ann.send(&message).await;
    let heard = ben.hear().await;
    assert_eq!(heard["message"], "hi", "{heard}");
    heard["traceparent"].clone()
}

#[tokio::test]
async fn a_trusted_client_continues_its_trace() {
    let receiver = Receiver::start(Manner::Takes).await;
    let trusting = [
        ("SWITCHBOARD__TRACING__SAMPLE_RATIO", "0"),
        ("SWITCHBOARD__TRACING__TRUST_CLIENTS", "true"),
        ALL[1],
    ];
    let relay = Relay::start(&receiver.endpoint(), &trusting).await;
    let mut ann = relay.v1_with("", SAMPLED).await;
    let mut ben = relay.v1_with("", UNSAMPLED).await;
    let continued = traceparent_behind(&mut ann, &mut ben, json!(SAMPLED)).await;
    let spans = receiver.spans_once(3).await;
    let send = only(&spans, "send users/{id}");
    for span in [only(&spans, "GET /"), send] {
        assert_eq!(hex(&span.trace_id), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(hex(&span.parent_span_id), "b7ad6b7169203331");
    }
    assert_eq!(
        only(&spans, "process users/{id}").parent_span_id,
        send.span_id
    );
    assert_eq!(continued, traceparent(send));

    // Without the sampled flag the relay makes no span and passes the context on. A malformed one is ignored.
    let goes_on = traceparent_behind(&mut ann, &mut ben, json!(UNSAMPLED)).await;
    assert_eq!(goes_on, UNSAMPLED);
    for malformed in [
        json!("00-01"),
        json!(SAMPLED.to_uppercase()),
        json!(7),
        Value::Null,
    ] {
        let found = traceparent_behind(&mut ann, &mut ben, malformed).await;
        assert_eq!(found, Value::Null);
    }
    ann.say(ben.id, "without").await;
    ben.hears(ann.id, "without").await;
    // A span of an earlier message would have arrived before this one.
    traceparent_behind(&mut ann, &mut ben, json!(SAMPLED)).await;
    assert_eq!(receiver.spans_once(5).await.len(), 5);
}

#[tokio::test]
async fn a_tracestate_goes_with_the_trace_of_a_trusted_client() {
    let receiver = Receiver::start(Manner::Takes).await;
    let trusting = [
        ("SWITCHBOARD__TRACING__SAMPLE_RATIO", "0"),
        ("SWITCHBOARD__TRACING__TRUST_CLIENTS", "true"),
        ALL[1],
    ];
    for strategy in ["directory", "router"] {
        let strategy = ("SWITCHBOARD__ROUTING__STRATEGY", strategy);
        let variables = [trusting[0], trusting[1], trusting[2], strategy];
        let relay = Relay::start(&receiver.endpoint(), &variables).await;
        let headers = [
            ("traceparent", SAMPLED),
            ("tracestate", "rojo=1, dd=s:1;o:rum"),
        ];
        let mut ann = relay.v1_traced("", &headers).await;
        let mut ben = relay.v1().await;
        let before = receiver.spans().len();
        for (traceparent, tracestate, expected) in [
            (SAMPLED, json!("a=b,c=d"), json!("a=b,c=d")),
            (UNSAMPLED, json!("a=b"), json!("a=b")),
            (SAMPLED, json!("A=b"), Value::Null),
            (SAMPLED, json!("a=\"b\""), Value::Null),
            (SAMPLED, json!(7), Value::Null),
            ("00-01", json!("a=b"), Value::Null),
        ] {
            let trace = json!({"recipient_id": ben.id, "message": "hi", "traceparent": traceparent,
                "tracestate": tracestate});
            ann.send(&trace).await;
            let heard = ben.hear().await;
            assert_eq!(heard["tracestate"], expected, "{heard}");
            let is_traced = traceparent != "00-01";
            assert_eq!(heard["traceparent"].is_string(), is_traced, "{heard}");
        }
        // The handshake, and two of each message that is sampled.
        let spans = receiver.spans_once(before.max(1) + 6).await;
        let states = |name: &str| {
            let mut states: Vec<_> = named(&spans, name)
                .iter()
                .map(|span| span.trace_state.clone())
                .collect();
            states.sort();
            states.dedup();
            states
        };
        assert_eq!(states("GET /"), ["rojo=1,dd=s:1;o:rum"]);
        assert_eq!(states("send users/{id}"), ["", "a=b,c=d"]);
        assert_eq!(states("process users/{id}"), ["", "a=b,c=d"]);
    }
}

/// In `OpenMetrics`, which a scraper asks for, a bucket of a histogram names the trace of a message in it.
#[tokio::test]
async fn the_histograms_have_the_traces_of_messages_as_exemplars() {
    let receiver = Receiver::start(Manner::Takes).await;
    let relay = Relay::start(&receiver.endpoint(), &ALL).await;
    let mut ann = relay.v1().await;
    ann.ask(ann.id, "hi", 1).await;
    ann.hear().await;
    ann.learns(1, "delivered").await;
    let send = only(&receiver.spans_once(3).await, "send users/{id}").clone();
    let trace = format!("# {{trace_id=\"{}\"}} ", hex(&send.trace_id));
    for (accept, count) in [("application/openmetrics-text", 1), ("text/plain", 0)] {
        let request = Handshake::request("GET", "/metrics").with("Accept", accept);
        let answer = Raw::connect(relay.addr).await.ask(&request).await;
        for name in ["delivery", "mailbox_wait"] {
            let name = format!("switchboard_{name}_seconds_bucket{{le=");
            let lines = answer.body.lines().filter(|line| line.starts_with(&name));
            let with_trace: Vec<_> = lines.filter(|line| line.contains(&trace)).collect();
            assert_eq!(with_trace.len(), count, "{}", answer.body);
        }
    }
}

#[tokio::test]
async fn an_untrusted_client_cannot_force_a_trace() {
    let receiver = Receiver::start(Manner::Takes).await;
    let never = ("SWITCHBOARD__TRACING__SAMPLE_RATIO", "0");
    let mut relay = Relay::start(&receiver.endpoint(), &[never]).await;
    let mut ann = relay.v1_with("", SAMPLED).await;
    let mut ben = relay.v1().await;
    let found = traceparent_behind(&mut ann, &mut ben, json!(SAMPLED)).await;
    assert_eq!(found, Value::Null);
    assert_eq!(relay.stop().await.code(), Some(0));
    assert_eq!(receiver.spans(), []);
}

#[tokio::test]
async fn a_bare_connection_gets_no_traceparent() {
    let receiver = Receiver::start(Manner::Takes).await;
    let trusting = ("SWITCHBOARD__TRACING__TRUST_CLIENTS", "true");
    let relay = Relay::start(&receiver.endpoint(), &[ALL[0], ALL[1], trusting]).await;
    let mut ann = Client::connect(relay.addr, Dialect::Bare).await;
    let message = json!({"recipient_id": ann.id, "message": "hi", "traceparent": SAMPLED});
    ann.send(&message).await;
    ann.hears(ann.id, "hi").await;
    // The message is traced at random, not because of the field, which the bare dialect does not know.
    let send = only(&receiver.spans_once(3).await, "send users/{id}").clone();
    assert_eq!(hex(&send.parent_span_id), "");
}

#[tokio::test]
async fn a_receiver_that_hangs_blocks_no_message_and_its_loss_is_counted() {
    let receiver = Receiver::start(Manner::Hangs).await;
    let variables = [
        ALL[0],
        ALL[1],
        ("SWITCHBOARD__TRACING__QUEUE_SPANS", "64"),
        ("SWITCHBOARD__TRACING__EXPORT_TIMEOUT", "1h"),
        ("SWITCHBOARD__TRACING__FLUSH_TIMEOUT", "200ms"),
    ];
    let mut relay = Relay::start(&receiver.endpoint(), &variables).await;
    let mut ann = relay.v1().await;
    for id in 0..500 {
        ann.ask(ann.id, "hi", id).await;
        // The message and its outcome.
        ann.hear().await;
        ann.hear().await;
    }
    let waiting = {
        let (exported, lost) = relay.spans("queue_full").await;
        assert_eq!((exported, relay.spans("export_failed").await.1), (0, 0));
        // One span of the handshake and two of each message, without those that wait or are being sent.
        1001 - lost
    };
    // One batch, at most as large as the queue, is being sent for ever.
    assert!((65..=128).contains(&waiting), "{waiting}");
    // Does not wait for the exporter's own timeout.
    assert_eq!(relay.stop().await.code(), Some(0));
    assert_eq!(
        relay
            .logs("spans not sent within tracing.flush_timeout")
            .await["waiting"],
        64
    );
}

#[tokio::test]
async fn a_receiver_that_comes_back_gets_spans_again() {
    let nobody = {
        let receiver = Receiver::start(Manner::Takes).await;
        receiver.addr
    };
    let endpoint = format!("http://{nobody}");
    let relay = Relay::start(&endpoint, &ALL).await;
    let mut ann = relay.v1().await;
    let mut sent = 0;
    let mut talk = async || {
        ann.say(ann.id, "hi").await;
        ann.hear().await;
        sent += 1;
        sent
    };
    for _ in 0..3 {
        talk().await;
    }
    eventually("all are lost", async || {
        (relay.spans("export_failed").await == (0, 7)).then_some(())
    })
    .await;
    talk().await;
    eventually("more are lost", async || {
        (relay.spans("export_failed").await == (0, 9)).then_some(())
    })
    .await;
    let warning = relay.logs("spans cannot be sent and will be lost").await;
    assert_eq!(warning["endpoint"], format!("{endpoint}/v1/traces"));
    let reason = warning["error"].as_str().unwrap();
    assert!(reason.contains("Connection refused"), "{reason}");

    let receiver = Receiver::start_at(nobody, Manner::Takes).await;
    talk().await;
    assert_eq!(receiver.spans_once(2).await.len(), 2);
    relay.logs("spans are sent again").await;
    assert_eq!(relay.spans("export_failed").await, (2, 9));
    // Logged once, not for each batch.
    assert_eq!(
        relay.logged("spans cannot be sent and will be lost").len(),
        1
    );
}

#[tokio::test]
async fn a_receiver_that_refuses_is_counted() {
    for (manner, reason, exported, lost) in [
        (Manner::TakesLess(2), "refused", 1, 2),
        (
            Manner::Fails(StatusCode::BAD_REQUEST),
            "export_failed",
            0,
            3,
        ),
        (
            Manner::Fails(StatusCode::SERVICE_UNAVAILABLE),
            "export_failed",
            0,
            3,
        ),
    ] {
        let receiver = Receiver::start(manner).await;
        // All spans are in one batch, which is sent when it is full.
        let batch = [
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3"),
            ("OTEL_BSP_SCHEDULE_DELAY", "600000"),
        ];
        let relay = Relay::start(&receiver.endpoint(), &[ALL[0], batch[0], batch[1]]).await;
        let mut ann = relay.v1().await;
        ann.say(ann.id, "hi").await;
        eventually(&format!("{manner:?}"), async || {
            (relay.spans(reason).await == (exported, lost)).then_some(())
        })
        .await;
    }
}

/// An authority, and a receiver's certificate and key that it signed.
fn authority() -> (String, TlsAcceptor) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    (authority.pem(), TlsAcceptor::from(Arc::new(config)))
}

const HERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[tokio::test]
async fn spans_go_by_https_and_gzip_to_a_receiver_that_a_given_authority_signed() {
    for variable in [
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
        "SWITCHBOARD__TRACING__TLS_CA_FILE",
        "SSL_CERT_FILE",
    ] {
        let (authority, tls) = authority();
        let authority = settings_file(&format!("{variable}.pem"), &authority);
        let receiver = Receiver::serve(HERE, Manner::Takes, Some(tls)).await;
        let endpoint = format!("https://{}", receiver.addr);
        let variables = [
            ALL[0],
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            // Spans are sent only at the end of the process.
            ("OTEL_BSP_SCHEDULE_DELAY", "600000"),
            (variable, authority.to_str().unwrap()),
        ];
        let mut relay = Relay::start(&endpoint, &variables).await;
        let mut ann = relay.v1().await;
        ann.say(ann.id, "Go Braves!").await;
        assert_eq!(ann.hear().await["message"], "Go Braves!");
        assert_eq!(receiver.spans(), []);
        assert_eq!(relay.stop().await.code(), Some(0));

        let spans = receiver.spans();
        assert_eq!(spans.len(), 3, "{variable}: {spans:?}");
        let (send, process) = (
            only(&spans, "send users/{id}"),
            only(&spans, "process users/{id}"),
        );
        assert_eq!(process.parent_span_id, send.span_id);
        assert_eq!(process.links[0].span_id, send.span_id);
        let got = receiver.got.lock().unwrap();
        assert_eq!(got.heads[0]["content-encoding"], "gzip");
        assert_eq!(got.refused, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_receiver_that_no_authority_signed_gets_no_span_and_the_relay_says_why() {
    let (_, tls) = authority();
    let receiver = Receiver::serve(HERE, Manner::Takes, Some(tls)).await;
    let endpoint = format!("https://{}", receiver.addr);
    let (other, _) = authority();
    let other = settings_file("other-authority.pem", &other);
    let (other, none) = (other.to_str().unwrap(), "/no/such/file.pem");
    for (variable, file) in [
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", other),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", none),
        ("SSL_CERT_FILE", none),
    ] {
        let relay = Relay::start(&endpoint, &[ALL[0], ALL[1], (variable, file)]).await;
        let mut ann = relay.v1().await;
        ann.say(ann.id, "hi").await;
        ann.hear().await;
        eventually("all are lost", async || {
            (relay.spans("export_failed").await == (0, 3)).then_some(())
        })
        .await;
        let warning = relay.logs("spans cannot be sent and will be lost").await;
        let reason = warning["error"].as_str().unwrap();
        assert!(
            reason.contains("certificate"),
            "{variable} {file}: {reason}"
        );
        let log = relay.log.lock().unwrap();
        let said = log.iter().filter_map(|line| line["message"].as_str());
        let said = said.filter(|text| text.contains("no receiver can be trusted"));
        assert_eq!(said.count(), usize::from(file == none), "{variable}");
    }
    assert_eq!(receiver.spans(), []);
}

#[tokio::test]
async fn a_standard_variable_that_is_not_supported_does_not_stop_the_relay() {
    let receiver = Receiver::start(Manner::Takes).await;
    let variables = [
        ALL[0],
        ALL[1],
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_EXPORTER", "console"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:secret@collector"),
    ];
    let endpoint = receiver.endpoint();
    let relay = Relay::start(&endpoint, &variables).await;
    let _ann = relay.v1().await;
    receiver.spans_once(1).await;
    let set = format!(
        "tracing.otlp_endpoint is {endpoint:?}, set by SWITCHBOARD__TRACING__OTLP_ENDPOINT"
    );
    let default =
        |key: &str, value: &str| format!("{key} is {value:?}, set by the built-in default");
    let warnings = [
        format!("OTEL_TRACES_EXPORTER: \"console\" is not supported; {set}"),
        "OTEL_EXPORTER_OTLP_PROTOCOL: \"grpc\" is not supported; http/protobuf is used".to_owned(),
        format!("OTEL_EXPORTER_OTLP_ENDPOINT: \"http://***@collector\" is not supported; {set}"),
        format!(
            "OTEL_EXPORTER_OTLP_TIMEOUT: \"10s\" is not supported; {}",
            default("tracing.export_timeout", "10s")
        ),
        format!(
            "OTEL_EXPORTER_OTLP_COMPRESSION: \"zstd\" is not supported; {}",
            default("tracing.compression", "none")
        ),
    ];
    for warning in &warnings {
        assert_eq!(relay.logged(warning).len(), 1, "{warning}");
        assert_eq!(relay.logged(warning)[0]["level"], "WARN");
    }

    let check = Command::new(env!("CARGO_BIN_EXE_switchboard"))
        .arg("check")
        .env_clear()
        .envs(profile())
        .env("SWITCHBOARD__TRACING__OTLP_ENDPOINT", &endpoint)
        .envs(variables)
        // Not UTF-8.
        .env("OTEL_TRACES_SAMPLER", OsStr::from_bytes(b"\xff"))
        .output();
    let check = within("check", check).await.unwrap();
    let said = str::from_utf8(&check.stderr).unwrap();
    assert_eq!(check.status.code(), Some(0), "{said}");
    for warning in &warnings {
        assert!(
            said.contains(&format!("switchboard: warning: {warning}\n")),
            "{said}"
        );
    }
    assert!(
        said.contains("OTEL_TRACES_SAMPLER: \"\u{fffd}\" is not supported"),
        "{said}"
    );
}

/// Writes a file of this name and returns its path.
fn settings_file(name: &str, text: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn sighup_reads_the_filter_again_and_keeps_the_old_one_if_the_file_is_invalid() {
    let receiver = Receiver::start(Manner::Takes).await;
    let name = "sighup.toml";
    let file = settings_file(name, "[log]\nfilter = \"info\"\n");
    let mut relay = Relay::start_with(
        &["--config", file.to_str().unwrap()],
        &receiver.endpoint(),
        &[ALL[1]],
    )
    .await;
    drop(relay.v1().await);

    settings_file(
        name,
        "[log]\nfilter = \"debug\"\n[tracing]\nsample_ratio = 1.0\n[mailbox]\nmessages = 7\n",
    );
    relay.signal("HUP");
    let reloaded = relay.logs("settings reloaded").await;
    assert_eq!(reloaded["changed"], "log.filter, tracing.sample_ratio");
    assert_eq!(reloaded["needs_restart"], "mailbox.messages");
    assert_eq!(relay.logged("upgrade accepted").len(), 0);
    drop(relay.v1().await);
    relay.logs("upgrade accepted").await;
    receiver.spans_once(1).await;

    settings_file(name, "[log]\nfilter = \"warn\"\nformat = \"xml\"\n");
    relay.signal("HUP");
    let refused = relay.logs("setting refused").await;
    assert_eq!(
        refused["problem"],
        format!(
            "{}: log.format: found \"xml\", allowed: \"text\", \"json\"",
            file.display()
        )
    );
    relay
        .logs("settings not reloaded: the running settings stay in effect")
        .await;
    // Lines of level debug are still logged.
    drop(relay.v1().await);
    eventually("the filter stays", async || {
        (relay.logged("upgrade accepted").len() == 2).then_some(())
    })
    .await;

    settings_file(
        name,
        "[log]\nfilter = \"debug\"\n[tracing]\nsample_ratio = 1.0\n",
    );
    relay.signal("HUP");
    let again = eventually("reloaded again", async || {
        relay.logged("settings reloaded").get(1).cloned()
    })
    .await;
    assert_eq!(
        (&again["changed"], &again["needs_restart"]),
        (&"".into(), &"".into())
    );
    assert_eq!(relay.stop().await.code(), Some(0));
}
