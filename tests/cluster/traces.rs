//! The trace of a message that crosses: one tree, whichever nodes its spans are from.

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;

use crate::nats::Nats;
use crate::node::Node;
use crate::otlp::{Manner, Receiver};

crate::tests!("traces":
    a_message_is_one_tree_across_two_nodes,
    what_is_not_traced_crosses_without_headers,
    a_client_that_traces_by_itself_is_heard_on_the_other_node,
);

const NAMES: [&str; 2] = ["send users/{id}", "process users/{id}"];
const ROUTER: (&str, &str) = ("ROUTING__STRATEGY", "router");

/// Two nodes that trace to this receiver, as much as that; the second routes by the router.
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
        found => panic!("one {name}, not {found:?}"),
    }
}

fn traceparent(span: &Span) -> String {
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id))
}

async fn a_message_is_one_tree_across_two_nodes() {
    let nats = Nats::start().await;
    let receiver = Receiver::start(Manner::Takes).await;
    let nodes = two(&nats, &receiver, &[("TRACING__SAMPLE_RATIO", "1")]).await;
    for (from, to) in [(0, 1), (1, 0)] {
        let (mut alice, mut bob) = (nodes[from].user().await, nodes[to].user().await);
        // With an outcome, which goes its own way back; and without, where nothing but the trace is owed.
        alice.ask(bob.id, "Go Braves!", 1).await;
        assert_eq!(alice.outcome(1).await, "delivered");
        alice.say(bob.id, "Go, indeed.").await;
        bob.hears(alice.id, "Go, indeed.").await;
        let told = bob.told().frames;
        for (frame, text) in told.iter().zip(["Go Braves!", "Go, indeed."]) {
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
            assert_eq!(spans.len(), 2, "nothing is told twice");
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
    // Dropped on the other node: told there.
    let (mut alice, bob) = (nodes[0].user().await, nodes[1].user().await);
    let away = bob.id;
    bob.leave().await;
    alice.ask(away, "still there?", 2).await;
    assert_eq!(alice.outcome(2).await, "offline");
    crate::eventually("a span of what was dropped", async || {
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

/// The server's own log of all that passes has the headers of each message.
async fn what_is_not_traced_crosses_without_headers() {
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
    let published = format!(" [PUB switchboard.b.2.{} ", bob.id);
    assert_eq!(nats.log().matches(&published).count(), 20);
    assert!(!nats.log().contains("HPUB switchboard.b."));
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let traced = json!({"recipient_id": bob.id, "message": "traced", "traceparent": traceparent});
    alice.send(traced).await;
    bob.hears(alice.id, "traced").await;
    assert!(
        nats.log().contains("HPUB switchboard.b."),
        "as it is written with them"
    );
    drop((alice, bob));
    for node in nodes {
        node.stop().await;
    }
}

async fn a_client_that_traces_by_itself_is_heard_on_the_other_node() {
    let nats = Nats::start().await;
    let receiver = Receiver::start(Manner::Takes).await;
    let trust = [
        ("TRACING__SAMPLE_RATIO", "1"),
        ("TRACING__TRUST_CLIENTS", "true"),
    ];
    let nodes = two(&nats, &receiver, &trust).await;
    let (mut alice, mut bob) = (nodes[0].user().await, nodes[1].user().await);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    // It has decided against spans of its own: none are made, and its word goes on.
    let untold = format!("00-{trace}-b7ad6b7169203331-00");
    alice
        .send(json!({"recipient_id": bob.id, "message": "untold", "traceparent": untold}))
        .await;
    bob.hears(alice.id, "untold").await;
    assert_eq!(bob.told().frames[0]["traceparent"], json!(untold));
    let told = format!("00-{trace}-b7ad6b7169203331-01");
    alice
        .send(json!({"recipient_id": bob.id, "message": "told", "traceparent": told}))
        .await;
    bob.hears(alice.id, "told").await;
    let of_it = crate::eventually("both spans", async || {
        let spans = receiver.spans();
        let id = data_encoding::HEXLOWER.decode(trace.as_bytes()).unwrap();
        let of_it = spans.into_iter().filter(|span| span.trace_id == id);
        let of_it: Vec<_> = of_it.collect();
        (of_it.len() > 1).then_some(of_it)
    })
    .await;
    let [send, process] = NAMES.map(|name| only(&of_it, name));
    assert_eq!(traceparent(send), bob.told().frames[1]["traceparent"]);
    assert_eq!(process.parent_span_id, send.span_id);
    drop((alice, bob));
    for node in nodes {
        node.stop().await;
    }
}
