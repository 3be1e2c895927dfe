//! Users that come back with a ticket: with their id, or with another one and the reason.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use switchboard::auth;
use switchboard::config::{AuthMode, Secret, Settings, Strategy};

use crate::harness::{Dialect, Handshake, Raw, Relay, Wire, clog};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A folder with a secret, which the drop removes.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tickets-{}-{count}", std::process::id());
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("secret"), SECRET).unwrap();
        Self(folder)
    }

    fn secret(&self) -> PathBuf {
        self.0.join("secret")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Joins by `switchboard.v1`, and reads the welcome.
async fn join(relay: &Relay, handshake: Handshake) -> (Raw, Value) {
    enter(relay.raw().await, handshake).await
}

async fn enter(mut peer: Raw, handshake: Handshake) -> (Raw, Value) {
    peer.upgrade(&handshake.dialect(Dialect::V1)).await;
    let welcome = peer.json().await;
    assert_eq!(welcome["type"], "welcome", "{welcome}");
    assert_eq!(welcome["user_id"], peer.id, "{welcome}");
    (peer, welcome)
}

fn ticket(welcome: &Value) -> String {
    welcome["ticket"].as_str().unwrap().to_owned()
}

fn with_ticket(ticket: &str) -> Handshake {
    Handshake::new().with("X-Ticket", ticket)
}

async fn leave(mut peer: Raw) {
    peer.write(&Wire::close(1000, "").bytes()).await;
    peer.answered().await;
}

both_strategies! {
    async fn a_user_comes_back_with_its_id_in_either_dialect(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let (peer, welcome) = join(&relay, Handshake::new()).await;
        let id = peer.id;
        let first = ticket(&welcome);
        leave(peer).await;
        let (other, _) = join(&relay, Handshake::new()).await;
        assert_ne!(other.id, id);

        let (peer, welcome) = join(&relay, with_ticket(&first)).await;
        assert_eq!((peer.id, &welcome["resumed"]), (id, &json!(true)), "{welcome}");
        leave(peer).await;
        let entry = format!("switchboard.v1, ticket.{first}");
        let mut peer = relay.raw().await;
        peer.upgrade(&Handshake::new().with("Sec-WebSocket-Protocol", &entry)).await;
        assert_eq!(peer.id, id);
        assert_eq!(peer.json().await["resumed"], true);
        leave(peer).await;
        // The bare dialect has no welcome; the 101 carries the id.
        let mut bare = relay.raw().await;
        bare.upgrade(&with_ticket(&first)).await;
        assert_eq!(bare.id, id);
        bare.say(id, "it is me").await;
        assert_eq!(bare.json().await, Dialect::Bare.message(id, "it is me"));
        leave(bare).await;
        leave(other).await;
        relay.stop().await;
    }

    /// Of two, either may be the one that somebody in front has checked.
    async fn two_tickets_count_as_none(strategy) {
        let relay = Relay::start(strategy, |_| ()).await;
        let (peer, welcome) = join(&relay, Handshake::new()).await;
        let first = ticket(&welcome);
        leave(peer).await;
        for second in [&first, "another"] {
            let twice = with_ticket(&first).with("X-Ticket", second);
            let (peer, welcome) = join(&relay, twice).await;
            assert_ne!(peer.id, 1);
            assert_eq!((&welcome["resumed"], &welcome["reason"]), (&json!(false), &Value::Null));
            leave(peer).await;
        }
        relay.stop().await;
    }

    /// The old connection of a user reads nothing while the new one has its id. Both are in the figures.
    async fn a_replaced_connection_counts_until_it_has_ended(strategy) {
        let relay = Relay::start(strategy, |settings| {
            settings.keepalive.close_timeout = Duration::from_secs(20);
        })
        .await;
        let mut sender = relay.v1().await;
        let old = Raw::connect_narrow(relay.addr).await;
        let (old, welcome) = enter(old, Handshake::new()).await;
        clog(&relay, &mut sender, old.id, 60_000, 5).await;
        let (new, again) = join(&relay, with_ticket(&ticket(&welcome))).await;
        assert_eq!((new.id, &again["resumed"]), (old.id, &json!(true)));
        let scrape = relay.ledger().await;
        assert_eq!(scrape.value("switchboard_connections", &[]), 3);
        let held = scrape.value("switchboard_mailbox_messages", &[]);
        assert!(held >= 4, "{held} messages wait for the old connection");
        // Messages go to the new connection.
        sender.ask(new.id, "are you there?", "new").await;
        let mut new = new;
        assert_eq!(new.json().await, Dialect::V1.message(sender.id, "are you there?"));
        let mut old = old.narrowed();
        let (_, code, _) = old.rest().await;
        assert_eq!(code, 4409);
        drop(old);
        relay.until_metric("switchboard_connections", &[], 2).await;
        leave(new).await;
        sender.leave().await;
        relay.stop().await;
    }

    /// The id of the ticket was given to another user meanwhile, which keeps it.
    async fn a_ticket_takes_no_id_from_a_user_of_another_origin(strategy) {
        let folder = Folder::new();
        let start = async || {
            Relay::start(strategy, |settings| settings.tickets.secret_file = Some(folder.secret())).await
        };
        let relay = start().await;
        let (peer, welcome) = join(&relay, Handshake::new()).await;
        let (id, first) = (peer.id, ticket(&welcome));
        leave(peer).await;
        relay.stop().await;
        std::fs::remove_file(folder.0.join("secret.ids")).unwrap();

        let relay = start().await;
        let (mut owner, _) = join(&relay, Handshake::new()).await;
        assert_eq!(owner.id, id, "without the file of ids, they begin again");
        let (stranger, welcome) = join(&relay, with_ticket(&first)).await;
        assert_ne!(stranger.id, id);
        assert_eq!(
            (&welcome["resumed"], &welcome["reason"]),
            (&json!(false), &json!("id_in_use")),
            "{welcome}"
        );
        let scrape = relay.scrape().await;
        assert_eq!(scrape.value("switchboard_connections_opened_total", &[]), 2);
        owner.say(id, "still here").await;
        assert_eq!(owner.json().await, Dialect::V1.message(id, "still here"));
        leave(owner).await;
        leave(stranger).await;
        relay.stop().await;
    }
}

#[tokio::test]
async fn a_ticket_is_good_for_the_subject_that_got_it() {
    let folder = Folder::new();
    let relay = Relay::start(Strategy::Directory, |settings| {
        settings.auth.mode = AuthMode::Jwt;
        settings.auth.secret_file = vec![folder.secret()];
    })
    .await;
    let of = |subject: &str| {
        let (settings, secret) = (Settings::default().auth, Secret::new(SECRET));
        let token = auth::issue(&settings, &secret, subject, Duration::from_mins(1)).unwrap();
        Handshake::new().with("Authorization", &format!("Bearer {token}"))
    };
    let (peer, welcome) = join(&relay, of("ann")).await;
    let (id, ticket) = (peer.id, ticket(&welcome));
    leave(peer).await;
    let (peer, welcome) = join(&relay, of("bob").with("X-Ticket", &ticket)).await;
    assert_ne!(peer.id, id, "another subject shows the ticket");
    assert_eq!(
        (&welcome["resumed"], &welcome["reason"]),
        (&json!(false), &json!("ticket_invalid"))
    );
    leave(peer).await;
    let (peer, welcome) = join(&relay, of("ann").with("X-Ticket", &ticket)).await;
    assert_eq!((peer.id, &welcome["resumed"]), (id, &json!(true)));
    leave(peer).await;
    relay.stop().await;
}
