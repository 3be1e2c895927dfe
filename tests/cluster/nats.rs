//! A real NATS server, on a port and with a store of its own.

use std::env;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::net::TcpStream;

use super::eventually;

/// The server program, if it is installed: the one that `tests/run` installs, or any other.
pub(crate) fn program() -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.cache/nats/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    [installed]
        .into_iter()
        .chain(env::split_paths(&path))
        .map(|folder| folder.join("nats-server"))
        .find(|program| program.is_file())
}

/// A temporary folder, removed on drop.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("switchboard-cluster-{}-{number}", std::process::id());
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into the folder, and returns its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that cannot be removed stays among the temporary files, which does no harm.
        let _remains = fs::remove_dir_all(&self.0).is_err();
    }
}

/// A server with JetStream.
#[derive(Debug)]
pub(crate) struct Nats {
    pub(crate) port: u16,
    folder: Folder,
    extra: String,
    process: Option<Child>,
}

impl Nats {
    /// Starts a server that accepts every client.
    pub(crate) async fn start() -> Self {
        Self::with("").await
    }

    /// Starts a server with `extra` in its configuration.
    pub(crate) async fn with(extra: &str) -> Self {
        let mut nats = Self::stopped(extra);
        nats.run().await;
        nats
    }

    /// A server that is not started yet.
    pub(crate) fn stopped(extra: &str) -> Self {
        Self {
            port: free_port(),
            folder: Folder::new(),
            extra: extra.to_owned(),
            process: None,
        }
    }

    /// Starts the server with its existing store.
    pub(crate) async fn run(&mut self) {
        assert!(self.process.is_none());
        let store = self.folder.path().join("store");
        let config = format!(
            "listen: \"127.0.0.1:{}\"\njetstream {{ store_dir: {store:?} }}\n{}\n",
            self.port, self.extra
        );
        let config = self.folder.file("nats.conf", &config);
        let log = File::create(self.folder.path().join("log")).unwrap();
        let mut command =
            Command::new(program().expect("the tests run only if nats-server is installed"));
        command.arg("--config").arg(config).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(command.spawn().unwrap());
        eventually("nats listens", async || {
            let exited = self.process.as_mut().unwrap().try_wait().unwrap();
            assert!(exited.is_none(), "nats ended: {}", self.log());
            TcpStream::connect(("127.0.0.1", self.port)).await.ok()
        })
        .await;
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills the server.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("the server runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Stops the server with SIGTERM.
    pub(crate) fn stop(&mut self) {
        let mut process = self.process.take().expect("the server runs");
        signal(&process, "TERM");
        process.wait().unwrap();
    }

    /// Removes the store of a stopped server.
    pub(crate) fn forget(&mut self) {
        assert!(self.process.is_none());
        fs::remove_dir_all(self.folder.path().join("store")).unwrap();
    }

    /// The log of the server.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // `kill` fails if the server has ended already.
            let _ended = process.kill().is_err();
            process.wait().unwrap();
        }
    }
}

/// A port that is free now. Another process can take it before the caller does, but that is unlikely.
pub(crate) fn free_port() -> u16 {
    loop {
        // Below the ports that the kernel gives to connections and to listeners on port 0: one of these could take the
        // port before its owner listens.
        let port = fastrand::u16(10_000..32_768);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Sends a signal to a process. The caller has not waited for it yet, so its id is still valid.
pub(crate) fn signal(process: &Child, name: &str) {
    let id = process.id().to_string();
    let sent = Command::new("kill").args(["-s", name, &id]).status();
    assert!(sent.unwrap().success(), "kill -s {name}");
}
