//! Why a value was refused, put together on the way out of the tree: the reason by serde, what was
//! found by the innermost value, the key by all tables around it.

use std::fmt;

use config::{Value, ValueKind};
use serde::de::{Error, Expected, Unexpected};

use super::error::Problem;
use super::rules::Rule;

/// Why a tree was refused.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The keys that lead to the value, the innermost first.
    path: Vec<String>,
    found: Option<String>,
    reason: Reason,
}

#[derive(Debug)]
enum Reason {
    /// It is none of these keys.
    UnknownKey(&'static [&'static str]),
    /// It is no value like this.
    Value(String),
}

impl Refusal {
    /// Refuses whatever is not this, in words.
    pub(super) fn value(allowed: String) -> Self {
        Self {
            path: Vec::new(),
            found: None,
            reason: Reason::Value(allowed),
        }
    }

    /// Adds a key that the value stands under.
    pub(super) fn within(mut self, key: &str) -> Self {
        self.path.push(key.to_owned());
        self
    }

    /// Notes what was found, unless a place further in has done so.
    pub(super) fn of(mut self, value: &Value) -> Self {
        self.found.get_or_insert_with(|| describe(value));
        self
    }

    /// The keys that lead to the value.
    pub(super) fn path(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.path.iter().rev().map(String::as_str)
    }

    /// The refusal of something in this origin. A rule for the key knows better what is allowed.
    pub(super) fn into_problem(self, origin: String, rules: &[Rule]) -> Problem {
        let path: Vec<_> = self.path().collect();
        let key = path.join(".");
        match self.reason {
            Reason::UnknownKey(fields) => {
                let sections = path.split_last().map_or(&[][..], |(_, sections)| sections);
                let known = fields
                    .iter()
                    .map(|field| [sections, &[*field]].concat().join("."));
                Problem::UnknownKey {
                    origin,
                    known: known.collect(),
                    key,
                }
            }
            Reason::Value(allowed) => {
                let rule = rules.iter().find(|rule| rule.key == key);
                let allowed = rule.map_or(allowed, |rule| rule.allowed.clone());
                let found = self.found.unwrap_or_else(|| "nothing".to_owned());
                Problem::Value {
                    origin,
                    key,
                    found,
                    allowed,
                }
            }
        }
    }
}

impl Error for Refusal {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::value(message.to_string())
    }

    fn invalid_type(_found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::value(match expected.to_string().as_str() {
            "i8" | "i16" | "i32" | "i64" | "isize" | "u8" | "u16" | "u32" | "u64" | "usize" => {
                "a whole number".to_owned()
            }
            "f32" | "f64" => "a number".to_owned(),
            "a boolean" => "true or false".to_owned(),
            "a sequence" => "a list".to_owned(),
            words => words.to_owned(),
        })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(_found: &str, variants: &'static [&'static str]) -> Self {
        let variants: Vec<_> = variants
            .iter()
            .map(|variant| format!("{variant:?}"))
            .collect();
        Self::value(variants.join(", "))
    }

    fn unknown_field(_found: &str, fields: &'static [&'static str]) -> Self {
        Self {
            path: Vec::new(),
            found: None,
            reason: Reason::UnknownKey(fields),
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::value("a value".to_owned()).within(field)
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    /// For serde, which asks for it: a message is made of the parts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A value in the words of a message. What stands for a user and a password in an address is left out: it
/// is refused, and a message goes to where logs go.
pub(super) fn describe(value: &Value) -> String {
    match &value.kind {
        ValueKind::Nil => "nothing".to_owned(),
        ValueKind::Table(_) => "a table".to_owned(),
        ValueKind::Array(items) => {
            let items: Vec<_> = items.iter().map(describe).collect();
            format!("[{}]", items.join(", "))
        }
        ValueKind::String(text) => match text.split_once("://") {
            Some((scheme, rest)) if let Some((_, host)) = rest.rsplit_once('@') => {
                format!("{:?}", format!("{scheme}://***@{host}"))
            }
            _ => format!("{text:?}"),
        },
        ValueKind::Float(number) => format!("{number:?}"),
        plain => plain.to_string(),
    }
}
