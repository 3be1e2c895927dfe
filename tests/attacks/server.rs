//! The relay process. Each attack has its own.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// The time limit of a health check.
const PROBE_MAX: Duration = Duration::from_secs(5);

/// A running relay; Drop kills it.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) users: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// A free address.
pub(crate) fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port exists");
    listener
        .local_addr()
        .expect("a bound listener has an address")
}

impl Server {
    /// Starts a relay with these settings, and with a limit of file descriptors and a core if they are given. Users
    /// can come by IPv4 and by IPv6, as by default.
    pub(crate) async fn start(
        program: &Path,
        variables: &[(&str, String)],
        files: Option<u32>,
        core: Option<usize>,
    ) -> Self {
        let (users, admin) = (free(), free());
        let listen = format!("{users},[::1]:{}", users.port());
        let limit = files.map_or(String::new(), |files| format!("ulimit -n {files}; "));
        let pin = core.map_or(String::new(), |core| format!("taskset -c {core} "));
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("{limit}exec {pin}{}", program.display())])
            .env("SWITCHBOARD__SERVER__LISTEN", listen)
            .env("SWITCHBOARD__ADMIN__LISTEN", admin.to_string())
            .env("SWITCHBOARD__LOG__FILTER", "error")
            // The rates of docker-compose.yml.
            .env("SWITCHBOARD__LIMITS__MESSAGE_RATE", "1000")
            .env("SWITCHBOARD__LIMITS__BYTE_RATE", "4MiB")
            .env("SWITCHBOARD__LIMITS__ACCEPT_RATE", "5000")
            .env("SWITCHBOARD__LIMITS__HANDSHAKE_RATE", "1000")
            .stdout(Stdio::null());
        for (key, value) in variables {
            command.env(format!("SWITCHBOARD__{key}"), value);
        }
        let child = command.spawn().expect("the relay starts");
        let server = Self {
            child,
            users,
            admin,
        };
        while Self::get(admin, "/readyz")
            .await
            .is_none_or(|text| !text.starts_with("HTTP/1.1 200"))
        {
            sleep(Duration::from_millis(10)).await;
        }
        server
    }

    /// The time that health checks take now, on the admin listener and, if it has no TLS, on that of the users.
    pub(crate) async fn probe(&self, is_plain: bool) -> Duration {
        let begin = Instant::now();
        let listeners = [self.admin, self.users];
        for &listener in &listeners[..=usize::from(is_plain)] {
            let answer = timeout(PROBE_MAX, Self::get(listener, "/livez")).await;
            if !matches!(answer, Ok(Some(text)) if text.starts_with("HTTP/1.1 ")) {
                return PROBE_MAX;
            }
        }
        begin.elapsed()
    }

    async fn get(listener: SocketAddr, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(listener).await.ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    }

    /// The series of `/metrics` with integer values, without the prefix `switchboard_`.
    pub(crate) async fn metrics(&self) -> BTreeMap<String, i64> {
        let text = Self::get(self.admin, "/metrics")
            .await
            .expect("the relay serves its metrics");
        let series = text.lines().filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((
                name.strip_prefix("switchboard_")?.to_owned(),
                value.parse().ok()?,
            ))
        });
        series.collect()
    }

    /// Resident memory, in MiB.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/statm", self.child.id()));
        let status = status.expect("the relay runs");
        let pages = status
            .split(' ')
            .nth(1)
            .and_then(|pages| pages.parse::<u64>().ok());
        pages.expect("statm has a number of pages") / 256
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail if the relay has ended already; Drop has nothing more to do then.
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}
