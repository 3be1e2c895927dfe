//! What differs between two settings: the keys, or the values as TOML.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use super::settings::Settings;

impl Settings {
    /// The keys whose values differ from those of `other`.
    pub fn changes(&self, other: &Self) -> Vec<String> {
        let [ours, theirs] = [self, other].map(|settings| {
            let mut values = BTreeMap::new();
            let table = Table::try_from(settings).expect("a test prints the settings as TOML");
            flatten("", table.into(), &mut values);
            values
        });
        let keys: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
        let changed = keys
            .into_iter()
            .filter(|key| ours.get(*key) != theirs.get(*key));
        changed.cloned().collect()
    }

    /// The values that differ from those of `other`, as TOML.
    pub fn changed_from(&self, other: &Self) -> String {
        let [ours, theirs] = [self, other]
            .map(|settings| Table::try_from(settings).expect("a test prints the settings as TOML"));
        difference(ours, &theirs).to_string()
    }
}

/// The values of a table that another table does not have.
fn difference(ours: Table, theirs: &Table) -> Table {
    let changed = ours.into_iter().filter_map(|(key, value)| {
        let value = match (value, theirs.get(&key)) {
            (Value::Table(ours), Some(Value::Table(theirs))) => {
                let changed = difference(ours, theirs);
                (!changed.is_empty()).then_some(Value::Table(changed))
            }
            (value, Some(same)) if value == *same => None,
            (value, _) => Some(value),
        };
        Some((key, value?))
    });
    changed.collect()
}

/// Puts all values into `values` by their full keys, such as `server.tls.cert_file`.
fn flatten(key: &str, value: Value, values: &mut BTreeMap<String, Value>) {
    let Value::Table(table) = value else {
        values.insert(key.to_owned(), value);
        return;
    };
    for (name, value) in table {
        let key = if key.is_empty() {
            name
        } else {
            format!("{key}.{name}")
        };
        flatten(&key, value, values);
    }
}
