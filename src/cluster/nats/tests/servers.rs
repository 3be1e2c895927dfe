//! What three servers that are one cluster must do, on both implementations: one of them stops, or is cut off from
//! the two others.

use super::*;

/// Three servers.
trait Servers {
    type Nats: Nats;

    /// The way to one of the servers.
    fn at(&self, server: usize) -> Self::Nats;
    /// Lets nothing pass between a server and the two others.
    fn part(&self, server: usize);
    /// Lets everything pass again.
    fn heal(&self, server: usize);
    async fn stop(&mut self, server: usize);
    async fn start(&mut self, server: usize);
}

struct ImitatedServers(Model);

struct RealServers {
    servers: Vec<server::Nats>,
    /// The way from one server to another, both ways.
    routes: Vec<(usize, usize, Proxy)>,
}

impl Servers for ImitatedServers {
    type Nats = ModelNats;

    fn at(&self, server: usize) -> ModelNats {
        self.0.nats_at(server, server)
    }
    fn part(&self, server: usize) {
        for other in others(server) {
            self.0.cut_servers(server, other);
        }
    }
    fn heal(&self, server: usize) {
        for other in others(server) {
            self.0.heal_servers(server, other);
        }
    }
    async fn stop(&mut self, server: usize) {
        self.0.stop(server, false);
    }
    async fn start(&mut self, server: usize) {
        self.0.start(server);
    }
}

impl RealServers {
    async fn new() -> Self {
        let ports = [(); 3].map(|()| server::free_port());
        let mut routes = Vec::new();
        let mut servers = Vec::new();
        for (one, port) in ports.iter().enumerate() {
            let mut urls = Vec::new();
            for other in others(one) {
                let proxy = Proxy::to(ports[other]).await;
                urls.push(proxy.url());
                routes.push((one, other, proxy));
            }
            // Servers tell each other where they are. Nothing listens at the address that they tell, so they keep to
            // the proxies.
            let extra = format!(
                "server_name: s{one}\ncluster {{ name: test, listen: \"127.0.0.1:{port}\", \
                 advertise: \"127.0.0.1:1\", no_advertise: true, routes: {urls:?} }}"
            );
            servers.push(server::Nats::stopped(&extra));
        }
        for server in &mut servers {
            server.run().await;
        }
        Self { servers, routes }
    }

    fn set_routes(&self, server: usize, condition: Condition) {
        let of_server = |(one, other, _): &&(usize, usize, Proxy)| [*one, *other].contains(&server);
        for (_, _, proxy) in self.routes.iter().filter(of_server) {
            proxy.set(condition);
        }
    }
}

impl Servers for RealServers {
    type Nats = NatsClient;

    fn at(&self, server: usize) -> NatsClient {
        super::Real::client(self.servers[server].url())
    }
    fn part(&self, server: usize) {
        self.set_routes(server, Condition::Silent);
    }
    fn heal(&self, server: usize) {
        self.set_routes(server, Condition::Normal);
    }
    async fn stop(&mut self, server: usize) {
        self.servers[server].kill();
    }
    async fn start(&mut self, server: usize) {
        self.servers[server].run().await;
    }
}

fn others(server: usize) -> impl Iterator<Item = usize> {
    (0..3).filter(move |other| *other != server)
}

macro_rules! both {
    ($($name:ident),+ $(,)?) => {
        mod model {
            $(#[test]
            fn $name() {
                super::super::with_model(3, async |model| super::$name(super::ImitatedServers(model)).await);
            })+
        }
        mod real {
            $(#[test]
            fn $name() {
                super::super::with_servers(async || super::$name(super::RealServers::new().await).await);
            })+
        }
    };
}

both!(
    messages_cross_from_one_server_to_another,
    a_bucket_outlives_each_server,
    a_server_that_was_cut_off_has_written_nothing,
    messages_between_parted_servers_are_late_or_lost,
);

fn config() -> BucketConfig {
    BucketConfig {
        replicas: 3,
        ..super::config()
    }
}

/// Writes a value, as a node does: reads after a failure, and compares.
async fn write<B: Bucket>(bucket: &B, text: &str) -> Revision {
    eventually("a write", async || {
        let entry = bucket.get("1").await.ok()?;
        if entry.value == value(text) {
            return Some(entry.revision);
        }
        bucket.write("1", value(text), entry.revision).await.ok()
    })
    .await
}

async fn reads<B: Bucket>(bucket: &B, expected: &Entry) {
    eventually("a read", async || {
        let entry = bucket.get("1").await;
        (entry.as_ref() == Ok(expected)).then_some(())
    })
    .await;
}

