//! Traces of messages between nodes: the spans of both nodes form one tree.

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;

use crate::nats::Nats;
use crate::node::Node;
use crate::otlp::{Manner, Receiver};

crate::tests!("traces":
    a_message_has_one_trace_across_two_nodes,
    messages_without_a_trace_cross_without_headers,
    a_traceparent_of_a_client_reaches_the_other_node,
);

const NAMES: [&str; 2] = ["send users/{id}", "process users/{id}"];
const ROUTER: (&str, &str) = ("ROUTING__STRATEGY", "router");

/// Two nodes that export spans to this receiver; the second one uses the strategy `router`.
async fn two(nats: &Nats, receiver: &Receiver, changes: &[(&str, &str)]) -> [Node; 2] {
    let endpoint = receiver.endpoint();
    let to = [("TRACING__OTLP_ENDPOINT", &*endpoint)];
    let settings = [&to, changes].concat();
    let routed = [&settings[..], &[ROUTER]].concat();
    [
        Node::start(&nats.url(), &settings).await,
        Node::start(&nats.url(), &routed).await,
    ]
}

fn only<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut named = spans.iter().filter(|span| span.name == name);
    match (named.next(), named.next()) {
        (Some(span), None) => span,
        found => panic!("expected one span {name}, found {found:?}"),
    }
}

fn traceparent(span: &Span) -> String {
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id))
}

async fn a_message_has_one_trace_across_two_nodes() {
    let nats = Nats::start().await;
    let receiver = Receiver::start(Manner::Takes).await;
    let nodes = two(&nats, &receiver, &[("TRACING__SAMPLE_RATIO", "1")]).await;
    for (from, to) in [(0, 1), (1, 0)] {
        let (mut alice, mut bob) = (nodes[from].user().await, nodes[to].user().await);
        // A message with an outcome, which returns to the sender's node, and a message without one.
        alice.ask(bob.id, "Go Braves!", 1).await;
        assert_eq!(alice.outcome(1).await, "delivered");
        alice.say(bob.id, "Go, indeed.").await;
        bob.hears(alice.id, "Go, indeed.").await;
        let frames = bob.received().frames;
        for (frame, text) in frames.iter().zip(["Go Braves!", "Go, indeed."]) {
            let of_trace = |span: &&Span| frame["traceparent"] == json!(traceparent(span));
            let spans = crate::eventually("both spans", async || {
                let spans = receiver.spans();
                let sent = spans.iter().find(of_trace)?;
                let of_it = spans.iter().filter(|span| span.trace_id == sent.trace_id);
                let spans: Vec<_> = of_it.cloned().collect();
                (spans.len() > 1).then_some(spans)
            })
            .await;
            let [send, process] = NAMES.map(|name| only(&spans, name));
            assert_eq!(spans.len(), 2, "a span was exported twice");
            assert_eq!(
                (send.kind(), process.kind()),
                (SpanKind::Producer, SpanKind::Consumer)
            );
            assert_eq!(process.parent_span_id, send.span_id);
            let [link] = &process.links[..] else {
                panic!("{:?}", process.links);
            };
            assert_eq!(
                (&link.trace_id, &link.span_id),
                (&send.trace_id, &send.span_id)
            );
            for (span, outcome) in [(send, "queued"), (process, "delivered")] {
                let shown = format!("{:?}", span.attributes);
                assert!(shown.contains(&format!("\"{outcome}\"")), "{shown}");
                assert!(
                    shown.contains(&format!("IntValue({})", text.len())),
                    "{shown}"
                );
            }
        }
    }
    // The other node drops a message, and exports the span of it.
    let (mut alice, bob) = (nodes[0].user().await, nodes[1].user().await);
    let away = bob.id;
    bob.leave().await;
    alice.ask(away, "still there?", 2).await;
    assert_eq!(alice.outcome(2).await, "offline");
    crate::eventually("the span of the dropped message", async || {
        let spans = receiver.spans();
        let dropped = spans.iter().find(|span| {
            span.name == NAMES[1] && format!("{:?}", span.attributes).contains("\"offline\"")
        })?;
        let send = spans
            .iter()
            .find(|span| span.span_id == dropped.parent_span_id)?;
        (send.name == NAMES[0]).then_some(())
    })
    .await;
    drop(alice);
    for node in nodes {
        node.stop().await;
    }
    assert!(!receiver.has_seen("Braves"));
}

