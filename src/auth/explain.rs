//! Why a token is invalid, in words, for `switchboard token verify`. Must not be used for peers, which could learn
//! from it. The verdict is that of [`Jwt`]; this only looks for its reason.

use std::time::{Duration, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::Algorithm;
use jsonwebtoken::errors::ErrorKind;
use serde_json::Value;

use super::jwt::{Jwt, TokenClaims, TokenHead};
use super::key::{self, VerificationKey};

impl Jwt {
    /// The reason why [`Jwt::verify`] has refused a token.
    pub(super) fn explain(&self, token: &str) -> String {
        let parts: Vec<_> = token.split('.').collect();
        let [head, claims, _signature] = parts[..] else {
            let count = parts.len();
            return format!("malformed: {count} parts between dots, expected 3");
        };
        let Some(fields) = json(head) else {
            return "malformed: its head is not JSON in base64url".to_owned();
        };
        let Some(head) = TokenHead::parse(token) else {
            let algorithm = shown(&fields["alg"]);
            return format!("its head is not supported: alg is {algorithm}");
        };
        if head.crit.is_some() {
            return "its head has a critical extension (crit), and none is supported".to_owned();
        }
        let keys = self.keys();
        let mut candidates = key::candidates(&keys, head.alg, head.kid.as_deref()).peekable();
        if candidates.peek().is_none() {
            return no_key(&keys, head.alg, head.kid.as_deref());
        }
        let Some(key) = candidates.find(|key| key.has_signed(token)) else {
            let (alg, kid) = (head.alg, &fields["kid"]);
            let named = if kid.is_null() {
                String::new()
            } else {
                format!(" with the id {kid}")
            };
            return format!("wrong signature: no key for {alg:?}{named} has signed it");
        };
        let claims = match json(claims) {
            Some(claims) if claims.is_object() => claims,
            _ => return "malformed: its claims are not a JSON object in base64url".to_owned(),
        };
        let validation = self.validation(head.alg);
        match jsonwebtoken::decode::<TokenClaims>(token, &key.key, &validation) {
            Ok(_) => self.expired(&claims),
            Err(error) => self.refused(error.kind(), &claims),
        }
    }

    fn refused(&self, reason: &ErrorKind, claims: &Value) -> String {
        let leeway = self.leeway.as_secs();
        match reason {
            ErrorKind::ExpiredSignature => self.expired(claims),
            ErrorKind::ImmatureSignature => {
                let seconds = claims["nbf"].as_f64().unwrap_or_default() - now();
                format!("not valid before {seconds:.0} s from now (nbf; auth.leeway is {leeway} s)")
            }
            ErrorKind::InvalidIssuer => self.other(claims, "iss"),
            ErrorKind::InvalidAudience => self.other(claims, "aud"),
            ErrorKind::MissingRequiredClaim(name) if name != "exp" => self.other(claims, name),
            ErrorKind::InvalidClaimFormat(name) => no_time(claims, name),
            // The claims that are read here.
            _ if !claims["sub"].is_string() && !claims["sub"].is_null() => {
                format!("sub is {}, expected a text", claims["sub"])
            }
            _ if !claims["exp"].is_number() => no_time(claims, "exp"),
            other => format!("{other:?}"),
        }
    }

    fn expired(&self, claims: &Value) -> String {
        let ago = now() - claims["exp"].as_f64().unwrap_or_default();
        let leeway = self.leeway.as_secs();
        format!("expired {ago:.0} s ago (exp; auth.leeway is {leeway} s)")
    }

    /// A claim that has another value than the settings require, or none.
    fn other(&self, claims: &Value, name: &str) -> String {
        let (expected, key) = match name {
            "iss" => (&self.issuer, "auth.issuer"),
            _ => (&self.audience, "auth.audience"),
        };
        let expected = expected.as_deref().unwrap_or_default();
        let found = shown(&claims[name]);
        format!("{name} is {found}, expected {expected:?} ({key})")
    }
}

fn no_key(keys: &[VerificationKey], algorithm: Algorithm, id: Option<&str>) -> String {
    if let Some(id) = id
        && !key::is_known(keys, id)
    {
        let ids: Vec<_> = keys.iter().filter_map(|key| key.id.as_deref()).collect();
        return format!("unknown key: kid is {id:?}, and the known ids are {ids:?}");
    }
    let mut algorithms: Vec<_> = keys
        .iter()
        .map(|key| format!("{:?}", key.algorithm))
        .collect();
    algorithms.sort_unstable();
    algorithms.dedup();
    let algorithms = algorithms.join(", ");
    format!("unknown key: alg is {algorithm:?}, and the known keys are for: {algorithms}")
}

fn no_time(claims: &Value, name: &str) -> String {
    let found = shown(&claims[name]);
    format!("{name} is {found}, expected seconds since 1970 as a number")
}

/// JSON in base64url.
fn json(text: &str) -> Option<Value> {
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "missing".to_owned(),
        value => value.to_string(),
    }
}

fn now() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or(Duration::ZERO).as_secs_f64()
}