async fn messages_cross_from_one_server_to_another<S: Servers>(mut servers: S) {
    let other = connect(&servers.at(1)).await;
    for stops in [true, false] {
        let link = connect(&servers.at(0)).await;
        let mut subscription = link.subscribe("a".into()).await.unwrap();
        link.round_trip().await.unwrap();
        // The other server learns of the subscription a little later.
        eventually("the first message", async || {
            other.publish(message("a", None, "first")).await.unwrap();
            let next = timeout(Duration::from_millis(50), subscription.next()).await;
            next.is_ok_and(|next| next.is_some()).then_some(())
        })
        .await;
        for number in 0..200_u32 {
            let text = number.to_string();
            other.publish(message("a", None, text)).await.unwrap();
        }
        let mut next = 0;
        while next < 200 {
            let message = subscription.next().await.unwrap();
            if message.payload != "first" {
                assert_eq!(message.payload, next.to_string());
                next += 1;
            }
        }
        if stops {
            servers.stop(0).await;
            assert!(subscription.next().await.is_none());
            servers.start(0).await;
        }
    }
}

async fn a_bucket_outlives_each_server<S: Servers>(mut servers: S) {
    let first = open(&connect(&servers.at(0)).await, &config()).await;
    let mut last = write(&first, "first").await;
    for stopped in 0..3 {
        let other = (stopped + 1) % 3;
        servers.stop(stopped).await;
        let bucket = open(&connect(&servers.at(other)).await, &config()).await;
        assert_eq!(bucket.identity(), first.identity());
        let text = format!("without {stopped}");
        let revision = write(&bucket, &text).await;
        assert!(revision > last);
        last = revision;
        servers.start(stopped).await;
        let bucket = open(&connect(&servers.at(stopped)).await, &config()).await;
        let expected = Entry {
            value: value(&text),
            revision,
        };
        reads(&bucket, &expected).await;
    }
}

async fn a_server_that_was_cut_off_has_written_nothing<S: Servers>(servers: S) {
    let apart = open(&connect(&servers.at(0)).await, &config()).await;
    let other = open(&connect(&servers.at(1)).await, &config()).await;
    let first = write(&other, "first").await;
    let before = Entry {
        value: value("first"),
        revision: first,
    };
    reads(&apart, &before).await;
    servers.part(0);
    let begin = Instant::now();
    let second = write(&other, "second").await;
    // The servers elect another leader first, if theirs was the one that is cut off.
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert!(second > first);
    while begin.elapsed() < Duration::from_secs(15) {
        let written = apart.write("1", value("third"), first).await;
        match written {
            // A leader that is cut off compares with its own earlier writes, which nobody has confirmed.
            Err(
                WriteFailure::Failed(BucketFailure::Unknown | BucketFailure::Refused(_))
                | WriteFailure::Conflict,
            ) => {}
            other => panic!("{other:?}"),
        }
        match apart.get("1").await {
            Ok(read) => assert_eq!(read, before),
            Err(BucketFailure::Unknown | BucketFailure::Refused(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    servers.heal(0);
    let after = Entry {
        value: value("second"),
        revision: second,
    };
    reads(&apart, &after).await;
    let written = apart.write("1", value("third"), first).await;
    assert_eq!(written, Err(WriteFailure::Conflict));
    reads(&other, &after).await;
}

async fn messages_between_parted_servers_are_late_or_lost<S: Servers>(servers: S) {
    let link = connect(&servers.at(0)).await;
    let other = connect(&servers.at(1)).await;
    let mut subscription = link.subscribe("a".into()).await.unwrap();
    link.round_trip().await.unwrap();
    let mut number = 0_u32;
    let mut last = None;
    for is_parted in [false, true, false] {
        if is_parted {
            servers.part(0);
        } else {
            servers.heal(0);
        }
        let begin = Instant::now();
        eventually("what comes", async || {
            number += 1;
            let text = number.to_string();
            other.publish(message("a", None, text)).await.unwrap();
            while let Ok(message) = timeout(Duration::from_millis(50), subscription.next()).await {
                assert!(!is_parted);
                let payload = message.unwrap().payload;
                let came: u32 = std::str::from_utf8(&payload).unwrap().parse().unwrap();
                assert!(last.is_none_or(|last| came > last), "{came} after {last:?}");
                last = Some(came);
                if came == number {
                    return Some(());
                }
            }
            (is_parted && begin.elapsed() > Duration::from_secs(3)).then_some(())
        })
        .await;
    }
}
