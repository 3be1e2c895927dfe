//! The commands of operators: `send`, `users`, `status`, `drain` and `log-filter`, each a request to the API.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum, value_parser};
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::http::Error;
use hyper::{Method, Request, StatusCode, Uri};
use serde_json::{Value, json};

use super::endpoint::{self, EndpointError, Listener};
use super::options::Options;
use super::readable::{printable, readable};
use crate::config::{Secret, SecretError, SecretFileError, Settings};
use crate::identity::UserId;
use crate::net::http_client::Limits;

/// The relay waits for an outcome for `admin.outcome_timeout`, at most a minute. A list of users is the largest answer.
const LIMITS: Limits = Limits {
    timeout: Duration::from_secs(65),
    body_bytes_max: 4 * 1024 * 1024,
};

/// The commands, each with its own options.
#[derive(Debug, Subcommand)]
pub enum Operation {
    /// Send a message as an operator and print its outcome: exit code 0 if it was delivered, else 1
    Send {
        /// The recipient
        #[arg(long, value_name = "ID", value_parser = value_parser!(u64).range(1..=UserId::MAX))]
        to: u64,
        /// The sender that the recipient sees; 0 is the system
        #[arg(long, value_name = "ID", default_value_t = 0, value_parser = value_parser!(u64).range(0..=UserId::MAX))]
        from: u64,
        /// The text
        message: String,
        /// Where the API is.
        #[command(flatten)]
        api: ApiOptions,
    },
    /// List the users of a node, or show one
    Users {
        /// The user; none: the first users by --sort
        #[arg(value_parser = value_parser!(u64).range(1..=UserId::MAX))]
        id: Option<u64>,
        /// The order, largest first
        #[arg(long, default_value = "queue", conflicts_with = "id")]
        sort: Sort,
        /// The most users
        #[arg(long, default_value_t = 20, conflicts_with = "id", value_parser = value_parser!(u16).range(1..=1000))]
        limit: u16,
        /// Where the API is.
        #[command(flatten)]
        api: ApiOptions,
    },
    /// Show the status of a node: its users, its ledger, its drain, its link to other nodes
    Status {
        /// Where the API is.
        #[command(flatten)]
        api: ApiOptions,
    },
    /// Drain a node, as SIGTERM does
    Drain {
        /// Time over which users are disconnected, such as 30s [default: `drain.spread`]
        #[arg(long, value_name = "DURATION")]
        spread: Option<String>,
        /// Where the API is.
        #[command(flatten)]
        api: ApiOptions,
    },
    /// Print what a node logs, or change it until the node ends
    LogFilter {
        /// A filter such as `info,switchboard=debug`
        filter: Option<String>,
        /// Where the API is.
        #[command(flatten)]
        api: ApiOptions,
    },
}

/// The order of users.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Sort {
    /// Most queued bytes first
    Queue,
    /// Most messages a second first
    Rate,
}

