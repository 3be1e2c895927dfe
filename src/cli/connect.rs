//! `switchboard connect`: a user of a relay, by hand on a terminal and by JSON lines in a pipe.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
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

use super::conversation::{self, ConversationEnd, ConversationError};
use super::endpoint::{self, EndpointError, Listener};
use super::lines::FrameLines;
use super::options::Options;
use super::terminal::Terminal;
use crate::auth::{self, IssueError};
use crate::config::{AuthMode, Settings};
use crate::net::http_client::Limits;
use crate::protocol::SUBPROTOCOL;

/// How long a handshake may take, and the largest refusal that is read.
const LIMITS: Limits = Limits {
    timeout: Duration::from_secs(10),
    body_bytes_max: 64 * 1024,
};

/// The lifetime of a token that is signed here.
const TOKEN_LIFETIME: Duration = Duration::from_hours(1);

/// The options of `connect`.
#[derive(Debug, Args)]
pub struct ConnectOptions {
    /// Options after the verb.
    #[command(flatten)]
    pub options: Options,
    /// The relay, such as `ws://127.0.0.1:8080/` [default: the first of `server.listen`]
    #[arg(value_parser = |text: &str| endpoint::url(text, ["ws", "wss"]))]
    url: Option<Uri>,
    /// A token for a relay that requires one
    #[arg(long, conflicts_with = "key_file")]
    token: Option<String>,
    /// Sign a token by this shared secret or private key in PEM [default: without a URL, the first
    /// `auth.secret_file`]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The subject of that token
    #[arg(
        long,
        value_name = "NAME",
        default_value = "terminal",
        conflicts_with = "token"
    )]
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
}

fn hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => " (--token or --key-file gives a token)",
        _ => "",
    }
}

impl ConnectOptions {
    /// Talks until the input or the connection ends. Returns whether all went well: the relay did not end it, and on a
    /// pipe every message with an id was delivered.
    pub async fn talk(&self, settings: &Settings) -> Result<bool, ConnectError> {
        let (url, socket) = self.open(settings).await?;
        let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        let ending = if is_terminal {
            conversation::run(socket, Terminal::start).await
        } else {
            conversation::run(socket, FrameLines::start).await
        };
        match ending {
            Ok(ConversationEnd { all_delivered }) => Ok(all_delivered || is_terminal),
            Err(source) => Err(ConnectError::Conversation { url, source }),
        }
    }

    /// Makes the handshake.
    async fn open(&self, settings: &Settings) -> Result<(Uri, HyperWebsocketStream), ConnectError> {
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

/// The first line of a refusal.
fn reason(refusal: &Response<Bytes>) -> String {
    let text = String::from_utf8_lossy(refusal.body());
    match text.lines().next() {
        Some(line) if !line.is_empty() => format!(": {}", super::readable::printable(line)),
        _ => String::new(),
    }
}
