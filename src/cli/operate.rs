//! The commands of operators: `send`, `users`, `status`, `drain` and `log-filter`, each a request to the API.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::builder::PossibleValue;
use clap::{Arg, ArgMatches, Command, value_parser};
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::http::Error;
use hyper::{Method, Request, StatusCode, Uri};
use serde_json::{Value, json};

use super::endpoint::{self, EndpointError, Listener};
use super::options::{Options, command, option, path, positional, text};
use super::readable::{printable, readable};
use crate::config::{Secret, SecretError, SecretFileError, Settings};
use crate::identity::UserId;
use crate::net::http_client::Limits;

/// The relay waits for an outcome for `admin.outcome_timeout`, at most a minute. A list of users is the largest answer.
const LIMITS: Limits = Limits {
    timeout: Duration::from_secs(65),
    body_bytes_max: 4 * 1024 * 1024,
};

/// The commands of operators.
pub(super) fn commands() -> [Command; 5] {
    let to = option("to", "ID", "The recipient").required(true);
    let from = option(
        "from",
        "ID",
        "The sender that the recipient sees; 0 is the system",
    );
    let id = positional("ID", "The user; none: the first users by --sort");
    let sort = option("sort", "SORT", "The order, largest first");
    let limit = option("limit", "LIMIT", "The most users");
    let spread = option(
        "spread",
        "DURATION",
        "Time over which users are disconnected, such as 30s [default: `drain.spread`]",
    );
    let [to, id, from] = [(to, 1), (id, 1), (from, 0)]
        .map(|(user, least)| user.value_parser(value_parser!(u64).range(least..=UserId::MAX)));
    [
        with_api(
            "send",
            "Send a message as an operator and print its outcome: exit code 0 if it was delivered, else 1",
            vec![
                to,
                from.default_value("0"),
                positional("MESSAGE", "The text").required(true),
            ],
        ),
        with_api(
            "users",
            "List the users of a node, or show one",
            vec![
                id,
                sort.default_value("queue")
                    .conflicts_with("ID")
                    .value_parser([
                        PossibleValue::new("queue").help("Most queued bytes first"),
                        PossibleValue::new("rate").help("Most messages a second first"),
                    ]),
                limit
                    .default_value("20")
                    .conflicts_with("ID")
                    .value_parser(value_parser!(u64).range(1..=1000)),
            ],
        ),
        with_api(
            "status",
            "Show the status of a node: its users, its ledger, its drain, its link to other nodes",
            Vec::new(),
        ),
        with_api("drain", "Drain a node, as SIGTERM does", vec![spread]),
        with_api(
            "log-filter",
            "Print what a node logs, or change it until the node ends",
            vec![positional(
                "FILTER",
                "A filter such as `info,switchboard=debug`",
            )],
        ),
    ]
}

/// A command with the options that name the API.
fn with_api(name: &'static str, about: &'static str, arguments: Vec<Arg>) -> Command {
    let url = option(
        "url",
        "URL",
        "The URL of the API, such as `http://127.0.0.1:9090` [default: `admin.listen`]",
    );
    let token_file = option(
        "token-file",
        "FILE",
        "A file with the token of operators [default: `admin.token_file`]",
    );
    command(name, about, arguments)
        .args(Options::arguments())
        .arg(url.value_parser(|text: &str| endpoint::url(text, ["http", "https"])))
        .arg(token_file.value_parser(value_parser!(PathBuf)))
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

/// Asks the relay what this command says.
pub async fn ask_api(
    command: &str,
    matches: &ArgMatches,
    settings: &Settings,
) -> Result<ApiAnswer, OperateError> {
    let endpoint = match matches.get_one("url") {
        Some(url) => Some(Listener::named(url, LIMITS)),
        None => Listener::admin(settings, LIMITS).transpose(),
    };
    let endpoint = endpoint.ok_or(OperateError::NoAddress)?;
    let endpoint = endpoint.map_err(EndpointError::from)?;
    let (method, path, body) = request(command, matches);
    let url = endpoint.url(&path);
    let mut request = Request::builder()
        .method(method)
        .uri(&url)
        .header(CONNECTION, "close");
    if let Some(token) = token(matches, settings)? {
        let mut header =
            HeaderValue::from_bytes(&[b"Bearer ", token.expose()].concat()).map_err(Error::from)?;
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
    let asked = endpoint.client.ask(request).await;
    let (answer, _) = asked.map_err(EndpointError::from)?;
    let (status, text) = (answer.status(), answer.into_body());
    let json = serde_json::from_slice::<Value>(&text);
    if !status.is_success() {
        let detail = json
            .ok()
            .and_then(|problem| Some(printable(problem.get("detail")?.as_str()?)));
        // The listener for users has no such path.
        let detail = detail
            .unwrap_or_else(|| "no API (it is on admin.listen, with admin.token_file)".to_owned());
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
fn request(command: &str, matches: &ArgMatches) -> (Method, String, Option<Value>) {
    let number = |name: &str| matches.get_one::<u64>(name).copied();
    match command {
        "send" => {
            let (to, from, message) = (number("to"), number("from"), text(matches, "MESSAGE"));
            let body = json!({"recipient_id": to, "sender_id": from, "message": message});
            (Method::POST, "/api/messages".to_owned(), Some(body))
        }
        "users" => {
            let path = match (number("ID"), text(matches, "sort"), number("limit")) {
                (None, Some(sort), Some(limit)) => format!("/api/users?sort={sort}&limit={limit}"),
                (id, ..) => format!("/api/users/{}", id.unwrap_or_default()),
            };
            (Method::GET, path, None)
        }
        "drain" => {
            let body = text(matches, "spread").map(|spread| json!({"spread": spread}));
            (Method::POST, "/api/drain".to_owned(), body)
        }
        "log-filter" => {
            let body = text(matches, "FILTER").map(|filter| json!({"filter": filter}));
            let method = match body {
                Some(_) => Method::PUT,
                None => Method::GET,
            };
            (method, "/api/log-filter".to_owned(), body)
        }
        _ => (Method::GET, format!("/api/{command}"), None),
    }
}

fn token(matches: &ArgMatches, settings: &Settings) -> Result<Option<Secret>, OperateError> {
    let Some(path) = path(matches, "token-file") else {
        return Ok(settings.admin.operator_token()?);
    };
    match Secret::read(&path) {
        Ok(token) => Ok(Some(token)),
        Err(error) => Err(OperateError::TokenFile(path, error)),
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
