//! What a client accepts: media types and content codings with their weights (RFC 9110 section 12.4.2).

use hyper::HeaderMap;
use hyper::header::HeaderName;

/// The weight that a client gives to a media type or a content coding by its full name, from 0 to 1. A wildcard does
/// not count: browsers and scrapers name what they want, and tools that send `*/*` do not.
pub(super) fn weight(headers: &HeaderMap, header: &HeaderName, wanted: &str) -> f32 {
    headers
        .get_all(header)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|range| weight_of(range, wanted))
        .fold(0.0, f32::max)
}

fn weight_of(range: &str, wanted: &str) -> Option<f32> {
    let mut parts = range.split(';').map(str::trim);
    parts
        .next()
        .filter(|name| name.eq_ignore_ascii_case(wanted))?;
    let weight = parts
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
        .map_or(Some(1.0), |(_, weight)| weight.trim().parse().ok());
    weight.filter(|weight| (0.0..=1.0).contains(weight))
}

#[cfg(test)]
mod tests {
    use hyper::header::{ACCEPT, HeaderValue};

    use super::*;

    fn check(accept: &str, expected: f32) {
        let headers = [(ACCEPT, HeaderValue::from_str(accept).unwrap())];
        let found = weight(&headers.into_iter().collect(), &ACCEPT, "text/html");
        assert!((found - expected).abs() < 1e-6, "{accept}: {found}");
    }

    #[test]
    fn a_type_has_to_be_named() {
        check("text/html", 1.0);
        check("application/json, Text/HTML;level=1;q=0.5", 0.5);
        check(
            "text/html;q=0.2,application/xhtml+xml,application/xml;q=0.9,text/html ; q = 0.7,*/*;q=0.8",
            0.7,
        );
        check("*/*", 0.0);
        check("text/*", 0.0);
        check("text/htmlx, application/xhtml+xml", 0.0);
        check("text/html; Q=0.000, */*", 0.0);
        check(
            "text/html;q=2, text/html;q=x, text/html;q=-1, text/html;q=NaN",
            0.0,
        );
    }
}
