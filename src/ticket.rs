//! Tickets: signed statements that somebody has had an id, so that a connection can come back with
//! it, with nothing stored here. Text in, a claim out and back; no I/O, no settings.
//!
//! A ticket is 64 bytes in base64url: the id, when it expires, the resumption id, and an HMAC-SHA256 over
//! these and over whoever it was given to, who is not in it.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use ring::hmac::{self, HMAC_SHA256};
use ring::rand::SystemRandom;

use crate::identity::{ResumptionId, UserId};

/// Keeps what is signed here apart from whatever else the same secret may sign.
const CONTEXT: &[u8] = b"switchboard ticket 1";

/// Id, expiry and resumption_id, eight bytes each.
const CLAIM_BYTES: usize = 24;
const TAG_BYTES: usize = 32;

/// What a ticket says once it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The id that its bearer has had.
    pub id: UserId,
    /// Since when, in a manner: nobody who was given the id at another time has the same.
    pub resumption_id: ResumptionId,
}

/// Why a ticket does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// It was not signed with this secret for this subject, or is no ticket at all.
    Forged,
    /// Its time is over.
    Expired,
}

/// Signs tickets, and reads them.
pub struct Tickets {
    key: hmac::Key,
    ttl: Duration,
}

impl Tickets {
    /// Tickets that hold for `ttl`, signed with `secret`; with a random one if there is none, and
    /// then they hold in this process only. Nothing where the system has no randomness.
    pub fn new(secret: Option<&[u8]>, ttl: Duration) -> Option<Self> {
        let key = match secret {
            Some(secret) => hmac::Key::new(HMAC_SHA256, secret),
            None => hmac::Key::generate(HMAC_SHA256, &SystemRandom::new()).ok()?,
        };
        Some(Self { key, ttl })
    }

    /// A ticket for an id, which only that subject can use; nobody has a subject without
    /// authentication.
    pub fn issue(&self, claim: Claim, subject: Option<&str>, now: SystemTime) -> String {
        let expires = seconds(now).saturating_add(self.ttl.as_secs());
        let mut ticket = [0; CLAIM_BYTES + TAG_BYTES];
        let (signed, tag) = ticket.split_at_mut(CLAIM_BYTES);
        signed[..8].copy_from_slice(&claim.id.get().to_be_bytes());
        signed[8..16].copy_from_slice(&expires.to_be_bytes());
        signed[16..].copy_from_slice(&claim.resumption_id.get().to_be_bytes());
        tag.copy_from_slice(hmac::sign(&self.key, &statement(signed, subject)).as_ref());
        BASE64URL_NOPAD.encode(&ticket)
    }

    /// What a ticket says, shown by that subject.
    pub fn read(
        &self,
        ticket: &str,
        subject: Option<&str>,
        now: SystemTime,
    ) -> Result<Claim, Invalid> {
        let ticket = BASE64URL_NOPAD
            .decode(ticket.as_bytes())
            .map_err(|_| Invalid::Forged)?;
        let (signed, tag) = ticket
            .split_at_checked(CLAIM_BYTES)
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
        Ok(Claim {
            id: UserId::new(id).ok_or(Invalid::Forged)?,
            resumption_id: ResumptionId::from(resumption_id),
        })
    }
}

/// What is signed. The claim's length is fixed, so no two statements are spelt alike.
fn statement(claim: &[u8], subject: Option<&str>) -> Vec<u8> {
    let has_subject = [u8::from(subject.is_some())];
    let subject = subject.unwrap_or_default().as_bytes();
    [CONTEXT, claim, &has_subject, subject].concat()
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

    fn claim() -> Claim {
        Claim {
            id: UserId::new(7).unwrap(),
            resumption_id: ResumptionId::from(u64::MAX - 3),
        }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_ticket_holds_until_it_expires_wherever_the_secret_is() {
        let ticket = Tickets::new(SECRET, TTL)
            .unwrap()
            .issue(claim(), None, at(1000));
        let elsewhere = Tickets::new(SECRET, Duration::ZERO).unwrap();
        assert_eq!(elsewhere.read(&ticket, None, at(1000)), Ok(claim()));
        assert_eq!(elsewhere.read(&ticket, None, at(1059)), Ok(claim()));
        assert_eq!(
            elsewhere.read(&ticket, None, at(1060)),
            Err(Invalid::Expired)
        );
        // A clock that was set back.
        assert_eq!(elsewhere.read(&ticket, None, at(0)), Ok(claim()));
    }

    #[test]
    fn a_ticket_is_its_subjects_alone() {
        let tickets = Tickets::new(SECRET, TTL).unwrap();
        for holder in [None, Some(""), Some("ann"), Some("anna")] {
            let ticket = tickets.issue(claim(), holder, at(0));
            for bearer in [None, Some(""), Some("ann"), Some("anna")] {
                let expected = if bearer == holder {
                    Ok(claim())
                } else {
                    Err(Invalid::Forged)
                };
                assert_eq!(tickets.read(&ticket, bearer, at(0)), expected);
            }
        }
    }

    #[test]
    fn whatever_is_changed_is_noticed() {
        let tickets = Tickets::new(SECRET, TTL).unwrap();
        let ticket = tickets.issue(claim(), None, at(0));
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
            let cut = ticket.get(..length).unwrap();
            assert_eq!(tickets.read(cut, None, at(0)), Err(Invalid::Forged));
        }
        for no_ticket in ["", "=", "%", "ticket", &format!("{ticket}AAAA")] {
            assert_eq!(tickets.read(no_ticket, None, at(0)), Err(Invalid::Forged));
        }
    }

    #[test]
    fn another_secret_and_no_secret_know_nothing_of_it() {
        let ticket = Tickets::new(SECRET, TTL)
            .unwrap()
            .issue(claim(), None, at(0));
        for secret in [Some(b"another".as_slice()), None] {
            let tickets = Tickets::new(secret, TTL).unwrap();
            assert_eq!(tickets.read(&ticket, None, at(0)), Err(Invalid::Forged));
        }
        let own = Tickets::new(None, TTL).unwrap();
        let ticket = own.issue(claim(), None, at(0));
        assert_eq!(own.read(&ticket, None, at(0)), Ok(claim()));
    }
}