/// Where the API is, and the token for it.
#[derive(Debug, Args)]
pub struct ApiOptions {
    /// Options after the verb.
    #[command(flatten)]
    pub options: Options,
    /// The URL of the API, such as `http://127.0.0.1:9090` [default: `admin.listen`]
    #[arg(long, value_name = "URL", value_parser = |text: &str| endpoint::url(text, ["http", "https"]))]
    url: Option<Uri>,
    /// A file with the token of operators [default: `admin.token_file`]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Why there is no answer to an operator.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// Nothing says where the API is.
    #[error("no address of the API: name a configuration with admin.listen (-c), or a URL (--url)")]
    NoAddress,
    /// The relay cannot be asked.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The file of `admin.token_file` cannot be used.
    #[error(transparent)]
    Setting(#[from] SecretFileError),
    /// The file of `--token-file` cannot be used.
    #[error("{} (--token-file)", .0.display())]
    TokenFile(PathBuf, #[source] SecretError),
    /// The text cannot be part of a request.
    #[error("a token of one line of visible ASCII is needed")]
    Request(#[from] Error),
    /// The relay refuses.
    #[error("{url} answers {status}: {detail}")]
    Refused {
        /// What was asked for.
        url: Uri,
        /// The status.
        status: StatusCode,
        /// The reason that the relay gives.
        detail: String,
    },
    /// What answers is no API of Switchboard.
    #[error("{0} answers something else than JSON: is it the API of a Switchboard?")]
    NotJson(Uri),
}

/// The answer to an operator.
#[derive(Debug)]
pub struct ApiAnswer {
    json: Value,
    text: Bytes,
}

impl Operation {
    /// The options of the command.
    pub fn api(&self) -> &ApiOptions {
        match self {
            Self::Send { api, .. }
            | Self::Users { api, .. }
            | Self::Status { api }
            | Self::Drain { api, .. }
            | Self::LogFilter { api, .. } => api,
        }
    }

    /// Asks the relay.
    pub async fn ask(&self, settings: &Settings) -> Result<ApiAnswer, OperateError> {
        let api = self.api();
        let endpoint = match &api.url {
            Some(url) => Some(Listener::named(url, LIMITS)),
            None => Listener::admin(settings, LIMITS).transpose(),
        };
        let endpoint = endpoint.ok_or(OperateError::NoAddress)?;
        let endpoint = endpoint.map_err(EndpointError::from)?;
        let (method, path, body) = self.request();
        let url = endpoint.url(&path);
        let mut request = Request::builder()
            .method(method)
            .uri(&url)
            .header(CONNECTION, "close");
        if let Some(token) = api.token(settings)? {
            let mut header = HeaderValue::from_bytes(&[b"Bearer ", token.expose()].concat())
                .map_err(Error::from)?;
            header.set_sensitive(true);
            request = request.header(AUTHORIZATION, header);
        }
        let body = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                body.to_string()
            }
            None => String::new(),
        };
        let request = request.body(Full::from(body))?;
        let (answer, _) = endpoint
            .client
            .ask(request)
            .await
            .map_err(EndpointError::from)?;
        let (status, text) = (answer.status(), answer.into_body());
        let json = serde_json::from_slice::<Value>(&text);
        if !status.is_success() {
            let detail = json
                .ok()
                .and_then(|problem| Some(printable(problem.get("detail")?.as_str()?)));
            // The listener for users has no such path.
            let detail = detail.unwrap_or_else(|| {
                "no API (it is on admin.listen, with admin.token_file)".to_owned()
            });
            return Err(OperateError::Refused {
                url,
                status,
                detail,
            });
        }
        let json = json.map_err(|_| OperateError::NotJson(url))?;
        Ok(ApiAnswer { json, text })
    }

    /// The method, the path and the body of the request.
    fn request(&self) -> (Method, String, Option<Value>) {
        match self {
            Self::Send {
                to, from, message, ..
            } => {
                let body = json!({"recipient_id": to, "sender_id": from, "message": message});
                (Method::POST, "/api/messages".to_owned(), Some(body))
            }
            Self::Users { id: Some(id), .. } => (Method::GET, format!("/api/users/{id}"), None),
            Self::Users { sort, limit, .. } => {
                let sort = match sort {
                    Sort::Queue => "queue",
                    Sort::Rate => "rate",
                };
                (
                    Method::GET,
                    format!("/api/users?sort={sort}&limit={limit}"),
                    None,
                )
            }
            Self::Status { .. } => (Method::GET, "/api/status".to_owned(), None),
            Self::Drain { spread, .. } => {
                let body = spread.as_ref().map(|spread| json!({"spread": spread}));
                (Method::POST, "/api/drain".to_owned(), body)
            }
            Self::LogFilter { filter, .. } => {
                let body = filter.as_ref().map(|filter| json!({"filter": filter}));
                let method = if body.is_some() {
                    Method::PUT
                } else {
                    Method::GET
                };
                (method, "/api/log-filter".to_owned(), body)
            }
        }
    }
}

impl ApiOptions {
    fn token(&self, settings: &Settings) -> Result<Option<Secret>, OperateError> {
        let Some(path) = &self.token_file else {
            return Ok(settings.admin.operator_token()?);
        };
        let token = Secret::read(path);
        token
            .map(Some)
            .map_err(|error| OperateError::TokenFile(path.clone(), error))
    }
}

impl ApiAnswer {
    /// Writes the answer: readable on a terminal, else as JSON in one line.
    pub fn write(&self, out: &mut dyn io::Write, is_terminal: bool) -> io::Result<()> {
        if !is_terminal {
            out.write_all(&self.text)?;
            return out.write_all(b"\n");
        }
        out.write_all(readable(&self.json).as_bytes())
    }

    /// Whether a message was delivered, or the request was no message.
    pub fn is_success(&self) -> bool {
        self.json
            .get("status")
            .is_none_or(|status| status == "delivered")
    }
}
