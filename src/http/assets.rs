//! The page that browsers get, the client that it is written with and the description of the wire: small
//! files that are compiled in. Nothing on the page comes from another host, and its policy lets nothing come.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    HeaderValue, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{HeaderMap, Response};

use super::routes::Answer;

/// A file that is compiled in.
#[derive(Debug)]
pub(super) struct File {
    content_type: &'static str,
    text: &'static str,
}

/// `GET /`, for browsers.
pub(super) const PAGE: File = File {
    content_type: "text/html; charset=utf-8",
    text: include_str!("../ui/page.html"),
};

/// The file of a path.
pub(super) fn file(path: &str) -> Option<File> {
    let (content_type, text) = match path {
        "/switchboard.js" => (SCRIPT, include_str!("../ui/switchboard.js")),
        "/page.js" => (SCRIPT, include_str!("../ui/page.js")),
        "/page.css" => ("text/css; charset=utf-8", include_str!("../ui/page.css")),
        "/asyncapi.yaml" => (
            "application/yaml",
            include_str!("../protocol/asyncapi.yaml"),
        ),
        "/icon.svg" => ("image/svg+xml", include_str!("../ui/icon.svg")),
        _ => return None,
    };
    Some(File { content_type, text })
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// What the page may do: load these files, talk to this relay, and never make markup of a text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

impl File {
    pub(super) fn answer(self) -> Answer {
        let mut answer = Response::new(Full::new(Bytes::from_static(self.text.as_bytes())));
        let headers = answer.headers_mut();
        for (name, value) in [
            (CONTENT_TYPE, self.content_type),
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            // An upgraded relay speaks through an upgraded client.
            (CACHE_CONTROL, "no-store"),
            (REFERRER_POLICY, "no-referrer"),
            // The answer to `/` depends on it.
            (VARY, "accept"),
            // Anybody's page may import the client; what it may connect to is another question.
            (ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        answer
    }
}

/// Whether the client says that it takes HTML, as browsers do and `*/*` does not (RFC 9110 section
/// 12.5.1).
pub(super) fn is_asked_for(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(takes_html)
}

fn takes_html(range: &str) -> bool {
    let mut parts = range.split(';').map(str::trim);
    let is_html = parts
        .next()
        .is_some_and(|range| range.eq_ignore_ascii_case("text/html"));
    let refused = parts
        .filter_map(|parameter| parameter.split_once('='))
        .any(|(name, weight)| {
            name.trim().eq_ignore_ascii_case("q") && weight.trim().parse() == Ok(0.0)
        });
    is_html && !refused
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, expected: bool) {
        let headers = [(ACCEPT, HeaderValue::from_str(accept).unwrap())];
        let found = is_asked_for(&headers.into_iter().collect());
        assert_eq!(found, expected, "{accept}");
    }

    #[test]
    fn html_has_to_be_named() {
        check("text/html", true);
        check("application/json, Text/HTML;level=1;q=0.5", true);
        check(
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            true,
        );
        check("*/*", false);
        check("text/*", false);
        check("text/htmlx, application/xhtml+xml", false);
        check("text/html; Q=0.000, */*", false);
    }

    #[test]
    fn the_page_names_no_other_host_and_holds_no_script() {
        for path in ["/switchboard.js", "/page.js", "/page.css"] {
            let File { text, .. } = file(path).unwrap();
            assert!(!text.contains("innerHTML"), "{path}");
        }
        assert!(!PAGE.text.contains("://"));
        assert!(!PAGE.text.contains("style="));
        assert_eq!(
            PAGE.text.matches("<script").count(),
            PAGE.text
                .matches("<script type=\"module\" src=\"/page.js\"></script>")
                .count()
        );
    }
}
