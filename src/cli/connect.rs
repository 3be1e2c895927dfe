//! `switchboard connect`: a user of a relay, by hand on a terminal and by JSON lines in a pipe.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::{ArgMatches, Command, value_parser};
use http_body_util::Full;
use hyper::header::{
    AUTHORIZATION, CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::http::Error;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_tungstenite::HyperWebsocketStream;
use hyper_tungstenite::tungstenite::handshake::client::generate_key;
use hyper_tungstenite::tungstenite::handshake::derive_accept_key;
use hyper_tungstenite::tungstenite::protocol::Role;
use hyper_util::rt::TokioIo;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use super::conversation::{Conversation, ConversationError, InputSender, Interface};
use super::endpoint::{self, EndpointError, Listener};
use super::lines::FrameLines;
use super::options::{self, Options, option, path, positional, text};
use super::terminal::Terminal;
use crate::auth::{self, IssueError};
use crate::config::{AuthMode, Settings};
use crate::net::backoff::Backoff;
use crate::net::http_client::Limits;
use crate::protocol::{SUBPROTOCOL, close_code};

/// How long a handshake may take, and the largest refusal that is read.
const LIMITS: Limits = Limits {
    timeout: Duration::from_secs(10),
    body_bytes_max: 64 * 1024,
};

/// The limit of the random wait before an attempt to connect again. Each failure doubles it.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// After a connection of this length, the limit of the wait is the minimum again.
const STEADY: Duration = Duration::from_secs(5);

/// Close codes after which another connection would end in the same way, or end the one that has the id now.
const FINAL_CODES: [u16; 6] = [
    close_code::PROTOCOL,
    close_code::INVALID,
    close_code::POLICY,
    close_code::SIZE,
    close_code::TAKEN_OVER,
    close_code::REMOVED,
];

/// The lifetime of a token that is signed here.
const TOKEN_LIFETIME: Duration = Duration::from_hours(1);

pub(super) fn command() -> Command {
    let url = positional(
        "URL",
        "The relay, such as `ws://127.0.0.1:8080/` [default: the first of `server.listen`]",
    );
    let token = option("token", "TOKEN", "A token for a relay that requires one");
    let key_file = option(
        "key-file",
        "FILE",
        "Sign a token by this shared secret or private key in PEM [default: without a URL, the first \
         `auth.secret_file`]",
    );
    let subject = option("subject", "NAME", "The subject of that token");
    let about = "Talk to a relay as a user: by hand on a terminal, by JSON lines in a pipe";
    options::command("connect", about, Options::arguments()).args([
        url.value_parser(|text: &str| endpoint::url(text, ["ws", "wss"])),
        token.conflicts_with("key-file"),
        key_file.value_parser(value_parser!(PathBuf)),
        subject.default_value("terminal").conflicts_with("token"),
    ])
}

/// The options of `connect`.
#[derive(Debug)]
pub struct ConnectOptions {
    url: Option<Uri>,
    token: Option<String>,
    key_file: Option<PathBuf>,
    subject: String,
}

/// Why there is no conversation, or why it ends.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The token cannot be signed.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The token cannot be in a header.
    #[error("invalid token: more than one line of visible ASCII")]
    Token(#[source] Error),
    /// The relay cannot be asked.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The relay refuses the handshake.
    #[error("{url} refuses the connection: {status}{reason}{}", hint(*.status))]
    Refused {
        /// What was asked for.
        url: Uri,
        /// The status.
        status: StatusCode,
        /// What the relay says of it.
        reason: String,
    },
    /// The server upgrades to something else.
    #[error("{0} is no relay of Switchboard: it does not speak {SUBPROTOCOL}")]
    OtherProtocol(Uri),
    /// The conversation fails.
    #[error("{url}: {source}")]
    Conversation {
        /// The relay.
        url: Uri,
        /// What goes wrong.
        source: ConversationError,
    },
    /// A signal would leave the terminal in the editor's mode.
    #[error("cannot catch signals")]
    Signals(#[source] io::Error),
}

fn hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => " (--token or --key-file gives a token)",
        _ => "",
    }
}

impl ConnectOptions {
    /// The options that the command was given.
    pub fn of(matches: &ArgMatches) -> Self {
        Self {
            url: matches.get_one("URL").cloned(),
            token: text(matches, "token"),
            key_file: path(matches, "key-file"),
            subject: text(matches, "subject").expect("the argument has a default"),
        }
    }

