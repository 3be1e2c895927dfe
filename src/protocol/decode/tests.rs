//! Both decoders by tables of inputs, and against each other by properties.

use super::*;
use proptest::prelude::*;

fn check(text: &str, expected: Result<(u64, &str, Option<&str>), BadInput>) {
    let found = decode(text, Dialect::V1)
        .map(|inbound| (inbound.recipient.get(), inbound.message, inbound.id));
    assert_eq!(found, expected, "{text}");
}

#[test]
fn a_message_is_taken_in_any_layout() {
    let plain = Ok((2, r#""hi""#, None));
    check(r#"{"recipient_id":2,"message":"hi"}"#, plain);
    check(r#"{"recipient_id": 2, "message": "hi"}"#, plain);
    check(
        "\n{ \"message\" : \"hi\" ,\t\"recipient_id\" : 2 }\r ",
        plain,
    );
    check(
        r#"{"recipient_\u0069d":2,"message":"hi","x":[{"message":1}]}"#,
        plain,
    );
    check(
        r#"{"recipient_id":2,"message":"hi","id":7}"#,
        Ok((2, r#""hi""#, Some("7"))),
    );
    check(
        r#"{"id":-9007199254740991,"recipient_id":2,"message":""}"#,
        Ok((2, r#""""#, Some("-9007199254740991"))),
    );
    check(
        r#"{"id":"a\u00e9","recipient_id":9007199254740991,"message":"\ud83d\ude00\u0000"}"#,
        Ok((
            9_007_199_254_740_991,
            r#""\ud83d\ude00\u0000""#,
            Some(r#""a\u00e9""#),
        )),
    );
}

#[test]
fn bad_input_names_the_field() {
    use BadInput::{Duplicate, Invalid, Missing, NotJson};
    for text in [
        "",
        " ",
        "x",
        "{",
        "[2,\"hi\"]",
        "7",
        "null",
        "\"{}\"",
        "{}{}",
        "{\"message\":\"a\u{1}b\",\"recipient_id\":2}",
        "\u{feff}{}",
        "{\"recipient_id\":02,\"message\":\"\"}",
        "{\"recipient_id\":2,\"message\":\"\\x\"}",
        "{\"recipient_id\":2,\"message\":\"a\",}",
    ] {
        check(text, Err(NotJson));
    }
    check("{}", Err(Missing(Field::RecipientId)));
    check(r#"{"recipient_id":2}"#, Err(Missing(Field::Message)));
    check(
        r#"{"recipient_id":2,"recipient_id":2,"message":""}"#,
        Err(Duplicate(Field::RecipientId)),
    );
    check(
        r#"{"recipient_id":2,"message":"","message":""}"#,
        Err(Duplicate(Field::Message)),
    );
    for value in [
        "0",
        "-1",
        "2.0",
        "2e0",
        "\"2\"",
        "null",
        "9007199254740992",
        "18446744073709551618",
        "[2]",
    ] {
        check(
            &format!(r#"{{"recipient_id":{value},"message":""}}"#),
            Err(Invalid(Field::RecipientId)),
        );
    }
}

#[test]
fn a_message_and_an_id_have_their_types() {
    use BadInput::Invalid;
    for value in [
        "1",
        "null",
        "[\"a\"]",
        "{}",
        r#""\ud800""#,
        r#""\udc00\ud800""#,
        r#""\ud800x""#,
    ] {
        check(
            &format!(r#"{{"recipient_id":2,"message":{value}}}"#),
            Err(Invalid(Field::Message)),
        );
    }
    for value in [
        "1.5",
        "null",
        "9007199254740992",
        "-9007199254740992",
        r#""\ud800""#,
        "true",
    ] {
        check(
            &format!(r#"{{"recipient_id":2,"message":"","id":{value}}}"#),
            Err(Invalid(Field::Id)),
        );
    }
    let long = "é".repeat(33);
    check(
        &format!(r#"{{"recipient_id":2,"message":"","id":"{long}"}}"#),
        Err(Invalid(Field::Id)),
    );
}

#[test]
fn bare_ignores_an_id() {
    for id in ["7", "[]", "1,\"id\":2"] {
        let text = format!(r#"{{"recipient_id":2,"message":"","id":{id}}}"#);
        assert_eq!(decode(&text, Dialect::Bare).unwrap().id, None);
    }
}

#[test]
fn a_malformed_traceparent_or_tracestate_is_no_error() {
    let trace = |fields: &str, dialect| {
        let text = format!(r#"{{"recipient_id":2,"message":""{fields}}}"#);
        let trace = decode(&text, dialect)
            .unwrap()
            .traced
            .and_then(inbound_trace);
        trace.map(|trace| {
            (
                trace.traceparent.to_owned(),
                trace.tracestate.map(str::to_owned),
            )
        })
    };
    for (field, expected) in [
        ("", None),
        (r#","traceparent":"00-af-b7-01""#, Some("00-af-b7-01")),
        (r#","id":7,"traceparent":"""#, Some("")),
        (r#","traceparent":"\ud800""#, Some(r"\ud800")),
        (r#","traceparent":7"#, None),
        (r#","traceparent":null"#, None),
        (r#","traceparent":["00-af-b7-01"]"#, None),
        (r#","traceparent":"a","traceparent":"a""#, None),
        (
            r#","traceparent":"a","traceparent":7,"traceparent":"a""#,
            None,
        ),
    ] {
        let expected = expected.map(str::to_owned);
        let parent = expected.clone().map(|expected| (expected, None));
        assert_eq!(trace(field, Dialect::V1), parent, "{field}");
        assert_eq!(trace(field, Dialect::Bare), None, "{field}");
        let state = field.replace("traceparent", "tracestate");
        assert_eq!(trace(&state, Dialect::V1), None, "{state}");
        let both = format!(r#"{state},"traceparent":"b""#);
        let with_state = Some(("b".to_owned(), expected));
        assert_eq!(trace(&both, Dialect::V1), with_state, "{both}");
        assert_eq!(trace(&both, Dialect::Bare), None, "{both}");
    }
}

#[test]
fn every_detail_fits_a_close_frame() {
    for field in [Field::RecipientId, Field::Message, Field::Id] {
        for bad in [
            BadInput::NotJson,
            BadInput::Missing(field),
            BadInput::Duplicate(field),
            BadInput::Invalid(field),
        ] {
            assert!(bad.to_string().len() <= super::super::CLOSE_REASON_BYTES_MAX);
        }
    }
}

/// Text so close to a message that both decoders have work to do.
fn almost() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("{"),
        Just("}"),
        Just("\"recipient_id\""),
        Just("\"message\""),
        Just("\"id\""),
        Just("\"traceparent\""),
        Just("\"tracestate\""),
        Just(":"),
        Just(","),
        Just(" "),
        Just("2"),
        Just("0"),
        Just("9007199254740993"),
        Just("\"a\""),
        Just("\"\\u0041\""),
        Just("\"\\ud800\""),
        Just("\"\\n\""),
        Just("null"),
        Just("[]"),
        Just("\"é\""),
        Just("\"\u{7}\""),
    ];
    let loose = proptest::collection::vec(part, 0..14).prop_map(|parts| parts.concat());
    let near = (
        0u64..1 << 54,
        ".{0,12}",
        proptest::option::of(0u64..1 << 54),
        any::<bool>(),
    )
        .prop_map(|(to, text, id, spaced)| {
            let space = if spaced { " " } else { "" };
            let id = id.map_or(String::new(), |id| format!(",{space}\"id\":{space}{id}"));
            format!("{{\"recipient_id\":{space}{to},{space}\"message\":{space}\"{text}\"{id}}}")
        });
    prop_oneof![loose, near]
}

/// The general decoder takes them too, so that only their cost would tell.
#[test]
fn what_programs_write_takes_the_fast_way() {
    for text in [
        r#"{"recipient_id":2,"message":"Go Braves!"}"#,
        r#"{"recipient_id": 9007199254740991, "message": ""}"#,
    ] {
        assert!(fast(text, Dialect::Bare).is_some(), "{text}");
        assert!(fast(text, Dialect::V1).is_some(), "{text}");
    }
    for text in [
        r#"{"recipient_id":2,"message":"Go Braves!","id":7}"#,
        r#"{"recipient_id": 2, "message": "é", "id": 9007199254740991}"#,
    ] {
        assert!(fast(text, Dialect::V1).is_some(), "{text}");
    }
}

proptest! {
    #[test]
    fn the_fast_decoder_agrees_with_the_general_one(text in almost(), v1 in any::<bool>()) {
        let dialect = if v1 { Dialect::V1 } else { Dialect::Bare };
        if let Some(inbound) = fast(&text, dialect) {
            prop_assert_eq!(Ok(inbound), general(&text, dialect));
        }
    }

    #[test]
    fn decode_agrees_with_the_value_model(text in almost()) {
        let model = serde_json::from_str::<serde_json::Value>(&text).ok();
        match decode(&text, Dialect::V1) {
            Ok(inbound) => {
                let model = model.expect("what decodes is JSON");
                prop_assert_eq!(model["recipient_id"].as_u64(), Some(inbound.recipient.get()));
                let message: String = serde_json::from_str(inbound.message).unwrap();
                prop_assert_eq!(model["message"].as_str(), Some(message.as_str()));
                let id = inbound.id.map(|id| serde_json::from_str::<serde_json::Value>(id).unwrap());
                prop_assert_eq!(model.get("id"), id.as_ref());
            }
            Err(BadInput::NotJson) => prop_assert!(!model.is_some_and(|model| model.is_object())),
            Err(BadInput::Missing(field)) => prop_assert!(model.is_some_and(|model| model.get(field.as_str()).is_none())),
            Err(_) => {}
        }
    }
}
