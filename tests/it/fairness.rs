//! No user slows another, as a ratio within one run: how much of others' work the relay does before the message of a
//! quiet pair. All of it is in the sockets before the relay runs, on one thread, so the count depends on the order in
//! which the relay serves them and not on the speed of the machine.

use std::io::ErrorKind;
use std::mem::MaybeUninit;

use socket2::SockRef;
use switchboard::config::Strategy;

use crate::harness::raw::message;
use crate::harness::{Dialect, Handshake, Raw, Relay};

const FLOODS: usize = 4;

/// The most bytes that a session reads in a turn.
const CHUNK_BYTES: usize = 64 * 1024;

/// Writes as often as the socket takes it, without a wait, so that nothing else runs on this thread meanwhile.
/// Returns how many bytes it has taken.
fn fill(peer: &Raw, bytes: &[u8]) -> usize {
    let mut written = 0;
    loop {
        match peer.stream.try_write(bytes) {
            Ok(count) => {
                written += count;
                if count < bytes.len() {
                    return written;
                }
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return written;
            }
        }
    }
}

/// A relay for which no mailbox is too small.
async fn patient(strategy: Strategy) -> Relay {
    Relay::start(strategy, |settings| {
        settings.mailbox.messages = 1 << 20;
        settings.mailbox.bytes = 1 << 30;
        settings.mailbox.total_bytes = 1 << 30;
    })
    .await
}

/// All messages go to one recipient, which gets them in the order in which the relay has read them.
#[tokio::test]
async fn a_message_waits_for_a_few_chunks_of_each_flood() {
    for strategy in [Strategy::Directory, Strategy::Router] {
        let relay = patient(strategy).await;
        let mut recipient = relay.raw_user(Dialect::Bare).await;
        let quiet = relay.raw_user(Dialect::Bare).await;
        let mut floods = Vec::new();
        for _ in 0..FLOODS {
            floods.push(relay.raw_user(Dialect::Bare).await);
        }
        let flood = message(recipient.id, "flood").bytes();
        let batch = flood.repeat(1000);
        let mut sent = 0;
        for peer in &floods {
            sent += fill(peer, &batch);
        }
        let hello = message(recipient.id, "hello").bytes();
        assert_eq!(quiet.stream.try_write(&hello).unwrap(), hello.len());
        let mut before = 0;
        while recipient.json().await["message"] != "hello" {
            before += flood.len();
        }
        let allowed = 3 * FLOODS * CHUNK_BYTES;
        assert!(
            sent > 4 * allowed,
            "the floods have {sent} bytes: too few to tell"
        );
        assert!(
            before <= allowed,
            "{strategy:?}: {before} bytes of floods were read first, of {sent}"
        );
        // What they have sent and the relay has not read goes with them.
        for peer in floods {
            peer.reset();
        }
        drop((recipient, quiet));
        relay.stop().await;
    }
}

/// Requests of connections that are no users are served a few at a time, between the turns of users.
#[tokio::test]
async fn a_message_waits_for_a_few_requests_of_strangers() {
    const STRANGERS: usize = 300;
    for strategy in [Strategy::Directory, Strategy::Router] {
        let relay = patient(strategy).await;
        let mut recipient = relay.raw_user(Dialect::Bare).await;
        let quiet = relay.raw_user(Dialect::Bare).await;
        let mut strangers = Vec::new();
        for _ in 0..STRANGERS {
            strangers.push(relay.raw().await);
        }
        // The relay has accepted them all.
        relay
            .until_metric_is_at_least("switchboard_http_connections", STRANGERS as u64)
            .await;
        let request = Handshake::request("GET", "/livez").bytes();
        for peer in &strangers {
            assert_eq!(peer.stream.try_write(&request).unwrap(), request.len());
        }
        let hello = message(recipient.id, "hello").bytes();
        assert_eq!(quiet.stream.try_write(&hello).unwrap(), hello.len());
        recipient.frame().await;
        let is_answered = |peer: &&Raw| {
            let mut byte = [MaybeUninit::uninit()];
            SockRef::from(&peer.stream).peek(&mut byte).is_ok()
        };
        let answered = strangers.iter().filter(is_answered).count();
        assert!(
            answered <= STRANGERS / 4,
            "{strategy:?}: {answered} requests of {STRANGERS} were answered first"
        );
        drop(strangers);
        relay.stop().await;
    }
}