    /// Talks until the input ends, or the connection for good. Returns the exit code: 0 if all went well, which in a
    /// pipe includes that every message with an id was delivered; 128 + its number after a signal on a terminal.
    pub async fn talk(&self, settings: &Settings) -> Result<u8, ConnectError> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            let all_delivered = self.converse(settings, FrameLines::start).await?;
            return Ok(u8::from(!all_delivered));
        }
        // A signal that is not caught ends the process in the editor's mode of the terminal.
        tokio::select! {
            number = signalled() => number.map(|number| 128 + number).map_err(ConnectError::Signals),
            talked = self.converse(settings, Terminal::start) => talked.map(|_| 0),
        }
    }

    /// Talks over one connection after the other. Returns whether every message with an id was delivered.
    async fn converse(
        &self,
        settings: &Settings,
        start: fn(InputSender) -> Box<dyn Interface>,
    ) -> Result<bool, ConnectError> {
        let (mut url, mut socket) = self.open(settings, None).await?;
        let mut conversation = Conversation::start(start);
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        loop {
            let opened_at = Instant::now();
            let source = match conversation.hold(socket).await {
                Ok(all_delivered) => return Ok(all_delivered),
                Err(source) => source,
            };
            let asked = conversation.reconnect_after();
            if asked.is_some() || opened_at.elapsed() >= STEADY {
                backoff.reset();
            }
            let wait = asked.unwrap_or_else(|| backoff.next());
            let notice = format!("{source}; connecting again in {wait:.1?}, lines wait until then");
            let lost = ConnectError::Conversation { url, source };
            let again = if self.is_final(&lost) {
                None
            } else {
                let ticket = conversation.ticket();
                let attempts = self.open_again(settings, ticket, wait, &mut backoff);
                conversation.between(&notice, attempts).await
            };
            match again.unwrap_or(Err(lost)) {
                Ok(opened) => (url, socket) = opened,
                Err(error) => {
                    // Where the output fails, too, the first error says more.
                    drop(conversation.end());
                    return Err(error);
                }
            }
        }
    }

    /// Connects again, as the JavaScript client does: with the last ticket, and after random waits that grow.
    async fn open_again(
        &self,
        settings: &Settings,
        ticket: Option<String>,
        mut wait: Duration,
        backoff: &mut Backoff,
    ) -> Result<(Uri, HyperWebsocketStream), ConnectError> {
        loop {
            sleep(wait).await;
            match self.open(settings, ticket.as_deref()).await {
                Err(error) if !self.is_final(&error) => wait = backoff.next(),
                opened => return opened,
            }
        }
    }

    /// Whether another attempt would end in the same way.
    fn is_final(&self, error: &ConnectError) -> bool {
        match error {
            ConnectError::Refused { status, .. } => {
                matches!(*status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            }
            ConnectError::Conversation { source, .. } => match source {
                // A token that is signed here is a new one for each attempt.
                ConversationError::Closed { code, .. } if *code == close_code::EXPIRED => {
                    self.token.is_some()
                }
                ConversationError::Closed { code, .. } => FINAL_CODES.contains(code),
                ConversationError::Input(_) | ConversationError::Output(_) => true,
                ConversationError::Socket(_) | ConversationError::Silent(_) => false,
            },
            ConnectError::Endpoint(_) | ConnectError::OtherProtocol(_) => false,
            ConnectError::Issue(_) | ConnectError::Token(_) | ConnectError::Signals(_) => true,
        }
    }

    /// Makes the handshake.
    async fn open(
        &self,
        settings: &Settings,
        ticket: Option<&str>,
    ) -> Result<(Uri, HyperWebsocketStream), ConnectError> {
        let endpoint = match &self.url {
            Some(url) => Listener::named(url, LIMITS),
            None => Listener::users(settings, LIMITS),
        };
        let endpoint = endpoint.map_err(EndpointError::from)?;
        let path = self.url.as_ref().and_then(Uri::path_and_query);
        let url = endpoint.url(path.map_or("/", |path| path.as_str()));
        let key = generate_key();
        let mut request = Request::builder()
            .uri(&url)
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key)
            .header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
        if let Some(token) = self.token(settings)? {
            let header = HeaderValue::try_from(format!("Bearer {token}")).map_err(Error::from);
            let mut header = header.map_err(ConnectError::Token)?;
            header.set_sensitive(true);
            request = request.header(AUTHORIZATION, header);
        }
        if let Some(ticket) = ticket {
            request = request.header("x-ticket", ticket);
        }
        let request = request.body(Full::default()).map_err(ConnectError::Token)?;
        let asked = endpoint.client.ask(request).await;
        let (response, upgraded) = asked.map_err(EndpointError::from)?;
        let Some(upgraded) = upgraded else {
            let status = response.status();
            let reason = reason(&response);
            return Err(ConnectError::Refused {
                url,
                status,
                reason,
            });
        };
        let header = |name| response.headers().get(name).map(HeaderValue::as_bytes);
        let accept = derive_accept_key(key.as_bytes());
        if header(SEC_WEBSOCKET_ACCEPT) != Some(accept.as_bytes())
            || header(SEC_WEBSOCKET_PROTOCOL) != Some(SUBPROTOCOL.as_bytes())
        {
            return Err(ConnectError::OtherProtocol(url));
        }
        let io = TokioIo::new(upgraded);
        let socket = HyperWebsocketStream::from_raw_socket(io, Role::Client, None).await;
        Ok((url, socket))
    }

    /// The token as given, or one that is signed here: by --key-file, or for the relay of the settings by its secret.
    fn token(&self, settings: &Settings) -> Result<Option<String>, IssueError> {
        let auth = &settings.auth;
        let has_secret = auth.mode == AuthMode::Jwt && !auth.secret_file.is_empty();
        if self.token.is_none() && (self.key_file.is_some() || (self.url.is_none() && has_secret)) {
            let key_file = self.key_file.as_deref();
            return auth::issue_from(auth, key_file, &self.subject, TOKEN_LIFETIME).map(Some);
        }
        Ok(self.token.clone())
    }
}

/// Waits for a signal that ends the program. Returns its number. The editor itself takes SIGINT, as Ctrl-C.
async fn signalled() -> io::Result<u8> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let kind = tokio::select! {
        _ = hangup.recv() => SignalKind::hangup(),
        _ = terminate.recv() => SignalKind::terminate(),
    };
    Ok(u8::try_from(kind.as_raw_value()).expect("signal numbers end at 64"))
}

/// The first line of a refusal.
fn reason(refusal: &Response<Bytes>) -> String {
    let text = String::from_utf8_lossy(refusal.body());
    match text.lines().next() {
        Some(line) if !line.is_empty() => format!(": {}", super::readable::printable(line)),
        _ => String::new(),
    }
}