/// The trace log of NATS shows whether a message has headers: HPUB, otherwise PUB.
async fn messages_without_a_trace_cross_without_headers() {
    let nats = Nats::with("debug: true\ntrace: true").await;
    let receiver = Receiver::start(Manner::Takes).await;
    let trust = [
        ("TRACING__SAMPLE_RATIO", "0"),
        ("TRACING__TRUST_CLIENTS", "true"),
    ];
    let nodes = two(&nats, &receiver, &trust).await;
    let (mut alice, mut bob) = (nodes[0].user().await, nodes[1].user().await);
    for id in 0..20 {
        alice.ask(bob.id, &format!("number {id}"), id).await;
        assert_eq!(alice.outcome(id).await, "delivered");
    }
    let messages = |log: &str, published: &str| {
        let of_messages = |line: &&str| {
            let subject = line
                .split_once(published)
                .and_then(|(_, rest)| rest.split(' ').next());
            subject.is_some_and(|subject| subject.rsplit('.').next() == Some("m"))
        };
        log.lines().filter(of_messages).count()
    };
    assert_eq!(messages(&nats.log(), " [PUB switchboard.2.n."), 20);
    assert_eq!(messages(&nats.log(), " [HPUB switchboard.2.n."), 0);
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let traced = json!({"recipient_id": bob.id, "message": "traced", "traceparent": traceparent});
    alice.send(traced).await;
    bob.hears(alice.id, "traced").await;
    assert_eq!(
        messages(&nats.log(), " [HPUB switchboard.2.n."),
        1,
        "a traced message has no HPUB in the log"
    );
    drop((alice, bob));
    for node in nodes {
        node.stop().await;
    }
}

async fn a_traceparent_of_a_client_reaches_the_other_node() {
    let nats = Nats::start().await;
    let receiver = Receiver::start(Manner::Takes).await;
    let trust = [
        ("TRACING__SAMPLE_RATIO", "1"),
        ("TRACING__TRUST_CLIENTS", "true"),
    ];
    let nodes = two(&nats, &receiver, &trust).await;
    let (mut alice, mut bob) = (nodes[0].user().await, nodes[1].user().await);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    // The client's flags say "not sampled": the nodes make no spans, and pass the traceparent on.
    let unsampled = format!("00-{trace}-b7ad6b7169203331-00");
    alice
        .send(json!({"recipient_id": bob.id, "message": "unsampled", "traceparent": unsampled}))
        .await;
    bob.hears(alice.id, "unsampled").await;
    assert_eq!(bob.received().frames[0]["traceparent"], json!(unsampled));
    let sampled = format!("00-{trace}-b7ad6b7169203331-01");
    alice
        .send(json!({"recipient_id": bob.id, "message": "sampled", "traceparent": sampled, "tracestate": "a=b"}))
        .await;
    bob.hears(alice.id, "sampled").await;
    let of_it = crate::eventually("both spans", async || {
        let spans = receiver.spans();
        let id = data_encoding::HEXLOWER.decode(trace.as_bytes()).unwrap();
        let of_it = spans.into_iter().filter(|span| span.trace_id == id);
        let of_it: Vec<_> = of_it.collect();
        (of_it.len() > 1).then_some(of_it)
    })
    .await;
    let [send, process] = NAMES.map(|name| only(&of_it, name));
    assert_eq!(traceparent(send), bob.received().frames[1]["traceparent"]);
    assert_eq!(bob.received().frames[1]["tracestate"], "a=b");
    assert_eq!([&*send.trace_state, &*process.trace_state], ["a=b"; 2]);
    assert_eq!(process.parent_span_id, send.span_id);
    drop((alice, bob));
    for node in nodes {
        node.stop().await;
    }
}
