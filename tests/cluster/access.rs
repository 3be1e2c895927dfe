//! The ways in which a node authenticates to NATS. Each test uses a server that accepts only one way, and checks an
//! accepted and a refused node.

use std::fmt::Write as _;

use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa};
use serde_json::{Value, json};

use crate::eventually;
use crate::nats::{Folder, Nats};
use crate::node::Node;

crate::tests!("access":
    a_user_with_a_password_is_accepted,
    the_permissions_of_the_shipped_file_are_sufficient,
    a_token_is_accepted,
    an_nkey_is_accepted,
    credentials_of_an_account_are_accepted,
    a_client_certificate_is_accepted,
    an_unusable_secret_file_ends_the_start,
);

/// Two nodes with the settings `good` exchange a message; NATS refuses a node with the settings `bad`.
async fn check(nats: &Nats, url: &str, good: &[(&str, &str)], bad: &[(&str, &str)]) {
    let first = Node::start(url, good).await;
    let second = Node::start(url, good).await;
    let (mut alice, mut bob) = (first.user().await, second.user().await);
    alice.ask(bob.id, "hello", 1).await;
    assert_eq!(alice.outcome(1).await, "delivered");
    bob.hears(alice.id, "hello").await;
    let stranger = Node::begin(&nats.url(), bad).await;
    eventually("the node logs that nats is away", async || {
        stranger.log().contains("nats is away").then_some(())
    })
    .await;
    assert_eq!(stranger.get("/readyz").await.0, 503);
    let log = [first.log(), stranger.log()].concat();
    assert!(!log.contains("s3cret"), "{log}");
    drop((alice, bob));
    for node in [first, second, stranger] {
        node.stop().await;
    }
}

async fn a_user_with_a_password_is_accepted() {
    let nats = Nats::with("authorization { user: relay, password: \"s3cret\" }").await;
    let folder = Folder::new();
    let right = folder.file("right", "s3cret\n");
    let wrong = folder.file("wrong", "s3cret?");
    let user = ("CLUSTER__USER", "relay");
    check(
        &nats,
        &nats.url(),
        &[user, ("CLUSTER__PASSWORD_FILE", &right)],
        &[user, ("CLUSTER__PASSWORD_FILE", &wrong)],
    )
    .await;
}

/// tests/python/link.py checks that they allow nothing else.
async fn the_permissions_of_the_shipped_file_are_sufficient() {
    let folder = Folder::new();
    let password = folder.file("password", "s3cret");
    let permissions = include_str!("../../config/nats/permissions.conf");
    let nats = Nats::with(&format!(
        "authorization {{ users: [ {{\n user: relay\n password: \"s3cret\"\n {permissions}\n}} ] }}"
    ))
    .await;
    let good = [
        ("CLUSTER__USER", "relay"),
        ("CLUSTER__PASSWORD_FILE", password.as_str()),
    ];
    // Another name is another cluster, and the user has no permissions for its subjects.
    let bad = [good[0], good[1], ("CLUSTER__NAME", "other")];
    check(&nats, &nats.url(), &good, &bad).await;
}

async fn a_token_is_accepted() {
    let nats = Nats::with("authorization { token: \"s3cret-token\" }").await;
    let folder = Folder::new();
    let token = folder.file("token", "s3cret-token\n");
    check(&nats, &nats.url(), &[("CLUSTER__TOKEN_FILE", &token)], &[]).await;
}

async fn an_nkey_is_accepted() {
    let [ours, theirs] = [(); 2].map(|()| KeyPair::new_user());
    let nats = Nats::with(&format!(
        "authorization {{ users: [ {{ nkey: {} }} ] }}",
        ours.public_key()
    ))
    .await;
    let folder = Folder::new();
    let right = folder.file("right.nk", &format!("{}\n", ours.seed().unwrap()));
    let wrong = folder.file("wrong.nk", &theirs.seed().unwrap());
    check(
        &nats,
        &nats.url(),
        &[("CLUSTER__NKEY_FILE", &right)],
        &[("CLUSTER__NKEY_FILE", &wrong)],
    )
    .await;
}

