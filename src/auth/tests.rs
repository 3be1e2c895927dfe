//! Tokens of every kind against keys of every kind, and key sets from a server on a real socket.

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use hyper::header::{AUTHORIZATION, HeaderValue};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use ring::signature::{EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::key_set::SymmetricKeys;
use super::*;
use crate::config::{self, Secret, Settings};
use crate::identity::Subject;

const RSA_PRIVATE: &str = include_str!("../../tests/keys/rsa.pem");
const RSA_PUBLIC: &str = include_str!("../../tests/keys/rsa.pub.pem");
const RSA_1024: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCXY0Aw/afFPIwnGuI/S9SVMzCE
4WaFTDANezPmVdGriQRf9ZUHWgZ9M/K8ZRkNvkGrg5EVoHMqMswFaga4lJa4tkx0
2xx0lC8UO18KweaWUWB6efzXOgMHY5EIa7omg0rlUQ6UBvI97GzDSrWNu0fY4cUl
Q2UVt/M6+ghpxzkSMwIDAQAB
-----END PUBLIC KEY-----
";
const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A file that is removed on drop.
struct TempFile(PathBuf);

impl TempFile {
    fn new(text: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "switchboard-key-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

fn settings(change: impl FnOnce(&mut AuthSettings)) -> AuthSettings {
    let mut auth = Settings::default().auth;
    auth.mode = AuthMode::Jwt;
    change(&mut auth);
    auth
}

/// Loads the keys, and reads them again for as long as the test's runtime.
async fn load(settings: &AuthSettings) -> Auth {
    let (auth, refresher) = Auth::load(settings).await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(refresher.unwrap().run(|_| ()));
    auth
}

/// The same with one change to the settings of tokens.
async fn load_with(change: impl FnOnce(&mut AuthSettings)) -> Auth {
    load(&settings(change)).await
}

/// Accepts tokens of the keys in this set.
async fn load_set(keys: &[Value]) -> Auth {
    let file = TempFile::new(&json!({"keys": keys}).to_string());
    load_with(|auth| auth.jwks_file = Some(file.0.clone())).await
}

/// A token for `alice` that is valid for a minute.
fn issued(settings: &AuthSettings, secret: &str) -> String {
    let secret = Secret::new(secret.as_bytes());
    issue(settings, &secret, "alice", Duration::from_mins(1)).unwrap()
}

fn bearer(token: &str) -> HeaderMap {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    HeaderMap::from_iter([(AUTHORIZATION, value)])
}

async fn authenticated(auth: &Auth, token: &str) -> Option<Authenticated> {
    auth.authenticate(&bearer(token), None).await.ok()
}

async fn admits(auth: &Auth, token: &str) -> bool {
    authenticated(auth, token).await.is_some()
}

/// Checks which of these tokens are admitted. The text says what is special about a token.
async fn check_admitted<T: Display>(
    auth: &Auth,
    tokens: impl IntoIterator<Item = (String, bool, T)>,
) {
    for (token, expected, what) in tokens {
        assert_eq!(admits(auth, &token).await, expected, "{what}");
    }
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_secs().cast_signed()
}

/// A token with any head and claims, signed with [`SECRET`].
fn signed(head: &Value, claims: &Value) -> String {
    signed_text(&head.to_string(), &claims.to_string())
}

/// The same with any texts, valid JSON or not.
fn signed_text(head: &str, claims: &str) -> String {
    use ring::hmac;
    let part = |text: &str| base64_url(text.as_bytes());
    let message = format!("{}.{}", part(head), part(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", base64_url(signature.as_ref()))
}

fn base64_url(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}

/// Checks the token of a handshake with these header fields.
#[track_caller]
fn check_token(given: &[(&'static str, &str)], query: Option<&str>, expected: Option<&str>) {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    assert_eq!(token(&headers, query), expected, "{given:?} {query:?}");
}

const PROTOCOLS: (&str, &str) = ("sec-websocket-protocol", "switchboard.v1, bearer.abc");

#[test]
fn only_one_place_of_a_handshake_counts_for_the_token() {
    let authorization = |value| ("authorization", value);
    check_token(&[], None, None);
    check_token(&[authorization("Bearer abc")], None, Some("abc"));
    check_token(&[authorization("bearer  abc ")], None, Some("abc"));
    check_token(&[authorization("abc")], None, None);
    let two = [authorization("Bearer a"), authorization("Bearer b")];
    check_token(&two, None, None);
    check_token(&two, Some("token=abc"), None);
    check_token(&[authorization("Bearer def"), PROTOCOLS], None, Some("def"));
    check_token(&[PROTOCOLS], Some("token=def"), Some("abc"));
    let lines = [
        ("sec-websocket-protocol", "switchboard.v1"),
        ("sec-websocket-protocol", "bearer.abc"),
    ];
    check_token(&lines, Some("token=def"), Some("abc"));
    check_token(&[("sec-websocket-protocol", "Bearer.abc")], None, None);
    check_token(&[], Some("token=abc"), Some("abc"));
    check_token(&[], Some("a=b&token=abc&c"), Some("abc"));
    check_token(&[], Some("mytoken=abc"), None);
}

/// A browser repeats the credentials of a site behind HTTP Basic in its handshakes.
#[test]
fn credentials_for_a_proxy_do_not_hide_a_token() {
    let authorization = |value| ("authorization", value);
    let basic = authorization("Basic eDp5");
    let bearer = authorization("Bearer abc");
    check_token(&[basic], None, None);
    check_token(&[basic, PROTOCOLS], None, Some("abc"));
    check_token(&[basic], Some("token=abc"), Some("abc"));
    check_token(&[basic, bearer], None, Some("abc"));
    check_token(&[bearer, basic], None, Some("abc"));
    for (folded, expected) in [
        ("Basic eDp5, Bearer abc", Some("abc")),
        ("Basic eDp5=,bearer abc ", Some("abc")),
        ("Bearer abc, Basic eDp5", Some("abc")),
        ("Bearer a,b,Basic eDp5", Some("a,b")),
        ("Bearer a, Bearer b", None),
        ("Digest username=\"bearer x\", uri=\"/\"", None),
        (",", None),
    ] {
        check_token(&[authorization(folded)], None, expected);
    }
}

/// An algorithm, the key that signs, and the key that verifies if it is another one.
type Keys = (config::Algorithm, String, Option<String>);

fn keys_of_all_algorithms() -> Vec<Keys> {
    use config::Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512, RS256, RS384, RS512};
    let secret = |algorithm| (algorithm, SECRET.to_owned(), None);
    let rsa = |algorithm| {
        (
            algorithm,
            RSA_PRIVATE.to_owned(),
            Some(RSA_PUBLIC.to_owned()),
        )
    };
    let pair = |algorithm, kind| {
        let pair = KeyPair::generate_for(kind).unwrap();
        (algorithm, pair.serialize_pem(), Some(pair.public_key_pem()))
    };
    let mut keys = Vec::from([HS256, HS384, HS512].map(secret));
    keys.extend([RS256, RS384, RS512].map(rsa));
    keys.push(pair(ES256, &PKCS_ECDSA_P256_SHA256));
    keys.push(pair(ES384, &PKCS_ECDSA_P384_SHA384));
    keys.push(pair(EdDSA, &PKCS_ED25519));
    keys
}

#[tokio::test]
async fn a_token_is_valid_only_with_its_own_key_and_algorithm() {
    let keys = keys_of_all_algorithms();
    let tokens: Vec<_> = keys
        .iter()
        .map(|(algorithm, private, _)| {
            issued(&settings(|auth| auth.algorithm = Some(*algorithm)), private)
        })
        .collect();
    for (index, (algorithm, private, public)) in keys.iter().enumerate() {
        let file = TempFile::new(public.as_ref().unwrap_or(private));
        let auth = load_with(|auth| {
            auth.algorithm = Some(*algorithm);
            match public {
                Some(_) => auth.public_key_file = vec![file.0.clone()],
                None => auth.secret_file = vec![file.0.clone()],
            }
        })
        .await;
        for (other, token) in tokens.iter().enumerate() {
            let authenticated = authenticated(&auth, token).await;
            let (is_own, other) = (index == other, keys[other].0);
            assert_eq!(
                authenticated.is_some(),
                is_own,
                "{algorithm:?} and {other:?}"
            );
            if let Some(authenticated) = authenticated {
                assert_eq!(authenticated.subject, Some(Subject::from("alice")));
                let remaining = authenticated.remaining.unwrap().as_secs();
                assert!(
                    (85..=90).contains(&remaining),
                    "{remaining} with the leeway"
                );
            }
            let mut spoilt = token.clone().into_bytes();
            let middle = token.rfind('.').unwrap() + 10;
            spoilt[middle] = if spoilt[middle] == b'A' { b'B' } else { b'A' };
            let spoilt = String::from_utf8(spoilt).unwrap();
            assert!(!admits(&auth, &spoilt).await, "{algorithm:?}");
        }
    }
}

/// Accepts tokens of [`SECRET`] from one issuer for one audience.
async fn strict() -> Auth {
    let file = TempFile::new(SECRET);
    load_with(|auth| {
        auth.secret_file = vec![file.0.clone()];
        auth.issuer = Some("us".to_owned());
        auth.audience = Some("relay".to_owned());
    })
    .await
}

/// The head and the claims of a token that [`strict`] takes.
fn sound_token() -> (Value, Value) {
    let claims = json!({"sub": "alice", "exp": now() + 60, "iss": "us", "aud": ["relay", "other"]});
    (json!({"alg": "HS256", "typ": "JWT"}), claims)
}

#[tokio::test]
async fn claims_are_checked() {
    let auth = strict().await;
    let (head, good) = sound_token();
    let with = |change: Value| {
        let mut claims = good.clone();
        for (name, value) in change.as_object().unwrap() {
            if value.is_null() {
                claims.as_object_mut().unwrap().remove(name);
            } else {
                claims[name] = value.clone();
            }
        }
        signed(&head, &claims)
    };
    let changes = [
        (json!({}), true),
        (json!({"sub": null}), true),
        (json!({"sub": 7}), false),
        (json!({"exp": null}), false),
        (json!({"exp": "soon"}), false),
        (json!({"exp": now() - 25}), true),
        (json!({"exp": now() - 35}), false),
        (json!({"exp": -1}), false),
        (json!({"exp": 1e12}), true),
        (json!({"exp": 1.8e19}), true),
        (json!({"exp": u64::MAX}), true),
        (json!({"exp": 1e300}), false),
        (json!({"nbf": u64::MAX}), false),
        (json!({"nbf": 1.8e19}), false),
        (json!({"nbf": -1}), false),
        (json!({"nbf": "soon"}), false),
        (json!({"nbf": now() + 25}), true),
        (json!({"nbf": now() + 40}), false),
        (json!({"iss": "them"}), false),
        (json!({"iss": null}), false),
        (json!({"aud": "relay"}), true),
        (json!({"aud": "other"}), false),
        (json!({"aud": null}), false),
    ];
    let tokens = changes.map(|(change, good)| (with(change.clone()), good, change));
    check_admitted(&auth, tokens).await;
}

#[tokio::test]
async fn only_heads_of_the_configured_algorithm_are_taken() {
    let (auth, (_, good)) = (strict().await, sound_token());
    let heads = [
        (json!({"alg": "HS256"}), true),
        (json!({"alg": "HS256", "kid": "any"}), true),
        (json!({"alg": "none"}), false),
        (json!({"alg": "HS384"}), false),
        (
            json!({"alg": "HS256", "crit": ["b64"], "b64": false}),
            false,
        ),
        (json!({"typ": "JWT"}), false),
    ];
    let tokens = heads.map(|(head, admitted)| (signed(&head, &good), admitted, head));
    check_admitted(&auth, tokens).await;
}

#[tokio::test]
async fn a_token_of_another_form_is_refused() {
    let (auth, (head, good)) = (strict().await, sound_token());
    let token = signed(&head, &good);
    let (message, _) = token.rsplit_once('.').unwrap();
    let list = signed(&head, &json!([1]));
    let unsigned = format!("{message}.");
    for token in ["", ".", "..", "...", "a.b.c", "{}.{}.", &list, &unsigned] {
        assert!(!admits(&auth, token).await, "{token}");
    }
}

/// Readers differ in which value of a repeated member they take.
#[tokio::test]
async fn repeated_members_are_refused() {
    let auth = strict().await;
    let head = json!({"alg": "HS256", "typ": "JWT"}).to_string();
    let claims = json!({"sub": "alice", "exp": now() + 60, "iss": "us", "aud": "relay"});
    let claims = claims.to_string();
    let twice = |text: &str, member: &str| text.replacen('{', &format!("{{{member},"), 1);
    let texts = [
        (head.clone(), claims.clone(), true),
        (twice(&head, r#""typ":"JWT""#), claims.clone(), false),
        (twice(&head, r#""alg":"none""#), claims.clone(), false),
        (twice(&head, r#""alg":"HS256""#), claims.clone(), false),
        (head.clone(), twice(&claims, r#""exp":1"#), false),
        (head.clone(), twice(&claims, r#""sub":"root""#), false),
        (head.clone(), twice(&claims, r#""aud":"relay""#), false),
        (head.clone(), twice(&claims, r#""iss":"us""#), false),
        (head.clone(), format!("{claims}x"), false),
    ];
    let tokens = texts.map(|(head, claims, admitted)| {
        (
            signed_text(&head, &claims),
            admitted,
            format!("{head} {claims}"),
        )
    });
    check_admitted(&auth, tokens).await;
}

#[tokio::test]
async fn a_public_key_is_not_accepted_as_a_secret() {
    let file = TempFile::new(RSA_PUBLIC);
    let auth = load_with(|auth| auth.public_key_file = vec![file.0.clone()]).await;
    // The text of the public key, which is no secret, used as an HMAC secret.
    let confused = settings(|auth| auth.algorithm = Some(config::Algorithm::HS256));
    assert!(!admits(&auth, &issued(&confused, RSA_PUBLIC)).await);
}

#[tokio::test]
async fn old_and_new_secrets_are_valid_side_by_side() {
    let secrets = ["0", "9", "8"].map(|digit| SECRET.replace('0', digit));
    let [old, new, other] = &secrets;
    let files = [old, new].map(|secret| TempFile::new(secret));
    let settings = settings(|auth| {
        auth.secret_file = files.iter().map(|file| file.0.clone()).collect();
    });
    let auth = load(&settings).await;
    for secret in [old, new] {
        assert!(admits(&auth, &issued(&settings, secret)).await);
    }
    assert!(!admits(&auth, &issued(&settings, other)).await);
}

/// Names the file of a key in the settings.
type Change = dyn Fn(&mut AuthSettings, PathBuf);

#[tokio::test]
async fn unusable_keys_are_refused_with_the_file() {
    let refusal = async |change: &Change, text: &str| {
        let file = TempFile::new(text);
        let error = Auth::load(&settings(|auth| change(auth, file.0.clone())))
            .await
            .unwrap_err();
        let AuthError::Key(error) = error else {
            panic!("{error:?}");
        };
        let name = file.0.display().to_string();
        let message = error.to_string().replace(&name, "FILE");
        let all = format!("{error:?}");
        let all = format!("{all} {:#}", anyhow::Error::from(error));
        assert!(!all.contains("hunter2"), "{all}");
        message
    };
    let secret = |auth: &mut AuthSettings, path| auth.secret_file = vec![path];
    let public = |auth: &mut AuthSettings, path| auth.public_key_file = vec![path];
    let set = |auth: &mut AuthSettings, path| auth.jwks_file = Some(path);
    let es256 = |auth: &mut AuthSettings, path| {
        auth.public_key_file = vec![path];
        auth.algorithm = Some(config::Algorithm::ES256);
    };
    let no_public_key = "FILE: not a public key in PEM (RSA, P-256, P-384 or Ed25519)";
    let no_key_set = "FILE: not a JSON Web Key Set: line 1, column";
    let foreign = r#"{"keys":[{"kty":"OKP","crv":"X25519","x":"AA"},{"kty":"new"}]}"#;
    let refusals: [(&Change, &str, &str); 9] = [
        (
            &secret,
            "hunter2\n",
            "FILE: the secret has 7 bytes, but HS256 needs at least 32",
        ),
        (&public, RSA_PRIVATE, no_public_key),
        (&public, "ssh-rsa AAAA", no_public_key),
        (
            &es256,
            RSA_PUBLIC,
            "FILE: the key does not fit ES256 (auth.algorithm)",
        ),
        (
            &public,
            RSA_1024,
            "FILE: the RSA key has 1024 bits, but 2048 to 8192 are allowed",
        ),
        (&set, "{}", &format!("{no_key_set} 2")),
        (&set, "\"hunter2\"", &format!("{no_key_set} 9")),
        (&set, "{\"keys\":\"hunter2\"}", &format!("{no_key_set} 17")),
        (
            &set,
            foreign,
            "FILE: no key for HS, RS, ES256, ES384 or EdDSA signatures",
        ),
    ];
    for (change, text, expected) in refusals {
        assert_eq!(refusal(change, text).await, expected);
    }
}

#[tokio::test]
async fn an_unusable_key_of_a_set_is_skipped() {
    let (good, key) = key_set("good");
    let good: Value = serde_json::from_str(&good).unwrap();
    let good = &good["keys"][1];
    let with = |name: &str, value: Value| {
        let mut key = good.clone();
        key[name] = value;
        key
    };
    let long = base64_url(&[0xff; 33]);
    let weak = base64_url(&[0xff; 128]);
    let odd = [
        json!(null),
        json!("text"),
        json!({}),
        with("kid", json!(5)),
        with("alg", json!(["ES256"])),
        with("alg", json!("ES384")),
        with("alg", json!("none")),
        with("alg", json!("HS256")),
        with("key_ops", json!("verify")),
        with("key_ops", json!(["sign"])),
        with("use", json!("enc")),
        with("crv", json!("P-521")),
        with("crv", json!("secp256k1")),
        with("kty", json!("RSA")),
        with("kty", json!("OKP")),
        with("x", json!("")),
        with("x", json!(long)),
        with("x", json!("?")),
        with("y", json!(null)),
        json!({"kty": "RSA", "n": weak, "e": "AQAB"}),
        json!({"kty": "RSA", "n": "", "e": "AQAB"}),
        json!({"kty": "RSA", "n": base64_url(&[0xff; 1025]), "e": "AQAB"}),
        json!({"kty": "RSA", "n": base64_url(&[0xff; 256]), "e": "AQAB", "alg": "PS256"}),
        json!({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}),
        json!({"kty": "oct", "k": base64_url(&[1; 31])}),
        json!({"kty": "oct", "k": base64_url(&[1; 63]), "alg": "HS512"}),
        json!({"kty": "oct", "k": base64_url(&[1; 64]), "alg": "ES256"}),
    ];
    for odd in &odd {
        let alone = json!({"keys": [odd]}).to_string();
        let error = key_set::parse(alone.as_bytes(), "set", SymmetricKeys::Accepted).unwrap_err();
        assert!(matches!(error, KeyError::NoKey { .. }), "{odd}: {error}");
    }
    let mut all = odd.to_vec();
    all.push(good.clone());
    let auth = load_set(&all).await;
    assert!(admits(&auth, &token_of(&key, "good")).await);
}

#[tokio::test]
async fn a_key_with_the_tokens_id_is_tried_first() {
    let mut all: Vec<_> = (0..9_u8)
        .map(|index| json!({"kty": "oct", "k": base64_url(&[index; 32])}))
        .collect();
    all.push(json!({"kty": "oct", "k": base64_url(SECRET.as_bytes()), "kid": "named"}));
    let auth = load_set(&all).await;
    let claims = json!({"exp": now() + 60});
    let heads = [
        (json!({"alg": "HS256", "kid": "named"}), true),
        (json!({"alg": "HS256", "kid": "other"}), false),
        // Without an id, 8 other keys come first.
        (json!({"alg": "HS256"}), false),
    ];
    let tokens = heads.map(|(head, admitted)| (signed(&head, &claims), admitted, head));
    check_admitted(&auth, tokens).await;
}

#[tokio::test]
async fn a_modulus_may_have_leading_zeros() {
    let public = DecodingKey::from_rsa_pem(RSA_PUBLIC.as_bytes()).unwrap();
    let der = public.try_get_as_bytes().unwrap();
    // A sequence of two integers, the first with the zero that DER requires before it.
    let (modulus, exponent) = (&der[8..8 + 257], &der[der.len() - 3..]);
    let key = json!({"kty": "RSA", "n": base64_url(modulus), "e": base64_url(exponent)});
    let auth = load_set(&[key]).await;
    let rs256 = settings(|auth| auth.algorithm = Some(config::Algorithm::RS256));
    assert!(admits(&auth, &issued(&rs256, RSA_PRIVATE)).await);
}

#[test]
fn check_refuses_a_host_that_no_certificate_can_have() {
    let url = |host: &str| settings(|auth| auth.jwks_url = Some(format!("https://{host}/keys")));
    assert!(Auth::check_files(&url("example.com")).is_ok());
    let error = Auth::check_files(&url(&"a".repeat(64))).unwrap_err();
    assert!(matches!(
        error,
        AuthError::Source(KeySourceError::NoName(_))
    ));
}

/// A key set with one P-256 key, and the key in PEM.
fn key_set(id: &str) -> (String, String) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let public = EcdsaKeyPair::from_pkcs8(
        &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        &key.serialize_der(),
        &ring::rand::SystemRandom::new(),
    )
    .unwrap();
    let point = public.public_key().as_ref();
    let set = json!({"keys": [
        {"kty": "oct", "k": base64_url(SECRET.as_bytes()), "kid": "leaked", "alg": "HS256"},
        {"kty": "EC", "crv": "P-256", "kid": id, "use": "sig",
            "x": base64_url(&point[1..33]), "y": base64_url(&point[33..])},
    ]});
    (set.to_string(), key.serialize_pem())
}

fn token_of(pem: &str, id: &str) -> String {
    crypto::install();
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(id.to_owned());
    let key = EncodingKey::from_ec_pem(pem.as_bytes()).unwrap();
    let claims = json!({"sub": "alice", "exp": now() + 60});
    jsonwebtoken::encode(&header, &claims, &key).unwrap()
}

/// How a key server answers one connection.
enum KeyServerAnswer {
    /// Sends this text.
    Text(String),
    /// Sends this text, then the piece again and again until the client closes.
    Endless(String, &'static [u8]),
    /// Notifies `asked`, waits for `may_answer`, then sends this text.
    Held {
        text: String,
        asked: Arc<Notify>,
        may_answer: Arc<Notify>,
    },
}

/// A response with this key set.
fn ok(set: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{set}",
        set.len()
    )
}

/// Serves these answers, one a connection, the last again and again. Returns its URL and the number of requests.
async fn key_server(answers: Vec<KeyServerAnswer>) -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let count = Arc::new(AtomicU32::new(0));
    let requests = count.clone();
    #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move {
        for turn in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            requests.fetch_add(1, Ordering::Relaxed);
            let mut request = vec![0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /keys HTTP/1.1\r\n"));
            let (text, piece) = match &answers[turn.min(answers.len() - 1)] {
                KeyServerAnswer::Text(text) => (text, None),
                KeyServerAnswer::Endless(text, piece) => (text, Some(piece)),
                KeyServerAnswer::Held {
                    text,
                    asked,
                    may_answer,
                } => {
                    asked.notify_one();
                    may_answer.notified().await;
                    (text, None)
                }
            };
            // A client that has seen enough closes early.
            let mut written = stream.write_all(text.as_bytes()).await;
            while let (Ok(()), Some(piece)) = (&written, piece) {
                sleep(Duration::from_millis(1)).await;
                written = stream.write_all(piece).await;
            }
        }
    });
    (url, count)
}

#[tokio::test]
async fn an_unknown_key_has_the_set_fetched_once_in_30_s() {
    let ((first, first_key), (second, second_key)) = (key_set("first"), key_set("second"));
    let answers = [first, second].map(|set| KeyServerAnswer::Text(ok(&set)));
    let (url, requests) = key_server(answers.into()).await;
    let auth = load_with(|auth| auth.jwks_url = Some(url)).await;
    assert!(admits(&auth, &token_of(&first_key, "first")).await);
    assert!(!admits(&auth, &token_of(&second_key, "first")).await);
    // A secret in a fetched set is ignored, because it is public.
    let leaked = json!({"alg": "HS256", "kid": "leaked"});
    let leaked = signed(&leaked, &json!({"exp": now() + 60}));
    assert_eq!(requests.load(Ordering::Relaxed), 1);

    let token = token_of(&second_key, "second");
    assert!(admits(&auth, &token).await);
    assert_eq!(requests.load(Ordering::Relaxed), 2);
    for token in [leaked, token_of(&second_key, "third")] {
        assert!(!admits(&auth, &token).await);
    }
    assert_eq!(
        requests.load(Ordering::Relaxed),
        2,
        "not again within the gap"
    );
    assert!(admits(&auth, &token).await);
}

#[tokio::test]
async fn a_key_server_that_fails_leaves_the_last_good_set() {
    let (good, key) = key_set("first");
    let huge = " ".repeat(1 << 20);
    let answers = [&good, "{}", &huge].map(|set| KeyServerAnswer::Text(ok(set)));
    let (url, requests) = key_server(answers.into()).await;
    let auth = load_with(|auth| {
        auth.jwks_url = Some(url);
        auth.refresh_interval = Duration::from_millis(10);
    })
    .await;
    while requests.load(Ordering::Relaxed) < 5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(admits(&auth, &token_of(&key, "first")).await);
}

#[tokio::test]
async fn a_key_server_that_answers_oddly_is_ignored() {
    let (good, key) = key_set("first");
    let (other, other_key) = key_set("other");
    let (elsewhere, followed) = key_server(vec![KeyServerAnswer::Text(ok(&other))]).await;
    let status = "HTTP/1.1 200 OK\r\n";
    let answers = [
        KeyServerAnswer::Text(ok(&good)),
        KeyServerAnswer::Text(format!(
            "HTTP/1.1 302 Found\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n"
        )),
        // Another set: with a status other than 200, cut short, or after too many spaces.
        KeyServerAnswer::Text(ok(&other).replace("200 OK", "404 Not Found")),
        KeyServerAnswer::Text(format!("{status}Content-Length: 9999\r\n\r\n{other}")),
        KeyServerAnswer::Text(ok(&format!("{}{other}", " ".repeat(256 * 1024)))),
        // Endless: a body in chunks, a head, a slow body.
        KeyServerAnswer::Endless(
            format!("{status}Transfer-Encoding: chunked\r\n\r\n"),
            b"5\r\n     \r\n",
        ),
        KeyServerAnswer::Endless(status.to_owned(), b"X-More: of this\r\n"),
        KeyServerAnswer::Endless(format!("{status}Content-Length: 200000\r\n\r\n"), b" "),
    ];
    let count = u32::try_from(answers.len()).unwrap();
    let (url, requests) = key_server(answers.into()).await;
    let auth = load_with(|auth| {
        auth.jwks_url = Some(url);
        auth.jwks_timeout = Duration::from_millis(300);
        auth.refresh_interval = Duration::from_millis(1);
    })
    .await;
    // One more, because a request is counted before its answer.
    while requests.load(Ordering::Relaxed) < count + 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(admits(&auth, &token_of(&key, "first")).await);
        let token = signed(&json!({"alg": "ES256", "kid": "first"}), &json!({}));
        assert!(!admits(&auth, &token).await);
    }
    assert_eq!(followed.load(Ordering::Relaxed), 0);
    assert!(!admits(&auth, &token_of(&other_key, "other")).await);
}

#[tokio::test]
async fn a_key_server_that_hangs_delays_a_token_no_longer_than_its_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let auth = load_with(|auth| {
        auth.jwks_url = Some(url);
        auth.jwks_timeout = Duration::from_millis(50);
    })
    .await;
    let (_, key) = key_set("first");
    assert!(!admits(&auth, &token_of(&key, "first")).await);
}

#[tokio::test]
async fn a_fetch_that_began_before_a_key_was_asked_for_is_not_its_answer() {
    let ((first, _), (second, second_key)) = (key_set("first"), key_set("second"));
    let (asked, may_answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let answers = vec![
        KeyServerAnswer::Text(ok(&first)),
        KeyServerAnswer::Held {
            text: ok(&first),
            asked: asked.clone(),
            may_answer: may_answer.clone(),
        },
        KeyServerAnswer::Text(ok(&second)),
    ];
    let (url, _) = key_server(answers).await;
    let auth = load_with(|auth| {
        auth.jwks_url = Some(url);
        auth.refresh_interval = Duration::from_millis(10);
    })
    .await;
    asked.notified().await;
    // The token requests a fetch before the server sends the first set again.
    let token = token_of(&second_key, "second");
    let (authenticated, ()) =
        tokio::join!(biased; admits(&auth, &token), async { may_answer.notify_one() });
    assert!(authenticated);
}

#[tokio::test(start_paused = true)]
async fn unknown_key_ids_do_not_delay_the_reading_of_files() {
    let file = TempFile::new(SECRET);
    let settings = settings(|auth| {
        auth.secret_file = vec![file.0.clone()];
        // No server listens there.
        auth.jwks_url = Some("http://127.0.0.1:1/".to_owned());
        auth.refresh_interval = Duration::from_mins(1);
    });
    let auth = load(&settings).await;
    let new_secret = SECRET.replace('0', "9");
    let (old, new) = (issued(&settings, SECRET), issued(&settings, &new_secret));
    assert!(admits(&auth, &old).await);
    std::fs::write(&file.0, &new_secret).unwrap();
    let (_, key) = key_set("unknown");
    for _ in 0..4 {
        assert!(!admits(&auth, &token_of(&key, "unknown")).await);
        sleep(Duration::from_secs(30)).await;
    }
    assert!(!admits(&auth, &old).await, "its secret is replaced");
    assert!(admits(&auth, &new).await);
}

#[tokio::test]
async fn a_key_server_that_has_never_answered_is_asked_again_after_30_s() {
    let settings = settings(|auth| auth.jwks_url = Some("http://127.0.0.1:1/".to_owned()));
    let (_auth, refresher) = Auth::load(&settings).await.unwrap();
    let refresher = refresher.unwrap();
    let half_a_minute = Duration::from_secs(30);
    let loaded = Instant::now();
    let due = refresher.due() - half_a_minute;
    assert!((loaded..=Instant::now()).contains(&due));
    assert!(settings.refresh_interval > half_a_minute);
    let (set, _) = key_set("first");
    let (url, _) = key_server(vec![KeyServerAnswer::Text(ok(&set))]).await;
    let settings = AuthSettings {
        jwks_url: Some(url),
        ..settings
    };
    let (_auth, refresher) = Auth::load(&settings).await.unwrap();
    let loaded = Instant::now();
    assert!(refresher.unwrap().due() >= loaded + settings.refresh_interval);
}

/// The library parses such a head for each key, which is slow, so a token with an invalid signature does not get
/// that far. benches/time.rs measures it.
#[tokio::test]
async fn a_long_head_is_accepted_if_a_key_has_signed_it() {
    let mut all: Vec<_> = (1..8_u8)
        .map(|index| json!({"kty": "oct", "k": base64_url(&[index; 32])}))
        .collect();
    all.push(json!({"kty": "oct", "k": base64_url(SECRET.as_bytes())}));
    let auth = load_set(&all).await;
    let claims = json!({"exp": now() + 60});
    let mut head = json!({"alg": "HS256"});
    for index in 0..600 {
        head[format!("{index:03}")] = json!(0);
    }
    let long = signed(&head, &claims);
    assert!(admits(&auth, &long).await, "it may be long");
    let (message, _) = long.rsplit_once('.').unwrap();
    let guess = format!("{message}.{}", "A".repeat(43));
    assert!(!admits(&auth, &guess).await);
}
