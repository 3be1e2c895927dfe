//! The files that browsers get: the page, the client library that it uses and the description of the wire. They
//! are small and compiled in. The page loads nothing from another host, and its policy forbids it.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    HeaderValue, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{HeaderMap, Response};

use super::negotiation::weight;
use super::response::HttpResponse;

/// A file that is compiled in.
#[derive(Debug)]
pub(super) struct Asset {
    content_type: &'static str,
    text: &'static str,
}

/// `GET /`, for browsers.
pub(super) const PAGE: Asset = Asset {
    content_type: "text/html; charset=utf-8",
    text: include_str!("../ui/page.html"),
};

/// The file at a path.
pub(super) fn find(path: &str) -> Option<Asset> {
    let (content_type, text) = match path {
        // Node takes a file for an ES module by its name.
        "/switchboard.js" | "/switchboard.mjs" => (SCRIPT, include_str!("../ui/switchboard.js")),
        // Beside the client, where TypeScript looks for its types.
        "/switchboard.d.ts" | "/switchboard.d.mts" => (
            "application/typescript; charset=utf-8",
            include_str!("../ui/switchboard.d.ts"),
        ),
        "/page.js" => (SCRIPT, include_str!("../ui/page.js")),
        "/conversation.js" => (SCRIPT, include_str!("../ui/conversation.js")),
        "/tab.js" => (SCRIPT, include_str!("../ui/tab.js")),
        "/page.css" => ("text/css; charset=utf-8", include_str!("../ui/page.css")),
        "/asyncapi.yaml" => (
            "application/yaml",
            include_str!("../protocol/asyncapi.yaml"),
        ),
        "/icon.svg" => ("image/svg+xml", include_str!("../ui/icon.svg")),
        _ => return None,
    };
    Some(Asset { content_type, text })
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Lets the page load these files and talk to this relay, and never use a text as markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

impl Asset {
    pub(super) fn response(self) -> HttpResponse {
        let mut response = Response::new(Full::new(Bytes::from_static(self.text.as_bytes())));
        let headers = response.headers_mut();
        for (name, value) in [
            (CONTENT_TYPE, self.content_type),
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            // After an upgrade of the relay, the page must use the new client library.
            (CACHE_CONTROL, "no-store"),
            (REFERRER_POLICY, "no-referrer"),
            // The response to `/` depends on it.
            (VARY, "accept"),
            // Any page may import the client library. `server.allowed_origins` decides whether it may connect.
            (ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// Whether the client names HTML among the media types that it accepts (RFC 9110 section 12.5.1). Browsers do,
/// and tools that send `*/*` do not.
pub(super) fn accepts_html(headers: &HeaderMap) -> bool {
    weight(headers, &ACCEPT, "text/html") > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So that the page works below a path of a proxy.
    #[test]
    fn the_page_names_its_files_by_relative_paths() {
        let links = |text: &'static str| text.match_indices(['"', '`']).map(|(at, _)| at + 1);
        for text in [PAGE.text, find("/page.js").unwrap().text] {
            let is_absolute = |at: &usize| text.get(*at..).unwrap().starts_with('/');
            let absolute = links(text).find(is_absolute).and_then(|at| text.get(at..));
            assert_eq!(absolute.and_then(|text| text.lines().next()), None);
        }
        assert!(PAGE.text.contains("src=\"page.js\""));
    }

    #[test]
    fn the_page_names_no_other_host_and_has_no_inline_script() {
        for path in ["/switchboard.js", "/page.js", "/page.css"] {
            let Asset { text, .. } = find(path).unwrap();
            assert!(!text.contains("innerHTML"), "{path}");
        }
        assert!(!PAGE.text.contains("://"));
        assert!(!PAGE.text.contains("style="));
        assert_eq!(
            PAGE.text.matches("<script").count(),
            PAGE.text
                .matches("<script type=\"module\" src=\"page.js\"></script>")
                .count()
        );
    }
}