async fn credentials_of_an_account_are_accepted() {
    let operator = KeyPair::new_operator();
    let [account, system, stranger] = [(); 3].map(|()| KeyPair::new_account());
    let unlimited = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
        "conn": -1, "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    });
    let mut preload = String::new();
    for (key, limits) in [
        (&account, unlimited.clone()),
        (
            &system,
            json!({"subs": -1, "conn": -1, "data": -1, "payload": -1, "wildcards": true}),
        ),
    ] {
        let jwt = claim(
            &operator,
            key,
            &json!({"type": "account", "version": 2, "limits": limits}),
        );
        writeln!(preload, "{}: {jwt}", key.public_key()).unwrap();
    }
    let itself = claim(
        &operator,
        &operator,
        &json!({"type": "operator", "version": 2}),
    );
    let nats = Nats::with(&format!(
        "operator: {itself}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{\n{preload}}}",
        system.public_key()
    ))
    .await;
    let folder = Folder::new();
    let credentials = |issuer: &KeyPair, name: &str| {
        let user = KeyPair::new_user();
        let about = json!({
            "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {},
        });
        let jwt = claim(issuer, &user, &about);
        let seed = user.seed().unwrap();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        folder.file(name, &text)
    };
    let right = credentials(&account, "right.creds");
    let wrong = credentials(&stranger, "wrong.creds");
    check(
        &nats,
        &nats.url(),
        &[("CLUSTER__CREDS_FILE", &right)],
        &[("CLUSTER__CREDS_FILE", &wrong)],
    )
    .await;
}

/// A JWT of NATS: `issuer` signs the claim `about` about `subject`.
fn claim(issuer: &KeyPair, subject: &KeyPair, about: &Value) -> String {
    let head = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let body = json!({
        "jti": subject.public_key(),
        "iat": 1_700_000_000,
        "iss": issuer.public_key(),
        "name": "test",
        "sub": subject.public_key(),
        "nats": about,
    });
    let parts = [head, body].map(|part| base64url(part.to_string().as_bytes()));
    let signed = parts.join(".");
    let signature = base64url(&issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

/// Base 64 with the URL alphabet and without padding (RFC 4648 section 5).
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three
            .iter()
            .fold(0, |bits, byte| bits << 8 | usize::from(*byte))
            << (8 * (3 - three.len()));
        for digit in 0..=three.len() {
            text.push(DIGITS[bits >> (18 - 6 * digit) & 63].into());
        }
    }
    text
}

async fn a_client_certificate_is_accepted() {
    let folder = Folder::new();
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap()
    };
    let [ours, theirs] = ["ours", "theirs"].map(authority);
    let issue = |issuer: &CertifiedIssuer<'_, rcgen::KeyPair>, name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, issuer).unwrap();
        [
            folder.file(&format!("{name}.pem"), &certificate.pem()),
            folder.file(&format!("{name}.key"), &key.serialize_pem()),
        ]
    };
    let ca = folder.file("ca.pem", &ours.pem());
    let [server, server_key] = issue(&ours, "server");
    let [node, node_key] = issue(&ours, "node");
    let [stranger, stranger_key] = issue(&theirs, "stranger");
    let nats = Nats::with(&format!(
        "tls {{ cert_file: {server:?}, key_file: {server_key:?}, ca_file: {ca:?}, verify: true }}"
    ))
    .await;
    let url = format!("tls://localhost:{}", nats.port);
    let ca = ("CLUSTER__TLS_CA_FILE", ca.as_str());
    check(
        &nats,
        &url,
        &[
            ca,
            ("CLUSTER__TLS_CERT_FILE", &node),
            ("CLUSTER__TLS_KEY_FILE", &node_key),
        ],
        &[
            ca,
            ("CLUSTER__NATS_URL", &url),
            ("CLUSTER__TLS_CERT_FILE", &stranger),
            ("CLUSTER__TLS_KEY_FILE", &stranger_key),
        ],
    )
    .await;
}

async fn an_unusable_secret_file_ends_the_start() {
    let folder = Folder::new();
    let empty = folder.file("empty", "\n");
    let other = folder.file("other", "no seed\n");
    for (key, path, why) in [
        ("TOKEN_FILE", "/nowhere/token", "cluster.token_file"),
        ("TOKEN_FILE", &empty, "is empty"),
        ("NKEY_FILE", &other, "has no seed of an nkey"),
        ("CREDS_FILE", &other, "has no user JWT"),
    ] {
        let key = format!("CLUSTER__{key}");
        let (code, output) = Node::fails("nats://127.0.0.1:1", &[(&key, path)]);
        assert_eq!(code, Some(1), "{output}");
        assert!(output.contains(why) && output.contains(path), "{output}");
    }
}
