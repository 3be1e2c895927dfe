//! Any JSON string, escaped in any way that JSON has, arrives as the same string.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;

use crate::harness::raw::{BINARY, TEXT};
use crate::harness::{Dialect, Raw, Relay, Wire};

/// A character and the form in which it is written.
fn written() -> impl Strategy<Value = (char, Style)> {
    let character = prop_oneof![
        4 => any::<char>(),
        3 => prop::char::range('\0', '\u{7f}'),
        2 => prop::sample::select(vec!['"', '\\', '/', '\u{8}', '\u{c}', '\n', '\r', '\t', '\0']),
        1 => prop::sample::select(vec!['\u{d7ff}', '\u{e000}', '\u{ffff}', '\u{10000}', '\u{10ffff}', '\u{feff}', '\u{2028}']),
    ];
    (
        character,
        prop::sample::select(vec![Style::Short, Style::Lower, Style::Upper]),
    )
}

#[derive(Clone, Copy, Debug)]
enum Style {
    /// As itself, or by the shortest escape.
    Short,
    /// By its UTF-16 code units.
    Lower,
    /// By its UTF-16 code units, in capitals.
    Upper,
}

fn escape(character: char, style: Style) -> String {
    let mut units = [0; 2];
    let units = character.encode_utf16(&mut units).iter();
    match (style, character) {
        (Style::Lower, _) => units.fold(String::new(), |all, unit| all + &format!("\\u{unit:04x}")),
        (Style::Upper, _) => units.fold(String::new(), |all, unit| all + &format!("\\u{unit:04X}")),
        (Style::Short, '"') => r#"\""#.to_owned(),
        (Style::Short, '\\') => r"\\".to_owned(),
        (Style::Short, '/') => r"\/".to_owned(),
        (Style::Short, '\u{8}') => r"\b".to_owned(),
        (Style::Short, '\u{c}') => r"\f".to_owned(),
        (Style::Short, '\n') => r"\n".to_owned(),
        (Style::Short, '\r') => r"\r".to_owned(),
        (Style::Short, '\t') => r"\t".to_owned(),
        (Style::Short, '\0'..'\u{20}') => format!("\\u{:04x}", u32::from(character)),
        (Style::Short, _) => character.to_string(),
    }
}

#[derive(Debug)]
struct Pair {
    sender: Raw,
    recipients: [Raw; 2],
}

impl Pair {
    async fn carries(&mut self, escaped: &str, text: &str, opcode: u8) {
        for (recipient, dialect) in self.recipients.iter_mut().zip(Dialect::BOTH) {
            let frame = format!(
                r#"{{"recipient_id":{},"message":"{escaped}"}}"#,
                recipient.id
            );
            let read: Value = serde_json::from_str(&frame).expect("this is JSON");
            assert_eq!(read["message"], text, "the test says what JSON says");
            self.sender.write(&Wire::new(opcode, frame).bytes()).await;
            assert_eq!(
                recipient.json().await,
                dialect.message(self.sender.id, text)
            );
        }
    }
}

#[test]
fn any_string_arrives_as_the_same_string() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for from in Dialect::BOTH {
        let (relay, mut pair) = runtime.block_on(async {
            let relay = Relay::plain().await;
            let sender = relay.raw_user(from).await;
            let recipients = [
                relay.raw_user(Dialect::Bare).await,
                relay.raw_user(Dialect::V1).await,
            ];
            (relay, Pair { sender, recipients })
        });
        let config = Config {
            cases: 200,
            failure_persistence: None,
            ..Config::default()
        };
        let characters = prop::collection::vec(written(), 0..40);
        let pair = std::cell::RefCell::new(&mut pair);
        let outcome =
            TestRunner::new(config).run(&(characters, any::<bool>()), |(written, binary)| {
                let text: String = written.iter().map(|(character, _)| character).collect();
                let escaped: String = written
                    .iter()
                    .map(|(character, style)| escape(*character, *style))
                    .collect();
                let opcode = if binary { BINARY } else { TEXT };
                runtime.block_on(pair.borrow_mut().carries(&escaped, &text, opcode));
                Ok(())
            });
        outcome.unwrap();
        runtime.block_on(relay.stop());
    }
}
