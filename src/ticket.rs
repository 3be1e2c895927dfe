//! Tickets: signed statements that a user has had an id. With its ticket a user gets the same id on its
//! next connection, and the relay stores nothing for that. Must not know of I/O or settings.
//!
//! A ticket is 56 bytes in base64url: the id, the expiry and the resumption id (8 bytes each), and an
//! HMAC-SHA256 (32 bytes) over these and over the subject of the user's token, which is not in the ticket.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use ring::hmac::{self, HMAC_SHA256};
use ring::rand::SystemRandom;

use crate::identity::{ResumptionId, UserId, UserIdentity};

/// Part of each signed text, so that another use of the same secret never signs a ticket.
const CONTEXT: &[u8] = b"switchboard ticket 1";

/// Id, expiry and resumption id, eight bytes each.
const SIGNED_BYTES: usize = 24;
const TAG_BYTES: usize = 32;

/// Why a ticket is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// It was not signed with this secret for this subject, or it is no ticket at all.
    Forged,
    /// Its expiry has passed.
    Expired,
}

/// Signs and verifies tickets.
pub(crate) struct Tickets {
    key: hmac::Key,
    ttl: Duration,
}

impl Tickets {
    /// Tickets that are valid for `ttl`, signed with `secret`. Without a secret, one is generated, and
    /// tickets are valid in this process only. Returns `None` where the system has no randomness.
    pub(crate) fn new(secret: Option<&[u8]>, ttl: Duration) -> Option<Self> {
        let key = match secret {
            Some(secret) => hmac::Key::new(HMAC_SHA256, secret),
            None => hmac::Key::generate(HMAC_SHA256, &SystemRandom::new()).ok()?,
        };
        Some(Self { key, ttl })
    }

    /// Signs a ticket that only this subject can use. There are no subjects without authentication.
    pub(crate) fn issue(
        &self,
        identity: UserIdentity,
        subject: Option<&str>,
        now: SystemTime,
    ) -> String {
        let expires = seconds(now).saturating_add(self.ttl.as_secs());
        let mut ticket = [0; SIGNED_BYTES + TAG_BYTES];
        let (signed, tag) = ticket.split_at_mut(SIGNED_BYTES);
        signed[..8].copy_from_slice(&identity.id.get().to_be_bytes());
        signed[8..16].copy_from_slice(&expires.to_be_bytes());
        signed[16..].copy_from_slice(&identity.resumption_id.get().to_be_bytes());
        tag.copy_from_slice(hmac::sign(&self.key, &statement(signed, subject)).as_ref());
        BASE64URL_NOPAD.encode(&ticket)
    }

    /// Verifies a ticket that this subject shows.
    pub(crate) fn read(
        &self,
        ticket: &str,
        subject: Option<&str>,
        now: SystemTime,
    ) -> Result<UserIdentity, Invalid> {
        let ticket = BASE64URL_NOPAD
            .decode(ticket.as_bytes())
            .map_err(|_| Invalid::Forged)?;
        let (signed, tag) = ticket
            .split_at_checked(SIGNED_BYTES)
            .ok_or(Invalid::Forged)?;
        hmac::verify(&self.key, &statement(signed, subject), tag).map_err(|_| Invalid::Forged)?;
        let mut numbers = signed.chunks_exact(8).map(|bytes| {
            u64::from_be_bytes(bytes.try_into().expect("a chunk is of the size asked for"))
        });
        let (Some(id), Some(expires), Some(resumption_id)) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return Err(Invalid::Forged);
        };
        if expires <= seconds(now) {
            return Err(Invalid::Expired);
        }
        Ok(UserIdentity {
            id: UserId::new(id).ok_or(Invalid::Forged)?,
            resumption_id: ResumptionId::from(resumption_id),
        })
    }
}

/// The bytes that are signed. All parts but the last have a fixed length, so that no two statements have
/// the same bytes.
fn statement(signed: &[u8], subject: Option<&str>) -> Vec<u8> {
    let has_subject = [u8::from(subject.is_some())];
    let subject = subject.unwrap_or_default().as_bytes();
    [CONTEXT, signed, &has_subject, subject].concat()
}

