//! Tokens of every kind against keys of every kind, and a key set that comes over a real socket.

use std::sync::atomic::AtomicU32;

use hyper::header::{AUTHORIZATION, HeaderValue};
use jsonwebtoken::DecodingKey;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use ring::signature::{EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::*;
use crate::config::Settings;

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

/// A file that is gone with it.
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

fn settings(change: impl FnOnce(&mut config::AuthSettings)) -> config::AuthSettings {
    let mut auth = Settings::default().auth;
    auth.mode = AuthMode::Jwt;
    change(&mut auth);
    auth
}

async fn load(settings: &config::AuthSettings) -> Auth {
    Auth::load(settings).await.unwrap().0
}

fn bearer(token: &str) -> HeaderMap {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    HeaderMap::from_iter([(AUTHORIZATION, value)])
}

async fn admits(auth: &Auth, token: &str) -> Option<Authenticated> {
    auth.authenticate(&bearer(token), None).await.ok()
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_secs().cast_signed()
}

/// A token with any head and claims, signed with [`SECRET`].
fn signed(head: &Value, claims: &Value) -> String {
    signed_text(&head.to_string(), &claims.to_string())
}

/// The same of any text.
fn signed_text(head: &str, claims: &str) -> String {
    use ring::hmac;
    let part = |text: &str| base64_url(text.as_bytes());
    let message = format!("{}.{}", part(head), part(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", base64_url(signature.as_ref()))
}

fn base64_url(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            let index = bits >> (18 - 6 * digit) & 63;
            text.push(DIGITS[index as usize].into());
        }
    }
    text
}

#[test]
fn a_token_is_taken_from_one_place() {
    let fields = |fields: &[(&'static str, &str)]| {
        let pairs = fields.iter().map(|(name, value)| {
            let name = hyper::header::HeaderName::from_static(name);
            (name, HeaderValue::from_str(value).unwrap())
        });
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    };
    for (given, query, expected) in [
        (&[][..], None, None),
        (&[("authorization", "Bearer abc")], None, Some("abc")),
        (&[("authorization", "bearer  abc ")], None, Some("abc")),
        (&[("authorization", "Basic abc")], None, None),
        (&[("authorization", "abc")], None, None),
        (&[("authorization", "Basic x")], Some("token=abc"), None),
        (
            &[("authorization", "Bearer a"), ("authorization", "Bearer b")],
            None,
            None,
        ),
        (
            &[("sec-websocket-protocol", "switchboard.v1, bearer.abc")],
            None,
            Some("abc"),
        ),
        (
            &[
                ("sec-websocket-protocol", "switchboard.v1"),
                ("sec-websocket-protocol", "bearer.abc"),
            ],
            Some("token=def"),
            Some("abc"),
        ),
        (&[("sec-websocket-protocol", "Bearer.abc")], None, None),
        (&[], Some("token=abc"), Some("abc")),
        (&[], Some("a=b&token=abc&c"), Some("abc")),
        (&[], Some("mytoken=abc"), None),
    ] {
        let headers = fields(given);
        assert_eq!(token(&headers, query), expected, "{given:?} {query:?}");
    }
}

/// An algorithm, what it signs with, and what it is checked by if that is another key.
type Keys = (config::Algorithm, String, Option<String>);

fn keys_of_all_algorithms() -> Vec<Keys> {
    let pem = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    let (p256, p384, ed) = (
        pem(&PKCS_ECDSA_P256_SHA256),
        pem(&PKCS_ECDSA_P384_SHA384),
        pem(&PKCS_ED25519),
    );
    vec![
        (config::Algorithm::HS256, SECRET.to_owned(), None),
        (config::Algorithm::HS384, SECRET.to_owned(), None),
        (config::Algorithm::HS512, SECRET.to_owned(), None),
        (
            config::Algorithm::RS256,
            RSA_PRIVATE.to_owned(),
            Some(RSA_PUBLIC.to_owned()),
        ),
        (
            config::Algorithm::RS384,
            RSA_PRIVATE.to_owned(),
            Some(RSA_PUBLIC.to_owned()),
        ),
        (
            config::Algorithm::RS512,
            RSA_PRIVATE.to_owned(),
            Some(RSA_PUBLIC.to_owned()),
        ),
        (
            config::Algorithm::ES256,
            p256.serialize_pem(),
            Some(p256.public_key_pem()),
        ),
        (
            config::Algorithm::ES384,
            p384.serialize_pem(),
            Some(p384.public_key_pem()),
        ),
        (
            config::Algorithm::EdDSA,
            ed.serialize_pem(),
            Some(ed.public_key_pem()),
        ),
    ]
}

#[tokio::test]
async fn every_algorithm_is_checked_by_its_own_key_and_by_no_other() {
    let keys = keys_of_all_algorithms();
    let issued: Vec<_> = keys
        .iter()
        .map(|(algorithm, private, _)| {
            let settings = settings(|auth| auth.algorithm = Some(*algorithm));
            let secret = Secret::new(private.as_bytes());
            issue(&settings, &secret, "alice", Duration::from_mins(1)).unwrap()
        })
        .collect();
    for (index, (algorithm, private, public)) in keys.iter().enumerate() {
        let file = TempFile::new(public.as_ref().unwrap_or(private));
        let auth = load(&settings(|auth| {
            auth.algorithm = Some(*algorithm);
            match public {
                Some(_) => auth.public_key_file = vec![file.0.clone()],
                None => auth.secret_file = vec![file.0.clone()],
            }
        }))
        .await;
        for (other, token) in issued.iter().enumerate() {
            let authenticated = admits(&auth, token).await;
            assert_eq!(
                authenticated.is_some(),
                index == other,
                "{algorithm:?} and {:?}",
                keys[other].0
            );
            if let Some(authenticated) = authenticated {
                assert_eq!(authenticated.subject, Some(Subject::from("alice")));
                let remaining = authenticated.remaining.unwrap().as_secs();
                assert!(
                    (85..=90).contains(&remaining),
                    "{remaining} with the leeway"
                );
            }
            // A signature that is a bit off.
            let mut spoilt = token.clone().into_bytes();
            let middle = token.rfind('.').unwrap() + 10;
            spoilt[middle] = if spoilt[middle] == b'A' { b'B' } else { b'A' };
            let spoilt = String::from_utf8(spoilt).unwrap();
            assert_eq!(admits(&auth, &spoilt).await, None, "{algorithm:?}");
        }
    }
}

/// Takes tokens of [`SECRET`] from one issuer for one audience.
async fn strict() -> Auth {
    let file = TempFile::new(SECRET);
    let settings = settings(|auth| {
        auth.secret_file = vec![file.0.clone()];
        auth.issuer = Some("us".to_owned());
        auth.audience = Some("relay".to_owned());
    });
    load(&settings).await
}

#[tokio::test]
async fn claims_are_checked() {
    let auth = strict().await;
    let head = json!({"alg": "HS256", "typ": "JWT"});
    let good = json!({"sub": "alice", "exp": now() + 60, "iss": "us", "aud": ["relay", "other"]});
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
    for (change, good) in [
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
    ] {
        let authenticated = admits(&auth, &with(change.clone())).await;
        assert_eq!(authenticated.is_some(), good, "{change}");
    }
    for (head, admitted) in [
        (json!({"alg": "HS256"}), true),
        (json!({"alg": "HS256", "kid": "any"}), true),
        (json!({"alg": "none"}), false),
        (json!({"alg": "HS384"}), false),
        (
            json!({"alg": "HS256", "crit": ["b64"], "b64": false}),
            false,
        ),
        (json!({"typ": "JWT"}), false),
    ] {
        let authenticated = admits(&auth, &signed(&head, &good)).await;
        assert_eq!(authenticated.is_some(), admitted, "{head}");
    }
    for token in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "{}.{}.",
        &signed(&head, &json!([1])),
    ] {
        assert_eq!(admits(&auth, token).await, None, "{token}");
    }
    // Without its signature.
    let token = with(json!({}));
    let (message, _) = token.rsplit_once('.').unwrap();
    assert_eq!(admits(&auth, &format!("{message}.")).await, None);
}

/// What one reader takes by its first value, another takes by its last.
#[tokio::test]
async fn what_is_said_twice_is_not_said() {
    let auth = strict().await;
    let head = json!({"alg": "HS256", "typ": "JWT"}).to_string();
    let claims = json!({"sub": "alice", "exp": now() + 60, "iss": "us", "aud": "relay"});
    let claims = claims.to_string();
    let twice = |text: &str, member: &str| text.replacen('{', &format!("{{{member},"), 1);
    for (head, claims, admitted) in [
        (head.clone(), claims.clone(), true),
        (twice(&head, r#""typ":"JWT""#), claims.clone(), false),
        (twice(&head, r#""alg":"none""#), claims.clone(), false),
        (twice(&head, r#""alg":"HS256""#), claims.clone(), false),
        (head.clone(), twice(&claims, r#""exp":1"#), false),
        (head.clone(), twice(&claims, r#""sub":"root""#), false),
        (head.clone(), twice(&claims, r#""aud":"relay""#), false),
        (head.clone(), twice(&claims, r#""iss":"us""#), false),
        (head.clone(), format!("{claims}x"), false),
    ] {
        let authenticated = admits(&auth, &signed_text(&head, &claims)).await;
        assert_eq!(authenticated.is_some(), admitted, "{head} {claims}");
    }
}

#[tokio::test]
async fn a_public_key_is_no_secret() {
    let file = TempFile::new(RSA_PUBLIC);
    let auth = load(&settings(|auth| {
        auth.public_key_file = vec![file.0.clone()];
    }))
    .await;
    // What everybody has: the public key's text, taken for an HMAC secret.
    let confused = settings(|auth| auth.algorithm = Some(config::Algorithm::HS256));
    let secret = Secret::new(RSA_PUBLIC.as_bytes());
    let token = issue(&confused, &secret, "mallory", Duration::from_mins(1)).unwrap();
    assert_eq!(admits(&auth, &token).await, None);
}

#[tokio::test]
async fn old_and_new_secrets_hold_side_by_side() {
    let (old, new) = (
        TempFile::new(SECRET),
        TempFile::new(&SECRET.replace('0', "9")),
    );
    let auth = load(&settings(|auth| {
        auth.secret_file = vec![old.0.clone(), new.0.clone()];
    }))
    .await;
    for file in [&old, &new] {
        let secret = Secret::read(&file.0).unwrap();
        let token = issue(&settings(|_| {}), &secret, "a", Duration::from_mins(1)).unwrap();
        assert!(admits(&auth, &token).await.is_some());
    }
    let secret = Secret::new(SECRET.replace('0', "8").as_bytes());
    let token = issue(&settings(|_| {}), &secret, "a", Duration::from_mins(1)).unwrap();
    assert_eq!(admits(&auth, &token).await, None);
}

#[tokio::test]
async fn keys_that_cannot_be_are_refused_with_the_file() {
    let refusal = async |change: &dyn Fn(&mut config::AuthSettings, PathBuf), text: &str| {
        let file = TempFile::new(text);
        let error = Auth::load(&settings(|auth| change(auth, file.0.clone())))
            .await
            .unwrap_err();
        let AuthError::Key(error) = error else {
            panic!("{error:?}");
        };
        let name = file.0.display().to_string();
        let said = error.to_string().replace(&name, "FILE");
        let all = format!("{error:?}");
        let all = format!("{all} {:#}", anyhow::Error::from(error));
        assert!(!all.contains("hunter2"), "{all}");
        said
    };
    let secret = |auth: &mut config::AuthSettings, path| auth.secret_file = vec![path];
    let public = |auth: &mut config::AuthSettings, path| auth.public_key_file = vec![path];
    let set = |auth: &mut config::AuthSettings, path| auth.jwks_file = Some(path);
    let es256 = |auth: &mut config::AuthSettings, path| {
        auth.public_key_file = vec![path];
        auth.algorithm = Some(config::Algorithm::ES256);
    };
    let no_public_key = "FILE: is no public key in PEM: RSA, P-256, P-384 or Ed25519";
    assert_eq!(
        refusal(&secret, "hunter2\n").await,
        "FILE: a secret for HS256 has at least 32 bytes, and this has 7"
    );
    assert_eq!(refusal(&public, RSA_PRIVATE).await, no_public_key);
    assert_eq!(refusal(&public, "ssh-rsa AAAA").await, no_public_key);
    assert_eq!(
        refusal(&es256, RSA_PUBLIC).await,
        "FILE: is no key for ES256 (auth.algorithm)"
    );
    assert_eq!(
        refusal(&public, RSA_1024).await,
        "FILE: an RSA key has 2048 to 8192 bits, and this has 1024"
    );
    let no_key_set = "FILE: is no JSON Web Key Set: line 1, column";
    for (text, column) in [
        ("{}", 2),
        ("\"hunter2\"", 9),
        ("{\"keys\":\"hunter2\"}", 17),
    ] {
        assert_eq!(refusal(&set, text).await, format!("{no_key_set} {column}"));
    }
    assert_eq!(
        refusal(
            &set,
            r#"{"keys":[{"kty":"OKP","crv":"X25519","x":"AA"},{"kty":"new"}]}"#
        )
        .await,
        "FILE: has no key for HS, RS, ES256, ES384 or EdDSA signatures"
    );
}

#[tokio::test]
async fn a_key_of_a_set_that_is_none_spoils_no_other() {
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
        let error = keys::from_set(alone.as_bytes(), "set", Secrets::Taken).unwrap_err();
        assert!(matches!(error, KeyError::NoKey { .. }), "{odd}: {error}");
    }
    let mut all = odd.to_vec();
    all.push(good.clone());
    let file = TempFile::new(&json!({"keys": all}).to_string());
    let auth = load(&settings(|auth| auth.jwks_file = Some(file.0.clone()))).await;
    assert!(admits(&auth, &token_of(&key, "good")).await.is_some());
}

#[tokio::test]
async fn a_key_that_is_named_is_tried_however_many_there_are() {
    let mut all: Vec<_> = (0..9_u8)
        .map(|index| json!({"kty": "oct", "k": base64_url(&[index; 32])}))
        .collect();
    all.push(json!({"kty": "oct", "k": base64_url(SECRET.as_bytes()), "kid": "named"}));
    let file = TempFile::new(&json!({"keys": all}).to_string());
    let auth = load(&settings(|auth| auth.jwks_file = Some(file.0.clone()))).await;
    let claims = json!({"exp": now() + 60});
    for (head, admitted) in [
        (json!({"alg": "HS256", "kid": "named"}), true),
        (json!({"alg": "HS256", "kid": "other"}), false),
        // Not before as many others.
        (json!({"alg": "HS256"}), false),
    ] {
        let authenticated = admits(&auth, &signed(&head, &claims)).await;
        assert_eq!(authenticated.is_some(), admitted, "{head}");
    }
}

#[tokio::test]
async fn a_modulus_may_have_a_zero_before_it() {
    let public = DecodingKey::from_rsa_pem(RSA_PUBLIC.as_bytes()).unwrap();
    let der = public.try_get_as_bytes().unwrap();
    // Two integers behind each other, the first with the zero that DER wants before it.
    let (modulus, exponent) = (&der[8..8 + 257], &der[der.len() - 3..]);
    let key = json!({"kty": "RSA", "n": base64_url(modulus), "e": base64_url(exponent)});
    let file = TempFile::new(&json!({"keys": [key]}).to_string());
    let auth = load(&settings(|auth| auth.jwks_file = Some(file.0.clone()))).await;
    let rs256 = settings(|auth| auth.algorithm = Some(config::Algorithm::RS256));
    let secret = Secret::new(RSA_PRIVATE.as_bytes());
    let token = issue(&rs256, &secret, "alice", Duration::from_mins(1)).unwrap();
    assert!(admits(&auth, &token).await.is_some());
}

#[test]
fn an_address_whose_host_no_certificate_can_have_is_found_out_by_check() {
    let url = |host: &str| settings(|auth| auth.jwks_url = Some(format!("https://{host}/keys")));
    assert!(Auth::check_files(&url("example.com")).is_ok());
    let error = Auth::check_files(&url(&"a".repeat(64))).unwrap_err();
    assert!(matches!(error, AuthError::Source(SourceError::NoName(_))));
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

/// Serves these answers, one a connection, the last again and again; counts the questions.
async fn key_server(answers: Vec<String>) -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let count = Arc::new(AtomicU32::new(0));
    let asked = count.clone();
    #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let turn = asked.fetch_add(1, Ordering::Relaxed) as usize;
            let mut request = vec![0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /keys HTTP/1.1\r\n"));
            let body = &answers[turn.min(answers.len() - 1)];
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(body.as_bytes()).await.unwrap();
        }
    });
    (url, count)
}

#[tokio::test]
async fn an_unknown_key_has_the_set_fetched_again_but_not_every_time() {
    let ((first, first_key), (second, second_key)) = (key_set("first"), key_set("second"));
    let (url, asked) = key_server(vec![first, second]).await;
    let (auth, refresher) = Auth::load(&settings(|auth| auth.jwks_url = Some(url)))
        .await
        .unwrap();
    #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(refresher.unwrap().run());
    assert!(
        admits(&auth, &token_of(&first_key, "first"))
            .await
            .is_some()
    );
    assert_eq!(admits(&auth, &token_of(&second_key, "first")).await, None);
    // A secret that everybody can fetch is none.
    let leaked = json!({"alg": "HS256", "kid": "leaked"});
    let leaked = signed(&leaked, &json!({"exp": now() + 60}));
    assert_eq!(asked.load(Ordering::Relaxed), 1);

    let token = token_of(&second_key, "second");
    assert!(admits(&auth, &token).await.is_some());
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    for token in [leaked, token_of(&second_key, "third")] {
        assert_eq!(admits(&auth, &token).await, None);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2, "not again within the gap");
    assert!(admits(&auth, &token).await.is_some());
}

#[tokio::test]
async fn a_key_server_that_fails_leaves_the_last_good_set() {
    let (good, key) = key_set("first");
    let huge = " ".repeat(1 << 20);
    let (url, asked) = key_server(vec![good, "{}".to_owned(), huge]).await;
    let settings = settings(|auth| {
        auth.jwks_url = Some(url);
        auth.refresh_interval = Duration::from_millis(10);
    });
    let (auth, refresher) = Auth::load(&settings).await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(refresher.unwrap().run());
    while asked.load(Ordering::Relaxed) < 5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(admits(&auth, &token_of(&key, "first")).await.is_some());
}

/// Answers that begin so and go on by the same piece until nobody takes any more of it, one a connection,
/// the last again and again; says when each has come.
async fn odd_key_server(answers: Vec<(String, Option<&'static [u8]>)>) -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let count = Arc::new(AtomicU32::new(0));
    let answered = count.clone();
    #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move {
        for turn in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _read = stream.read(&mut [0; 1024]).await.unwrap();
            let (begin, piece) = &answers[turn.min(answers.len() - 1)];
            stream.write_all(begin.as_bytes()).await.unwrap();
            while let Some(piece) = piece {
                if stream.write_all(piece).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(1)).await;
            }
            answered.fetch_add(1, Ordering::Relaxed);
        }
    });
    (url, count)
}

#[tokio::test]
async fn a_key_server_that_answers_oddly_is_neither_followed_nor_waited_for() {
    let (good, key) = key_set("first");
    let (other, other_key) = key_set("other");
    let whole = |set: &str| {
        let length = set.len();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{set}")
    };
    let (elsewhere, followed) = key_server(vec![other.clone()]).await;
    let ok = "HTTP/1.1 200 OK\r\n";
    let odd = [
        (
            format!("HTTP/1.1 302 Found\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n"),
            None,
        ),
        // Another set with a status that is none of success, or cut short, or behind too much of nothing.
        (whole(&other).replace("200 OK", "404 Not Found"), None),
        (format!("{ok}Content-Length: 9999\r\n\r\n{other}"), None),
        (whole(&format!("{}{other}", " ".repeat(256 * 1024))), None),
        // What never ends: a body in chunks, a head, a body that drips.
        (
            format!("{ok}Transfer-Encoding: chunked\r\n\r\n"),
            Some(&b"5\r\n     \r\n"[..]),
        ),
        (ok.to_owned(), Some(b"X-More: of this\r\n")),
        (format!("{ok}Content-Length: 200000\r\n\r\n"), Some(b" ")),
    ];
    let count = u32::try_from(odd.len()).unwrap();
    let answers = [(whole(&good), None)].into_iter().chain(odd).collect();
    let (url, answered) = odd_key_server(answers).await;
    let settings = settings(|auth| {
        auth.jwks_url = Some(url);
        auth.jwks_timeout = Duration::from_millis(300);
        auth.refresh_interval = Duration::from_millis(1);
    });
    let (auth, refresher) = Auth::load(&settings).await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(refresher.unwrap().run());
    while answered.load(Ordering::Relaxed) < count + 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(admits(&auth, &token_of(&key, "first")).await.is_some());
        let token = signed(&json!({"alg": "ES256", "kid": "first"}), &json!({}));
        assert_eq!(admits(&auth, &token).await, None);
    }
    assert_eq!(followed.load(Ordering::Relaxed), 0);
    assert_eq!(admits(&auth, &token_of(&other_key, "other")).await, None);
}

#[tokio::test]
async fn a_key_server_that_hangs_holds_nothing_up_for_longer_than_its_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let settings = settings(|auth| {
        auth.jwks_url = Some(url);
        auth.jwks_timeout = Duration::from_millis(50);
    });
    let (auth, refresher) = Auth::load(&settings).await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(refresher.unwrap().run());
    let (_, key) = key_set("first");
    assert_eq!(admits(&auth, &token_of(&key, "first")).await, None);
}

/// Serves the first set, then the old one again once it is told to, then the second.
async fn slow_key_server(sets: [String; 2]) -> (String, Arc<Notify>, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let [asked, answer] = [(); 2].map(|()| Arc::new(Notify::new()));
    let (is_asked, may_answer) = (asked.clone(), answer.clone());
    #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move {
        for turn in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _read = stream.read(&mut [0; 1024]).await.unwrap();
            if turn == 1 {
                is_asked.notify_one();
                may_answer.notified().await;
            }
            let body = &sets[usize::from(turn > 1)];
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(body.as_bytes()).await.unwrap();
        }
    });
    (url, asked, answer)
}

#[tokio::test]
async fn a_fetch_that_began_before_a_key_was_asked_for_is_not_its_answer() {
    let ((first, _), (second, second_key)) = (key_set("first"), key_set("second"));
    let (url, asked, answer) = slow_key_server([first, second]).await;
    let settings = settings(|auth| {
        auth.jwks_url = Some(url);
        auth.refresh_interval = Duration::from_millis(10);
    });
    let (auth, refresher) = Auth::load(&settings).await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(refresher.unwrap().run());
    asked.notified().await;
    // The token is looked at, and waits, before the old set is told.
    let token = token_of(&second_key, "second");
    let (authenticated, ()) =
        tokio::join!(biased; admits(&auth, &token), async { answer.notify_one() });
    assert!(authenticated.is_some());
}

#[tokio::test(start_paused = true)]
async fn whoever_names_unknown_keys_keeps_no_file_from_being_read_again() {
    let file = TempFile::new(SECRET);
    let settings = settings(|auth| {
        auth.secret_file = vec![file.0.clone()];
        // Nobody is there, or nobody in time.
        auth.jwks_url = Some("http://127.0.0.1:1/".to_owned());
        auth.refresh_interval = Duration::from_mins(1);
    });
    let (auth, refresher) = Auth::load(&settings).await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(refresher.unwrap().run());
    let of = |secret: &str| {
        let secret = Secret::new(secret.as_bytes());
        issue(&settings, &secret, "alice", Duration::from_mins(1)).unwrap()
    };
    let (old, new) = (of(SECRET), of(&SECRET.replace('0', "9")));
    assert!(admits(&auth, &old).await.is_some());
    std::fs::write(&file.0, SECRET.replace('0', "9")).unwrap();
    let (_, key) = key_set("unknown");
    for _ in 0..4 {
        assert_eq!(admits(&auth, &token_of(&key, "unknown")).await, None);
        sleep(REFRESH_GAP).await;
    }
    assert_eq!(admits(&auth, &old).await, None, "it was withdrawn");
    assert!(admits(&auth, &new).await.is_some());
}

#[tokio::test]
async fn a_key_server_that_has_never_answered_is_asked_again_soon() {
    let settings = settings(|auth| auth.jwks_url = Some("http://127.0.0.1:1/".to_owned()));
    let (_auth, refresher) = Auth::load(&settings).await.unwrap();
    let refresher = refresher.unwrap();
    assert!(refresher.due() <= Instant::now() + REFRESH_GAP);
    assert!(settings.refresh_interval > REFRESH_GAP);
    let (set, _) = key_set("first");
    let (url, _) = key_server(vec![set]).await;
    let settings = config::AuthSettings {
        jwks_url: Some(url),
        ..settings
    };
    let (_auth, refresher) = Auth::load(&settings).await.unwrap();
    let loaded = Instant::now();
    assert!(refresher.unwrap().due() >= loaded + settings.refresh_interval);
}

/// The library reads such a head in pieces, for each key anew, so a guess does not get there: what that takes
/// is measured by benches/time.rs.
#[tokio::test]
async fn a_head_may_be_long_where_a_key_has_signed_it() {
    let mut all: Vec<_> = (1..8_u8)
        .map(|index| json!({"kty": "oct", "k": base64_url(&[index; 32])}))
        .collect();
    all.push(json!({"kty": "oct", "k": base64_url(SECRET.as_bytes())}));
    let file = TempFile::new(&json!({"keys": all}).to_string());
    let auth = load(&settings(|auth| auth.jwks_file = Some(file.0.clone()))).await;
    let claims = json!({"exp": now() + 60});
    let mut head = json!({"alg": "HS256"});
    for index in 0..600 {
        head[format!("{index:03}")] = json!(0);
    }
    let long = signed(&head, &claims);
    assert!(admits(&auth, &long).await.is_some(), "it may be long");
    let (message, _) = long.rsplit_once('.').unwrap();
    let guess = format!("{message}.{}", "A".repeat(43));
    assert_eq!(admits(&auth, &guess).await, None);
}
