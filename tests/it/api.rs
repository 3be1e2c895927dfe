//! The API for operators over real sockets: every route, every problem, and a ledger that balances.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use switchboard::api::OPENAPI;
use switchboard::app::Stop;
use switchboard::config::{AuthMode, Settings, Strategy};

use crate::harness::{Answer, Client, Dialect, Handshake, Relay, clog, eventually};

const TOKEN: &str = "let-me-in";

/// A relay with an API, and the file with its token.
struct Operated {
    relay: Relay,
    token_file: PathBuf,
}

impl Operated {
    async fn start(strategy: Strategy, change: impl FnOnce(&mut Settings)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("api-token-{}-{count}", std::process::id());
        let token_file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::write(&token_file, format!("{TOKEN}\n")).unwrap();
        let relay = Relay::start(strategy, |settings| {
            settings.admin.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
            settings.admin.token_file = Some(token_file.clone());
            change(settings);
        })
        .await;
        Self { relay, token_file }
    }

    /// The response of the API to an operator.
    async fn ask(&self, method: &str, target: &str, body: &str) -> Answer {
        let fields = format!("Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n");
        self.request(method, target, &fields, body).await
    }

    async fn request(&self, method: &str, target: &str, fields: &str, body: &str) -> Answer {
        let length = match body {
            "" => String::new(),
            body => format!("Content-Length: {}\r\n", body.len()),
        };
        let request =
            format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{fields}{length}\r\n{body}");
        let mut peer = self.relay.raw_admin().await;
        peer.write(request.as_bytes()).await;
        peer.answer(method != "HEAD").await.expect("an answer")
    }

