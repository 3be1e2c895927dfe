//! Where a trace comes from and where it goes on, as texts (W3C Trace Context). Parses strictly, because a peer writes
//! them; knows no span.

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// The length of a `traceparent`, bytes.
pub const TRACEPARENT_BYTES: usize = 55;

/// The longest `tracestate` that is kept, bytes: what every system should pass on (W3C Trace Context section 3.3.1.5).
const TRACESTATE_BYTES_MAX: usize = 512;

/// The trace of a caller as texts that the caller wrote (W3C Trace Context), not checked yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceHeaders<'a> {
    /// The span that called.
    pub traceparent: Option<&'a str>,
    /// What other systems say about that trace. Counts only beside a `traceparent`.
    pub tracestate: Option<&'a str>,
}

impl TraceHeaders<'_> {
    /// The context that the texts give. A malformed `traceparent` is ignored (W3C Trace Context section 3.2.2).
    /// Versions after 00 may have more fields behind the flags.
    pub(super) fn parse(self) -> Option<SpanContext> {
        let traceparent = self.traceparent?;
        let head = traceparent.get(..TRACEPARENT_BYTES)?;
        let rest = traceparent.get(TRACEPARENT_BYTES..)?;
        let mut fields = head.split('-');
        let mut field = |digits: usize| {
            let field = fields.next().filter(|field| field.len() == digits)?;
            let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            field.bytes().all(is_digit).then_some(field)
        };
        let (version, trace, span, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        let sound = match version {
            "00" => rest.is_empty(),
            "ff" => false,
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        let context = SpanContext::new(
            TraceId::from_hex(trace).ok()?,
            SpanId::from_hex(span).ok()?,
            TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
            true,
            self.tracestate.and_then(parse_state).unwrap_or_default(),
        );
        (sound && context.is_valid()).then_some(context)
    }
}

/// The `traceparent` of a context (W3C Trace Context, version 00).
pub(super) fn traceparent(context: &SpanContext) -> String {
    format!(
        "00-{}-{}-{:02x}",
        context.trace_id(),
        context.span_id(),
        context.trace_flags() & TraceFlags::SAMPLED
    )
}

/// The `tracestate` of a context, without characters that JSON escapes.
pub(super) fn tracestate(context: &SpanContext) -> Option<String> {
    let text = context.trace_state().header();
    (!text.is_empty()).then_some(text)
}

/// Parses a `tracestate`. One that is malformed or too long is ignored, and the `traceparent` still counts (section
/// 3.3.1). So is one with a character that JSON would have to escape, which no known system writes.
fn parse_state(tracestate: &str) -> Option<TraceState> {
    if tracestate.len() > TRACESTATE_BYTES_MAX {
        return None;
    }
    let state: TraceState = tracestate.parse().ok()?;
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    let text = state.header();
    let has_keys = !text.starts_with('=') && !text.contains(",=");
    (has_keys && text.bytes().all(is_plain)).then_some(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_strictly() {
        let unsampled = SAMPLED.replace("-01", "-00");
        for (text, expected) in [
            (SAMPLED, Some(SAMPLED)),
            // Unknown flags are cleared, and later versions become version 00.
            (&SAMPLED.replace("-01", "-03"), Some(SAMPLED)),
            (&SAMPLED.replace("-01", "-02"), Some(&unsampled)),
            (&SAMPLED.replacen("00", "cc", 1), Some(SAMPLED)),
            (
                &format!("{}-what-else", SAMPLED.replacen("00", "01", 1)),
                Some(SAMPLED),
            ),
            (&format!("{SAMPLED}-"), None),
            (&format!("{SAMPLED}-what-else"), None),
            (&format!("{}x", SAMPLED.replacen("00", "01", 1)), None),
            (&SAMPLED.replacen("00", "ff", 1), None),
            (&SAMPLED.to_uppercase(), None),
            (
                &SAMPLED.replace("b7ad6b7169203331", "0000000000000000"),
                None,
            ),
            (
                &SAMPLED.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
                None,
            ),
            (&SAMPLED.replace("-01", "-1"), None),
            (&SAMPLED.replace("-01", "-+1"), None),
            (&SAMPLED.replace('-', "_"), None),
            (&SAMPLED.replacen("00-0", "00-é", 1), None),
            (&format!(" {SAMPLED}"), None),
            ("", None),
        ] {
            let caller = TraceHeaders {
                traceparent: Some(text),
                tracestate: None,
            };
            let found = caller.parse().map(|context| super::traceparent(&context));
            assert_eq!(found.as_deref(), expected, "{text}");
        }
        assert_eq!(SAMPLED.len(), TRACEPARENT_BYTES);
    }

    #[test]
    fn a_tracestate_is_kept_or_ignored_as_a_whole() {
        let long = format!("a={},b={}", "x".repeat(254), "y".repeat(253));
        let too_long = format!("{long}y");
        for (text, expected) in [
            (
                "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
                "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
            ),
            (
                "dd=s:1;o:rum, tenant@vendor=a b ,,",
                "dd=s:1;o:rum,tenant@vendor=a b",
            ),
            (&*long, &*long),
            (&too_long, ""),
            ("", ""),
            ("a", ""),
            ("=b", ""),
            ("a=b,=c", ""),
            ("A=b", ""),
            ("a=\"b\"", ""),
            ("a=b\\", ""),
            ("a=b\r\nc: d", ""),
            ("a=é", ""),
        ] {
            let caller = TraceHeaders {
                traceparent: Some(SAMPLED),
                tracestate: Some(text),
            };
            let found = caller.parse().unwrap();
            assert_eq!(tracestate(&found).unwrap_or_default(), expected, "{text}");
            assert_eq!(traceparent(&found), SAMPLED);
        }
    }
}
