//! Why a tree of values cannot be read as settings. The error is completed on the way out of the tree: serde
//! gives the reason, the innermost value what was found, and each table around it a part of the key.

use std::fmt;

use config::{Value, ValueKind};
use serde::de::{Error, Expected, Unexpected};

use super::error::SettingsProblem;
use super::rule::Rule;

/// Why a tree cannot be read.
#[derive(Debug)]
pub(super) struct ReadError {
    /// The keys that lead to the value, the innermost first.
    path: Vec<String>,
    found: Option<String>,
    reason: Reason,
}

#[derive(Debug)]
enum Reason {
    /// The key is none of these.
    UnknownKey(&'static [&'static str]),
    /// The value is none of these, in words.
    Value(String),
}

impl ReadError {
    /// A value that is not allowed; `allowed` says in words what is.
    pub(super) fn value(allowed: String) -> Self {
        Self {
            path: Vec::new(),
            found: None,
            reason: Reason::Value(allowed),
        }
    }

    /// Adds the next outer key.
    pub(super) fn within(mut self, key: &str) -> Self {
        self.path.push(key.to_owned());
        self
    }

    /// Adds the value that was found, unless an inner value has been added.
    pub(super) fn of(mut self, value: &Value) -> Self {
        self.found.get_or_insert_with(|| describe(value));
        self
    }

    /// The keys that lead to the value, the outermost first.
    pub(super) fn path(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.path.iter().rev().map(String::as_str)
    }

    /// The problem of a source. If a rule has the key, its words for what is allowed replace serde's.
    pub(super) fn into_problem(self, origin: String, rules: &[Rule]) -> SettingsProblem {
        let path: Vec<_> = self.path().collect();
        let key = path.join(".");
        match self.reason {
            Reason::UnknownKey(fields) => {
                let sections = path.split_last().map_or(&[][..], |(_, sections)| sections);
                let known = fields
                    .iter()
                    .map(|field| [sections, &[*field]].concat().join("."));
                SettingsProblem::UnknownKey {
                    origin,
                    known: known.collect(),
                    key,
                }
            }
            Reason::Value(allowed) => {
                let rule = rules.iter().find(|rule| rule.key == key);
                let allowed = rule.map_or(allowed, |rule| rule.allowed.clone());
                let found = self.found.unwrap_or_else(|| "nothing".to_owned());
                SettingsProblem::Value {
                    origin,
                    key,
                    found,
                    allowed,
                }
            }
        }
    }
}

impl Error for ReadError {
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

impl std::error::Error for ReadError {}

impl fmt::Display for ReadError {
    /// Serde requires it. Messages are made by [`Self::into_problem`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A value as messages show it. A user and a password in a URL are masked, because messages are logged.
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