fn seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets")
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Option<&[u8]> = Some(b"a secret of at least 32 bytes, yes");
    const TTL: Duration = Duration::from_mins(1);

    fn identity() -> UserIdentity {
        UserIdentity {
            id: UserId::new(7).unwrap(),
            resumption_id: ResumptionId::from(u64::MAX - 3),
        }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_ticket_is_valid_until_it_expires_on_each_node_with_the_secret() {
        let ticket = Tickets::new(SECRET, TTL)
            .unwrap()
            .issue(identity(), None, at(1000));
        let other_node = Tickets::new(SECRET, Duration::ZERO).unwrap();
        assert_eq!(other_node.read(&ticket, None, at(1000)), Ok(identity()));
        assert_eq!(other_node.read(&ticket, None, at(1059)), Ok(identity()));
        assert_eq!(
            other_node.read(&ticket, None, at(1060)),
            Err(Invalid::Expired)
        );
        // The clock was set back.
        assert_eq!(other_node.read(&ticket, None, at(0)), Ok(identity()));
    }

    #[test]
    fn only_its_subject_can_use_a_ticket() {
        let tickets = Tickets::new(SECRET, TTL).unwrap();
        for owner in [None, Some(""), Some("ann"), Some("anna")] {
            let ticket = tickets.issue(identity(), owner, at(0));
            for bearer in [None, Some(""), Some("ann"), Some("anna")] {
                let expected = if bearer == owner {
                    Ok(identity())
                } else {
                    Err(Invalid::Forged)
                };
                assert_eq!(tickets.read(&ticket, bearer, at(0)), expected);
            }
        }
    }

    #[test]
    fn a_changed_ticket_is_forged() {
        let tickets = Tickets::new(SECRET, TTL).unwrap();
        let ticket = tickets.issue(identity(), None, at(0));
        assert_eq!(ticket.len(), 75);
        // A token of RFC 9110 section 5.6.2, as a subprotocol has to be.
        assert!(
            ticket
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        );
        let mut bytes = BASE64URL_NOPAD.decode(ticket.as_bytes()).unwrap();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let forged = BASE64URL_NOPAD.encode(&bytes);
            assert_eq!(tickets.read(&forged, None, at(0)), Err(Invalid::Forged));
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for length in 0..ticket.len() {
            let shortened = ticket.get(..length).unwrap();
            assert_eq!(tickets.read(shortened, None, at(0)), Err(Invalid::Forged));
        }
        for no_ticket in ["", "=", "%", "ticket", &format!("{ticket}AAAA")] {
            assert_eq!(tickets.read(no_ticket, None, at(0)), Err(Invalid::Forged));
        }
    }

    /// Tickets outlive the process: the version before has issued them, and the next one will read them. A new form
    /// needs another [`CONTEXT`], so that either version refuses what the other signs.
    #[test]
    fn a_ticket_of_an_earlier_version_has_these_bytes() {
        let tickets = Tickets::new(SECRET, TTL).unwrap();
        for (subject, ticket) in [
            (
                None,
                "AAAAAAAAAAcAAAAAAAAEJP_________8hCQYEIO9Q9Xw9je1PJGLjIXOebu96zWcO794nm-FO_o",
            ),
            (
                Some("ann"),
                "AAAAAAAAAAcAAAAAAAAEJP_________8XHkCvYnJfjteD0dWx-0hKxXBv8LzcYa3r_Qy3rdtet8",
            ),
        ] {
            assert_eq!(tickets.issue(identity(), subject, at(1000)), ticket);
            assert_eq!(tickets.read(ticket, subject, at(1059)), Ok(identity()));
        }
    }

    #[test]
    fn another_secret_or_none_does_not_verify_a_ticket() {
        let ticket = Tickets::new(SECRET, TTL)
            .unwrap()
            .issue(identity(), None, at(0));
        for secret in [Some(b"another".as_slice()), None] {
            let tickets = Tickets::new(secret, TTL).unwrap();
            assert_eq!(tickets.read(&ticket, None, at(0)), Err(Invalid::Forged));
        }
        let own = Tickets::new(None, TTL).unwrap();
        let ticket = own.issue(identity(), None, at(0));
        assert_eq!(own.read(&ticket, None, at(0)), Ok(identity()));
    }
}
