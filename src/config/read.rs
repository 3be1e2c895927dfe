//! Reads a type from a tree of values, without conversions. The reader of the `config` crate rounds 1.5 to 2 and
//! takes "yes" for 1.

use config::{Value, ValueKind};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};

use super::read_error::ReadError;

/// Whether a string in the tree may be another type.
#[derive(Clone, Copy, Debug)]
pub(super) enum Strings {
    /// A string is a string, or a list with commas: a file has types.
    Typed,
    /// A string may be a number, a boolean or a list with commas: a variable has no types.
    Untyped,
}

/// Reads a value of type `T`.
pub(super) fn read<T: DeserializeOwned>(tree: &Value, strings: Strings) -> Result<T, ReadError> {
    T::deserialize(Reader {
        value: tree,
        strings,
    })
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    value: &'a Value,
    strings: Strings,
}

impl Reader<'_> {
    /// The text, if it may be another type.
    fn untyped(&self) -> Option<&str> {
        match (&self.value.kind, self.strings) {
            (ValueKind::String(text), Strings::Untyped) => Some(text),
            _ => None,
        }
    }

    fn whole<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.untyped().map(str::parse) {
            Some(Ok(number)) => visitor.visit_i64(number),
            _ => self.deserialize_any(visitor),
        }
    }

    fn float<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.untyped().map(str::parse) {
            Some(Ok(number)) => visitor.visit_f64(number),
            _ => self.deserialize_any(visitor),
        }
    }
}

macro_rules! numbers {
    ($read:ident: $($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            self.$read(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let Self { value, strings } = self;
        match &value.kind {
            ValueKind::Nil => visitor.visit_unit(),
            ValueKind::Boolean(value) => visitor.visit_bool(*value),
            ValueKind::I64(number) => visitor.visit_i64(*number),
            ValueKind::I128(number) => visitor.visit_i128(*number),
            ValueKind::U64(number) => visitor.visit_u64(*number),
            ValueKind::U128(number) => visitor.visit_u128(*number),
            ValueKind::Float(number) => visitor.visit_f64(*number),
            ValueKind::String(text) => visitor.visit_str(text),
            ValueKind::Array(items) => visitor.visit_seq(ListAccess {
                items: items.iter(),
                strings,
            }),
            ValueKind::Table(entries) => {
                let mut entries: Vec<_> = entries.iter().collect();
                // Sorted, because the map's order is random and the first problem must not be.
                entries.sort_unstable_by_key(|(key, _)| *key);
                visitor.visit_map(TableAccess {
                    rest: entries.into_iter(),
                    current: None,
                    strings,
                })
            }
        }
    }

    numbers!(whole: deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128);
    numbers!(float: deserialize_f32 deserialize_f64);

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.untyped().map(str::parse) {
            Some(Ok(value)) => visitor.visit_bool(value),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        // In a file, too: one address needs no brackets.
        let ValueKind::String(text) = &self.value.kind else {
            return self.deserialize_any(visitor);
        };
        let items = text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty());
        let items: Vec<_> = items.map(|item| Value::new(None, item)).collect();
        visitor.visit_seq(ListAccess {
            items: items.iter(),
            strings: self.strings,
        })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match self.value.kind {
            ValueKind::Table(_) => self.deserialize_any(visitor),
            _ => Err(ReadError::value(format!(
                "a table of {}",
                fields.join(", ")
            ))),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match &self.value.kind {
            ValueKind::String(variant) => visitor.visit_enum(variant.as_str().into_deserializer()),
            _ => Err(ReadError::unknown_variant("", variants)),
        }
    }

    serde::forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct tuple tuple_struct map identifier ignored_any
    }
}

struct TableAccess<'a, I> {
    rest: I,
    current: Option<(&'a str, Reader<'a>)>,
    strings: Strings,
}

impl<'a, 'de, I> MapAccess<'de> for TableAccess<'a, I>
where
    I: Iterator<Item = (&'a String, &'a Value)>,
{
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, ReadError> {
        let Some((key, value)) = self.rest.next() else {
            return Ok(None);
        };
        self.current = Some((
            key,
            Reader {
                value,
                strings: self.strings,
            },
        ));
        seed.deserialize(key.as_str().into_deserializer())
            .map(Some)
            .map_err(|error: ReadError| error.within(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let (key, reader) = self.current.take().expect("serde asks for the key first");
        seed.deserialize(reader)
            .map_err(|error| error.of(reader.value).within(key))
    }
}

struct ListAccess<I> {
    items: I,
    strings: Strings,
}

impl<'a, 'de, I: Iterator<Item = &'a Value>> SeqAccess<'de> for ListAccess<I> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ReadError> {
        let Some(value) = self.items.next() else {
            return Ok(None);
        };
        seed.deserialize(Reader {
            value,
            strings: self.strings,
        })
        .map(Some)
        .map_err(|error| error.of(value))
    }
}
