//! Answers of the operators' API as text for a terminal.

use std::fmt::Write;

use serde_json::Value;

/// The columns of the list of users: a title, and the path of the value.
const COLUMNS: [(&str, &str); 9] = [
    ("user", "/id"),
    ("subject", "/subject"),
    ("since", "/since"),
    ("protocol", "/protocol"),
    ("queued", "/queue/messages"),
    ("bytes", "/queue/bytes"),
    ("sent", "/counts/sent"),
    ("delivered", "/counts/delivered"),
    ("a second", "/rate"),
];

/// A text of a peer without control characters, which could change the terminal.
pub(super) fn printable(text: &str) -> String {
    let signs = text.chars().map(|sign| {
        if sign.is_control() {
            sign.escape_default().to_string()
        } else {
            sign.to_string()
        }
    });
    signs.collect()
}

/// A list of users as a table, an outcome as a word, and any other answer as a line for each value that is known.
pub(super) fn readable(answer: &Value) -> String {
    if let Some(status) = answer.get("status") {
        return cell(Some(status)) + "\n";
    }
    if let Some(users) = answer.get("users").and_then(Value::as_array) {
        return table(users);
    }
    let mut lines = String::new();
    push_lines(&mut lines, "", answer);
    lines
}

fn push_lines(lines: &mut String, name: &str, value: &Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                push_lines(lines, &format!("{name} {key}"), value);
            }
        }
        Value::Null => {}
        value => {
            let (name, value) = (name.trim_start().replace('_', " "), cell(Some(value)));
            writeln!(lines, "{name:<30} {value}").expect("a string takes every line");
        }
    }
}

fn table(users: &[Value]) -> String {
    let has_rate = users.iter().any(|user| user.get("rate").is_some());
    let columns = if has_rate {
        &COLUMNS[..]
    } else {
        &COLUMNS[..COLUMNS.len() - 1]
    };
    let titles = columns
        .iter()
        .map(|(title, _)| (*title).to_owned())
        .collect();
    let cells = |user: &Value| {
        columns
            .iter()
            .map(|(_, path)| cell(user.pointer(path)))
            .collect()
    };
    let rows: Vec<Vec<String>> = [titles]
        .into_iter()
        .chain(users.iter().map(cells))
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row: &Vec<String>| row[column].chars().count())
            .max()
    };
    let widths: Vec<_> = (0..columns.len()).filter_map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => printable(text),
        Some(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn users_are_a_table_and_other_answers_are_lines() {
        let user = json!({
            "id": 12, "online": true, "node": "n", "since": "now", "protocol": "bare", "subject": "a\u{1b}[2Jb",
            "queue": {"messages": 3, "bytes": 40}, "counts": {"sent": 5, "delivered": 6},
        });
        let expected = "user  subject      since  protocol  queued  bytes  sent  delivered\n\
                        12    a\\u{1b}[2Jb  now    bare      3       40     5     6\n";
        assert_eq!(
            readable(&json!({"sort": "queue", "users": [user]})),
            expected
        );
        assert_eq!(
            readable(&json!({"sender_id": 0, "recipient_id": 2, "status": "offline"})),
            "offline\n"
        );
        let status = readable(&json!({"ready": true, "drain": null, "queue": {"in_all": 1}}));
        assert_eq!(
            status
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>())
                .collect::<Vec<_>>(),
            [vec!["queue", "in", "all", "1"], vec!["ready", "true"]]
        );
    }
}