    /// The body of a successful response.
    async fn done(&self, method: &str, target: &str, body: &str) -> Value {
        let answer = self.ask(method, target, body).await;
        assert_eq!(answer.status, 200, "{method} {target}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        serde_json::from_str(&answer.body).unwrap()
    }

    /// Sends a message by the API and returns its status.
    async fn post(&self, recipient: u64, message: &str) -> String {
        let body = json!({"recipient_id": recipient, "message": message});
        let sent = self.done("POST", "/api/messages", &body.to_string()).await;
        assert_eq!(sent["recipient_id"], recipient);
        sent["status"].as_str().unwrap().to_owned()
    }

    /// A request that fails with this status and problem type. Returns the problem.
    async fn fails(&self, request: (&str, &str, &str), status: u16, kind: &str) -> Value {
        let (method, target, body) = request;
        let answer = self.ask(method, target, body).await;
        problem(&answer, status, kind)
    }

    async fn end(self) {
        self.relay.stop().await;
        fs::remove_file(self.token_file).unwrap();
    }
}

fn problem(answer: &Answer, status: u16, kind: &str) -> Value {
    assert_eq!(answer.status, status, "{answer:?}");
    let content_type = answer.header("content-type");
    assert_eq!(content_type, Some("application/problem+json"), "{answer:?}");
    let problem: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(problem["status"], status, "{problem}");
    let expected = format!("/api/openapi.yaml#/x-problems/{kind}");
    assert_eq!(problem["type"], expected, "{problem}");
    assert!(problem["title"].is_string() && problem["detail"].is_string());
    let described = format!("\n  {kind}: ");
    let (_, types) = OPENAPI.split_once("\nx-problems:").unwrap();
    assert!(types.contains(&described), "{kind} is not described");
    problem
}

async fn user_of(relay: &Relay, dialect: Dialect) -> Client {
    relay.connect(dialect).await
}

both_strategies! {
    async fn delivered_is_returned_only_after_delivery(strategy) {
        let operated = Operated::start(strategy, |_| ()).await;
        for dialect in Dialect::BOTH {
            let mut user = user_of(&operated.relay, dialect).await;
            assert_eq!(operated.post(user.id, "from above").await, "delivered");
            user.hears(0, "from above").await;
            let body = json!({"recipient_id": user.id, "message": "\u{1F98A} \"q\"\\", "sender_id": 77});
            let sent = operated.done("POST", "/api/messages", &body.to_string()).await;
            assert_eq!(sent, json!({"sender_id": 77, "recipient_id": user.id, "status": "delivered"}));
            user.hears(77, "\u{1F98A} \"q\"\\").await;
        }
        assert_eq!(operated.post(99, "nobody").await, "offline");
        // In JSON these are integers, too.
        let body = r#"{"recipient_id":9.9e1,"message":"nobody","sender_id":-0.0}"#;
        let sent = operated.done("POST", "/api/messages", body).await;
        assert_eq!(sent, json!({"sender_id": 0, "recipient_id": 99, "status": "offline"}));
        let ledger = operated.relay.ledger().await.ledger();
        assert_eq!((ledger.received, ledger.delivered, ledger.dropped), (6, 4, 2));
        operated.end().await;
    }

    /// With a recipient that does not read, messages that fit are pending, the others are refused at once, and
    /// the ledger counts both.
    async fn the_wait_for_an_outcome_ends(strategy) {
        let operated = Operated::start(strategy, |settings| {
            settings.admin.outcome_timeout = Duration::from_millis(20);
            settings.mailbox.messages = 8;
        })
        .await;
        let relay = &operated.relay;
        let recipient = relay.narrow_user(Dialect::Bare).await;
        let mut sender = relay.bare().await;
        clog(relay, &mut sender, recipient.id, 8192, 4).await;
        let body = json!({"recipient_id": recipient.id, "message": "x"}).to_string();
        let mut pending = 0;
        let begin = tokio::time::Instant::now();
        loop {
            let answer = operated.ask("POST", "/api/messages", &body).await;
            let sent: Value = serde_json::from_str(&answer.body).unwrap();
            if sent["status"] == "queue_full" {
                assert_eq!(answer.status, 200);
                break;
            }
            assert_eq!((answer.status, &sent["status"]), (202, &json!("pending")));
            pending += 1;
            assert!(pending <= 8, "the mailbox has a bound");
        }
        assert!(pending > 0);
        // By default, one of them would wait for 5 s.
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        recipient.reset();
        let scrape = relay.ledger().await;
        assert!(scrape.dropped("disconnected") >= pending);
        assert_eq!(scrape.dropped("queue_full"), 1);
        operated.end().await;
    }

    async fn a_user_is_shown_without_its_messages(strategy) {
        let operated = Operated::start(strategy, |_| ()).await;
        let mut one = operated.relay.bare().await;
        let mut two = operated.relay.v1().await;
        for n in 0..3 {
            one.say(two.id, &n.to_string()).await;
            two.hears(one.id, &n.to_string()).await;
        }
        two.ask(one.id, "secret-text", 1).await;
        one.hears(two.id, "secret-text").await;
        two.learns(1, "delivered").await;
        let seen = eventually("counts", async || {
            let seen = operated.done("GET", "/api/users/2", "").await;
            (seen["counts"] == json!({"sent": 1, "delivered": 3})).then_some(seen)
        })
        .await;
        assert_eq!((&seen["id"], &seen["online"]), (&json!(2), &json!(true)));
        assert_eq!(seen["protocol"], "switchboard.v1");
        assert_eq!(seen["subject"], Value::Null);
        assert_eq!(seen["queue"], json!({"messages": 0, "bytes": 0}));
        assert!(!seen.to_string().contains("secret-text"));
        let port = operated.relay.addr.port().to_string();
        assert!(seen["node"].as_str().unwrap().ends_with(&port), "{seen}");
        let since = seen["since"].as_str().unwrap();
        assert!(since.len() == 20 && since.ends_with('Z'), "{since}");
        let again = operated.done("GET", "/api/users/2", "").await;
        assert_eq!(again["since"], since);
        let bare = operated.done("GET", "/api/users/1", "").await;
        assert_eq!(bare["protocol"], "bare");
        assert_eq!(bare["counts"], json!({"sent": 3, "delivered": 1}));

        two.leave().await;
        let absent = json!({"id": 2, "online": false, "node": seen["node"]});
        eventually("the user has left", async || {
            (operated.done("GET", "/api/users/2", "").await == absent).then_some(())
        })
        .await;
        operated.end().await;
    }

    async fn slow_readers_and_loud_senders_are_listed_first(strategy) {
        let operated = Operated::start(strategy, |_| ()).await;
        let relay = &operated.relay;
        let slow = relay.narrow_user(Dialect::Bare).await;
        let mut loud = relay.bare().await;
        let _quiet = relay.bare().await;
        clog(relay, &mut loud, slow.id, 8192, 3).await;

        let seen = operated.done("GET", "/api/users?sort=queue&limit=2", "").await;
        let users = seen["users"].as_array().unwrap();
        assert_eq!((users.len(), &seen["sort"]), (2, &json!("queue")));
        assert_eq!(users[0]["id"], slow.id);
        assert!(users[0]["queue"]["bytes"].as_u64().unwrap() > 2 * 8192);
        assert_eq!(users[0].get("rate"), None);

        let looking = operated.done("GET", "/api/users?sort=rate&limit=1", "");
        let talking = async {
            loop {
                loud.say(99, "again").await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let seen = tokio::select! {
            seen = looking => seen,
            () = talking => unreachable!("it never stops"),
        };
        let users = seen["users"].as_array().unwrap();
        assert_eq!((users.len(), &users[0]["id"]), (1, &json!(loud.id)));
        assert!(users[0]["rate"].as_u64().unwrap() > 0, "{seen}");

        let all = operated.done("GET", "/api/users", "").await;
        assert_eq!(all["users"].as_array().unwrap().len(), 3);
        slow.reset();
        operated.end().await;
    }

    async fn a_removed_user_gets_the_reason(strategy) {
        let operated = Operated::start(strategy, |_| ()).await;
        let mut silent = operated.relay.bare().await;
        let mut told = operated.relay.v1().await;
        assert_eq!(operated.post(told.id, "last words").await, "delivered");
        let removed = |id: u64, removed: bool| json!({"id": id, "removed": removed});
        let target = format!("/api/users/{}?reason=spam,%20again%20%C3%A9+%2B", told.id);
        let answer = operated.done("DELETE", &target, "").await;
        assert_eq!(answer, removed(told.id, true));
        told.hears(0, "last words").await;
        assert_eq!(told.closed_with(4410).await, "spam, again \u{e9} +");
        let answer = operated.done("DELETE", "/api/users/1", "").await;
        assert_eq!(answer, removed(1, true));
        assert_eq!(silent.closed_with(4410).await, "removed by an operator");
        operated.relay.until_closed("server", "4410", 2).await;
        for _ in 0..2 {
            let answer = operated.done("DELETE", "/api/users/1", "").await;
            assert_eq!(answer, removed(1, false));
        }
        assert_eq!(operated.post(1, "too late").await, "offline");
        operated.end().await;
    }

    async fn the_status_agrees_with_the_metrics(strategy) {
        let operated = Operated::start(strategy, |_| ()).await;
        let mut user = operated.relay.bare().await;
        operated.post(user.id, "hi").await;
        user.hears(0, "hi").await;
        user.say(99, "nobody").await;
        let ledger = operated.relay.ledger().await.ledger();
        let status = operated.done("GET", "/api/status", "").await;
        assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
        let messages = &status["messages"];
        assert_eq!(messages["received"], ledger.received);
        assert_eq!(messages["delivered"], ledger.delivered);
        assert_eq!(messages["dropped"]["offline"], 1);
        assert_eq!(messages["mailbox"], 0);
        let all = (&status["users"], &status["ready"], &status["drain"], &status["cluster"]);
        assert_eq!(all, (&json!(1), &json!(true), &Value::Null, &Value::Null));
        operated.end().await;
    }

    async fn a_full_node_says_that_no_user_can_connect(strategy) {
        let operated = Operated::start(strategy, |settings| {
            settings.limits.connections = Some(1);
        })
        .await;
        let user = operated.relay.bare().await;
        assert_eq!(operated.done("GET", "/api/status", "").await["ready"], false);
        user.leave().await;
        eventually("the node is ready again", async || {
            let status = operated.done("GET", "/api/status", "").await;
            (status["ready"] == true).then_some(())
        })
        .await;
        operated.end().await;
    }

    /// Like a drain by a signal, but with the requested spread. A second request changes nothing.
    async fn only_the_first_request_for_a_drain_counts(strategy) {
        let operated = Operated::start(strategy, |settings| {
            settings.drain.spread = Duration::from_secs(5);
        })
        .await;
        let mut users = Vec::new();
        for dialect in Dialect::BOTH {
            users.push(operated.relay.connect(dialect).await);
        }
        // The second of two users is told to reconnect at the end of the spread.
        for body in [r#"{"spread":"500ms"}"#, "", "{}"] {
            let answer = operated.ask("POST", "/api/drain", body).await;
            assert_eq!((answer.status, &*answer.body), (202, r#"{"spread":"500ms"}"#));
        }
        eventually("the drain is seen", async || {
            let status = operated.done("GET", "/api/status", "").await;
            let stage = &status["drain"]["stage"];
            (stage == "spread" && status["ready"] == false).then_some(())
        })
        .await;
        for mut user in users {
            let (frames, code, _) = user.rest().await;
            assert_eq!(code, 1012);
            for frame in frames {
                assert!(frame["after_ms"].as_u64().unwrap() <= 1000, "{frame}");
            }
        }
        let Operated { relay, token_file } = operated;
        let report = relay.ended().await;
        assert_eq!(report.aborted, 0);
        fs::remove_file(token_file).unwrap();
    }

    /// A sender learns the outcome of a message that it sends during a drain.
    async fn a_message_during_a_drain_has_an_outcome(strategy) {
        let mut operated = Operated::start(strategy, |settings| {
            settings.drain.spread = Duration::from_secs(3);
        })
        .await;
        let mut users = [operated.relay.v1().await, operated.relay.v1().await];
        operated.relay.begin_stop(Stop::Drain);
        let mut seen = Vec::new();
        for n in 0..50 {
            for user in &users {
                seen.push(operated.post(user.id, &n.to_string()).await);
            }
        }
        let delivered = seen.iter().filter(|status| *status == "delivered").count();
        assert_eq!(seen.iter().filter(|status| *status == "offline").count(), 100 - delivered);
        let mut heard = 0;
        for user in &mut users {
            let (frames, code, _) = user.rest().await;
            assert_eq!(code, 1012);
            heard += frames.iter().filter(|frame| frame["type"] == "message").count();
        }
        assert_eq!(heard, delivered);
        let Operated { relay, token_file } = operated;
        let report = relay.ended().await;
        assert_eq!((report.ledger.received, report.ledger.gap()), (100, 0));
        fs::remove_file(token_file).unwrap();
    }

    /// Many messages at once, from the API and from users.
    async fn the_ledger_balances_after_many_messages(strategy) {
        let operated = Operated::start(strategy, |_| ()).await;
        let mut user = operated.relay.v1().await;
        let id = user.id;
        let by_api = async {
            let posts = (0..200).map(|n| operated.post(if n % 4 == 0 { 99 } else { id }, "api"));
            // The admin listener serves 64 connections at a time.
            let posts = stream::iter(posts).buffer_unordered(32);
            posts.collect::<Vec<_>>().await
        };
        let by_user = async {
            for n in 0..200 {
                user.ask(id, "user", n).await;
            }
            let mut heard = 0;
            let mut outcomes = 0;
            while heard < 350 || outcomes < 200 {
                let frame = user.hear().await;
                heard += u32::from(frame["type"] == "message");
                outcomes += u32::from(frame["status"] == "delivered");
            }
        };
        let (seen, ()) = tokio::join!(by_api, by_user);
        assert_eq!(seen.iter().filter(|status| *status == "delivered").count(), 150);
        let ledger = operated.relay.ledger().await.ledger();
        assert_eq!((ledger.received, ledger.delivered, ledger.dropped), (400, 350, 50));
        let seen = operated.done("GET", &format!("/api/users/{id}"), "").await;
        assert_eq!(seen["counts"], json!({"sent": 200, "delivered": 350}));
        operated.end().await;
    }
}

/// Method, target, body; then the problem's type, field, limit, and a part of its detail.
const FAULTS: &str = r#"
POST | /api/messages | | not_json | | | the body is not a JSON object
POST | /api/messages | [] | not_json | | | the body is not a JSON object
POST | /api/messages | {"recipient_id":1 | not_json | | |
POST | /api/messages | {} {} | not_json | | |
POST | /api/messages | {} | missing_field | recipient_id | | recipient_id is missing
POST | /api/messages | {"recipient_id":1} | missing_field | message | | message is missing
POST | /api/messages | {"recipient_id":0,"message":""} | invalid_field | recipient_id | 9007199254740991 | recipient_id must be an integer from 1 to 9007199254740991
POST | /api/messages | {"recipient_id":9007199254740992,"message":""} | invalid_field | recipient_id | 9007199254740991 |
POST | /api/messages | {"recipient_id":1.5,"message":""} | invalid_field | recipient_id | 9007199254740991 |
POST | /api/messages | {"recipient_id":1e16,"message":""} | invalid_field | recipient_id | 9007199254740991 |
POST | /api/messages | {"recipient_id":1e999,"message":""} | invalid_field | recipient_id | 9007199254740991 |
POST | /api/messages | {"recipient_id":[1],"message":""} | invalid_field | recipient_id | 9007199254740991 |
POST | /api/messages | {"recipient_id":"1","message":""} | invalid_field | recipient_id | 9007199254740991 |
POST | /api/messages | {"recipient_id":1,"message":1} | invalid_field | message | | message must be a string without lone surrogates
POST | /api/messages | {"recipient_id":1,"message":"\ud800"} | invalid_field | message | |
POST | /api/messages | {"recipient_id":1,"message":"","sender_id":-1} | invalid_field | sender_id | 9007199254740991 | sender_id must be an integer from 0 to 9007199254740991
POST | /api/messages | {"recipient_id":1,"message":"","sender":1} | unknown_field | sender | | sender is not known: there are recipient_id, message, sender_id
POST | /api/messages | {"recipient_id":1,"message":"","message":""} | duplicate_field | message | | message is given twice
POST | /api/messages?x=1 | {"recipient_id":1,"message":""} | unknown_field | x | | x is not known: there are none
GET | /api/users/0 | | invalid_field | id | 9007199254740991 |
GET | /api/users/01 | | invalid_field | id | 9007199254740991 |
GET | /api/users/ | | invalid_field | id | 9007199254740991 |
DELETE | /api/users/x | | invalid_field | id | 9007199254740991 |
GET | /api/users?limit=0 | | invalid_field | limit | 1000 | limit must be an integer from 1 to 1000
GET | /api/users?limit=1001 | | invalid_field | limit | 1000 |
GET | /api/users?limit= | | invalid_field | limit | 1000 |
GET | /api/users?sort=name | | invalid_field | sort | | sort must be queue or rate
GET | /api/users?limit=1&limit=1 | | duplicate_field | limit | | limit is given twice
GET | /api/status?x | | unknown_field | x | |
POST | /api/drain | {"spread":"11s"} | invalid_field | spread | "10s" | a duration such as "30s", at most "10s"
POST | /api/drain | {"spread":5} | invalid_field | spread | |
POST | /api/drain | 7 | not_json | | |
PUT | /api/log-filter | {} | missing_field | filter | |
PUT | /api/log-filter | {"filter":"loud"} | invalid_field | filter | | off, error, warn, info, debug, trace
PUT | /api/log-filter | {"filter":""} | invalid_field | filter | |
PUT | /api/log-filter | {"filter":"info,"} | invalid_field | filter | |
PUT | /api/log-filter | {"filter":"a b=info"} | invalid_field | filter | |
PUT | /api/log-filter | {"filter":"[span{f=x}]=info"} | invalid_field | filter | |
PUT | /api/log-filter | {"filter":1} | invalid_field | filter | |
"#;

#[tokio::test]
async fn every_fault_has_a_problem_that_names_it() {
    let operated = Operated::start(Strategy::Directory, |_| ()).await;
    for line in FAULTS.trim().lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [method, target, body, kind, field, limit, detail] = cells[..] else {
            panic!("{line}");
        };
        let problem = operated.fails((method, target, body), 400, kind).await;
        let text = |name: &str| problem[name].as_str().unwrap_or_default();
        assert_eq!(text("field"), field, "{line}: {problem}");
        let limit: Value = match limit {
            "" => Value::Null,
            limit => serde_json::from_str(limit).unwrap(),
        };
        assert_eq!(problem["limit"], limit, "{line}: {problem}");
        assert!(text("detail").contains(detail), "{line}: {problem}");
    }
    let long = format!("/api/users/1?reason={}", "%C3%A9".repeat(124));
    let problem = operated
        .fails(("DELETE", &long, ""), 400, "invalid_field")
        .await;
    assert_eq!(
        (&problem["field"], &problem["limit"]),
        (&json!("reason"), &json!(123))
    );
    let long = json!({"filter": vec!["info"; 300].join(",")}).to_string();
    let request = ("PUT", "/api/log-filter", &*long);
    let problem = operated.fails(request, 400, "invalid_field").await;
    assert_eq!(
        (&problem["field"], &problem["limit"]),
        (&json!("filter"), &json!(1024))
    );
    // The test's process has no logs, so the filter cannot change.
    let good = r#"{"filter":"warn,switchboard::api=debug"}"#;
    let request = ("PUT", "/api/log-filter", good);
    operated.fails(request, 503, "unavailable").await;
    for target in [
        "/api",
        "/api/",
        "/api/nowhere",
        "/api/users/1/x",
        "/api/status/",
    ] {
        operated.fails(("GET", target, ""), 404, "not_found").await;
    }
    let ledger = operated.relay.ledger().await.ledger();
    assert_eq!(ledger.received, 0, "a refused message is not received");
    operated.end().await;
}

#[tokio::test]
async fn a_wrong_method_gets_the_list_of_methods() {
    let operated = Operated::start(Strategy::Directory, |_| ()).await;
    for (target, allowed) in [
        ("/api/messages", "POST"),
        ("/api/users", "GET, HEAD"),
        ("/api/users/1", "GET, HEAD, DELETE"),
        ("/api/status", "GET, HEAD"),
        ("/api/drain", "POST"),
        ("/api/log-filter", "GET, HEAD, PUT"),
        ("/api/openapi.yaml", "GET, HEAD"),
    ] {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
            if allowed.split(", ").any(|allowed| allowed == method) {
                continue;
            }
            let answer = operated.ask(method, target, "").await;
            problem(&answer, 405, "method_not_allowed");
            assert_eq!(answer.header("allow"), Some(allowed), "{method} {target}");
        }
    }
    let head = operated.ask("HEAD", "/api/status", "").await;
    assert_eq!((head.status, &*head.body), (200, ""));
    operated.end().await;
}

#[tokio::test]
async fn a_body_has_a_limit_in_bytes() {
    let operated = Operated::start(Strategy::Directory, |settings| {
        settings.limits.message_bytes = 1024;
    })
    .await;
    let mut user = operated.relay.bare().await;
    let body = |bytes: usize| {
        let empty = json!({"recipient_id": user.id, "message": ""}).to_string();
        let text = "x".repeat(bytes - empty.len());
        json!({"recipient_id": user.id, "message": text}).to_string()
    };
    assert_eq!(body(1024).len(), 1024);
    let sent = operated.done("POST", "/api/messages", &body(1024)).await;
    assert_eq!(sent["status"], "delivered");
    let over = ("POST", "/api/messages", &*body(1025));
    let problem_of = |problem: Value| (problem["field"].clone(), problem["limit"].clone());
    let expected = (json!("limits.message_bytes"), json!(1024));
    assert_eq!(
        problem_of(operated.fails(over, 413, "too_large").await),
        expected
    );
    let long = format!(r#"{{"spread":"1s{}"}}"#, " ".repeat(5000));
    let problem_found = operated
        .fails(("POST", "/api/drain", &long), 413, "too_large")
        .await;
    assert_eq!(problem_found["limit"], 4096);

    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    // Without Content-Length the bytes are counted as they arrive.
    let chunk = format!("{:x}\r\n{}\r\n0\r\n\r\n", 1025, body(1025));
    let head = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n";
    let request = format!("POST /api/messages HTTP/1.1\r\nHost: h\r\n{token}{head}\r\n{chunk}");
    let mut peer = operated.relay.raw_admin().await;
    peer.write(request.as_bytes()).await;
    let answer = peer.answer(true).await.unwrap();
    assert_eq!(problem_of(problem(&answer, 413, "too_large")), expected);

    let received = user.hear().await;
    let longest = received["message"].as_str().unwrap().len();
    assert_eq!(longest, 1024 - r#"{"recipient_id":1,"message":""}"#.len());
    let ledger = operated.relay.ledger().await.ledger();
    assert_eq!((ledger.received, ledger.delivered), (1, 1));
    operated.end().await;
}

#[tokio::test]
async fn a_body_must_be_json_and_arrive_in_time() {
    let operated = Operated::start(Strategy::Directory, |settings| {
        settings.limits.header_timeout = Duration::from_millis(100);
    })
    .await;
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    let body = r#"{"recipient_id":1,"message":"x"}"#;
    for content_type in [
        "",
        "Content-Type: text/plain\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "Content-Type: application/json; charset=utf-16\r\n",
        "Content-Type: application/json\r\nContent-Type: application/json\r\n",
    ] {
        let fields = format!("{token}{content_type}");
        let answer = operated
            .request("POST", "/api/messages", &fields, body)
            .await;
        let problem = problem(&answer, 415, "unsupported_media_type");
        assert_eq!(problem["field"], "Content-Type");
    }
    let fields = format!("{token}Content-Type: Application/JSON; charset=\"UTF-8\"\r\n");
    let answer = operated
        .request("POST", "/api/messages", &fields, body)
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");

    let head = "Content-Type: application/json\r\nContent-Length: 100\r\n";
    let request = format!("POST /api/messages HTTP/1.1\r\nHost: h\r\n{token}{head}\r\n{{");
    let mut peer = operated.relay.raw_admin().await;
    peer.write(request.as_bytes()).await;
    problem(&peer.answer(true).await.unwrap(), 408, "late");
    let ledger = operated.relay.ledger().await.ledger();
    assert_eq!(ledger.received, 1);
    operated.end().await;
}

#[tokio::test]
async fn a_request_without_the_token_learns_nothing() {
    let operated = Operated::start(Strategy::Directory, |_| ()).await;
    let user = operated.relay.bare().await;
    let body = json!({"recipient_id": user.id, "message": "x"}).to_string();
    for (method, target, body) in [
        ("POST", "/api/messages", &*body),
        ("GET", "/api/users/1", ""),
        ("GET", "/api/users", ""),
        ("DELETE", "/api/users/1", ""),
        ("GET", "/api/status", ""),
        ("POST", "/api/drain", ""),
        ("PUT", "/api/log-filter", r#"{"filter":"trace"}"#),
        ("GET", "/api/openapi.yaml", ""),
        ("GET", "/api/nowhere", ""),
    ] {
        for token in [
            "",
            "Authorization: Bearer let-me-im\r\n",
            "Authorization: Basic let-me-in\r\n",
            "Authorization: Bearer let-me-in\r\nAuthorization: Bearer let-me-in\r\n",
        ] {
            let fields = format!("{token}Content-Type: application/json\r\n");
            let answer = operated.request(method, target, &fields, body).await;
            problem(&answer, 401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    let ledger = operated.relay.ledger().await.ledger();
    assert_eq!((ledger.received, ledger.connections), (0, 1));
    operated.end().await;
}

#[tokio::test]
async fn the_api_needs_a_token_file_and_the_admin_listener() {
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.admin.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    })
    .await;
    for target in ["/api/status", "/api/openapi.yaml", "/api/users"] {
        assert_eq!(relay.admin("GET", target).await.status, 404, "{target}");
        assert_eq!(relay.http("GET", target).await.status, 404, "{target}");
    }
    relay.stop().await;
    let operated = Operated::start(Strategy::Directory, |_| ()).await;
    let request = Handshake::request("GET", "/api/status");
    let request = request.with("Authorization", &format!("Bearer {TOKEN}"));
    let answer = operated.relay.raw().await.ask(&request).await;
    assert_eq!(answer.status, 404, "{answer:?}");
    operated.end().await;
}

/// The subject of a token is shown to the operator.
#[tokio::test]
async fn an_operator_sees_the_subject_of_a_token() {
    let secret_file = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("api-secret-{}", std::process::id()));
    fs::write(&secret_file, "a secret of thirty-two bytes, or more").unwrap();
    let mut auth = Settings::default().auth;
    auth.mode = AuthMode::Jwt;
    auth.secret_file = vec![secret_file.clone()];
    let token = switchboard::auth::issue_from(&auth, None, "alice", Duration::from_mins(1));
    let token = token.unwrap();
    let operated = Operated::start(Strategy::Directory, |settings| settings.auth = auth).await;
    let mut user = operated.relay.raw().await;
    let handshake = Handshake::new().with("Authorization", &format!("Bearer {token}"));
    user.upgrade(&handshake).await;
    let seen = operated.done("GET", "/api/users/1", "").await;
    assert_eq!(seen["subject"], "alice");
    let list = operated.done("GET", "/api/users", "").await;
    assert_eq!(list["users"][0]["subject"], "alice");
    user.reset();
    operated.end().await;
    fs::remove_file(secret_file).unwrap();
}

/// The description lists exactly the routes and methods that the API has.
#[tokio::test]
async fn the_description_matches_the_routes() {
    let operated = Operated::start(Strategy::Directory, |_| ()).await;
    let answer = operated.ask("GET", "/api/openapi.yaml", "").await;
    assert_eq!(answer.header("content-type"), Some("application/yaml"));
    assert_eq!(answer.body, OPENAPI);
    let version = format!("\n  version: {}\n", env!("CARGO_PKG_VERSION"));
    assert!(OPENAPI.contains(&version));

    let (_, paths) = OPENAPI.split_once("\npaths:\n").unwrap();
    let (paths, _) = paths.split_once("\ncomponents:\n").unwrap();
    let mut described: Vec<(String, Vec<String>)> = Vec::new();
    for line in paths.lines() {
        if let Some(path) = line.strip_prefix("  /") {
            described.push((format!("/{}", path.trim_end_matches(':')), Vec::new()));
        } else if let Some(method) = line.strip_prefix("    ")
            && let Some(method) = method.strip_suffix(':')
            && method.chars().all(|c| c.is_ascii_lowercase())
            && method != "parameters"
        {
            let (_, methods) = described.last_mut().unwrap();
            methods.push(method.to_ascii_uppercase());
        }
    }
    assert!(described.len() >= 6, "{described:?}");
    for (path, methods) in described {
        // The response to a method that no path has lists the path's methods.
        let path = path.replace("{id}", "1");
        let answer = operated.ask("BREW", &path, "").await;
        let allow = answer.header("allow").expect("an Allow header").to_owned();
        let mut allowed: Vec<_> = allow
            .split(", ")
            .filter(|method| *method != "HEAD")
            .collect();
        allowed.sort_unstable();
        let mut methods: Vec<_> = methods.iter().map(String::as_str).collect();
        methods.sort_unstable();
        assert_eq!(allowed, methods, "{path}");
    }
    operated.end().await;
}
