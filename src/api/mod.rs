//! The API for operators: JSON requests about users, messages and the node. The caller has checked the
//! operator's token. The handlers ask the relay and keep no copy of its state.

mod control;
mod messages;
mod problem;
mod request;
mod response;
mod state;
mod status;
mod users;

use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};

use crate::config::Settings;
pub(crate) use problem::ProblemDetails;
use response::{ApiResponse, response};
pub use state::ApiDependencies;
use state::ApiState;

/// The description of the API, as `/api/openapi.yaml` serves it.
pub const OPENAPI: &str = include_str!("openapi.yaml");

/// The API of one relay.
#[derive(Debug)]
pub struct Api {
    state: ApiState,
}

/// The methods of a resource.
struct Allowed {
    methods: &'static [Method],
    /// The same as a header lists them.
    header: &'static str,
}

const GET: Allowed = Allowed {
    methods: &[Method::GET, Method::HEAD],
    header: "GET, HEAD",
};
const GET_OR_DELETE: Allowed = Allowed {
    methods: &[Method::GET, Method::HEAD, Method::DELETE],
    header: "GET, HEAD, DELETE",
};
const POST: Allowed = Allowed {
    methods: &[Method::POST],
    header: "POST",
};
const GET_OR_PUT: Allowed = Allowed {
    methods: &[Method::GET, Method::HEAD, Method::PUT],
    header: "GET, HEAD, PUT",
};

impl Api {
    /// The API of a relay. `port` tells this node from others on the same host.
    pub fn new(settings: &Settings, port: u16, dependencies: ApiDependencies) -> Self {
        Self {
            state: ApiState::new(settings, port, dependencies),
        }
    }

    /// Whether a path belongs to the API.
    pub(crate) fn has(path: &str) -> bool {
        path == "/api" || path.starts_with("/api/")
    }

    /// Responds to an operator's request.
    pub(crate) async fn respond(&self, request: Request<Incoming>) -> ApiResponse {
        let done = self.route(request).await;
        done.unwrap_or_else(|problem| problem.response())
    }

    async fn route(&self, request: Request<Incoming>) -> Result<ApiResponse, ProblemDetails> {
        let state = &self.state;
        let (parts, body) = request.into_parts();
        let query = parts.uri.query();
        match parts.uri.path().strip_prefix("/api/").unwrap_or_default() {
            "openapi.yaml" => {
                GET.check(&parts)?;
                let [] = request::query(query, [])?;
                Ok(response(StatusCode::OK, "application/yaml", OPENAPI))
            }
            "status" => {
                GET.check(&parts)?;
                let [] = request::query(query, [])?;
                status::get(state).await
            }
            "messages" => {
                POST.check(&parts)?;
                messages::post(state, &parts, body).await
            }
            "users" => {
                GET.check(&parts)?;
                users::list(state, query).await
            }
            "drain" => {
                POST.check(&parts)?;
                control::drain(state, &parts, body).await
            }
            "log-filter" => {
                GET_OR_PUT.check(&parts)?;
                if parts.method == Method::PUT {
                    control::filter_logs(state, &parts, body).await
                } else {
                    control::log_filter(state, query)
                }
            }
            path => {
                let id = path.strip_prefix("users/").filter(|id| !id.contains('/'));
                let id = id.ok_or_else(ProblemDetails::not_found)?;
                GET_OR_DELETE.check(&parts)?;
                let id = request::user(id, "id")?;
                if parts.method == Method::DELETE {
                    users::remove(state, id, query)
                } else {
                    users::get(state, id, query)
                }
            }
        }
    }
}

impl Allowed {
    /// Refuses other methods than these.
    fn check(&self, parts: &Parts) -> Result<(), ProblemDetails> {
        if self.methods.contains(&parts.method) {
            Ok(())
        } else {
            Err(ProblemDetails::method(self.header))
        }
    }
}
