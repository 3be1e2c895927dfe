//! A report as a table of text.

use std::fmt;

use crate::number::{float, number_text, time_text, whole};
use crate::options::Scenario;
use crate::outcome::{Check, Fact, Outcome, Row, RunReport};

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use clap::ValueEnum;
        let value = self.to_possible_value().expect("no scenario is skipped");
        f.write_str(value.get_name())
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.url)?;
        if let Some(server) = &self.server {
            let name = server.name.as_deref().unwrap_or("?");
            write!(f, " ({name}, process {})", server.pid)?;
        }
        writeln!(f)?;
        for outcome in &self.outcomes {
            writeln!(f, "\n{outcome}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.scenario, self.load)?;
        writeln!(
            f,
            "  {:<24} {:>11} {:>8} {:>8} {:>8} {:>8} {:>8}  {:>11} {:>6} {:>6}",
            "", "msgs/s", "p50", "p90", "p99", "p99.9", "max", "server CPU", "cores", "bench"
        )?;
        for row in &self.rows {
            writeln!(f, "  {}", line(row))?;
        }
        for fact in &self.facts {
            let name = fact.name.replace('_', " ");
            writeln!(f, "  {name:<36} {}", value(fact))?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        write!(f, "  {}", self.check)
    }
}

fn line(row: &Row) -> String {
    let [label, rate, p50, p90, p99, p999, max, cpu, cores, busy] = cells(row);
    let line = format!(
        "{label:<24} {rate:>11} {p50:>8} {p90:>8} {p99:>8} {p999:>8} {max:>8}  {cpu:>11} {cores:>6} {busy:>6}"
    );
    line.trim_end().to_owned()
}

/// The figures of a row as text, a cell each.
pub(crate) fn cells(row: &Row) -> [String; 10] {
    let [p50, p90, p99, p999, max] = match row.latency_us {
        Some(latency) => [
            latency.p50,
            latency.p90,
            latency.p99,
            latency.p999,
            latency.max,
        ]
        .map(time_text),
        None => [const { String::new() }; 5],
    };
    let cpu = row.server.and_then(|server| server.cpu_us_per_message);
    [
        row.label.clone(),
        number_text(row.messages_per_second.round()),
        p50,
        p90,
        p99,
        p999,
        max,
        cpu.map_or_else(String::new, |us| format!("{us:.2} µs/msg")),
        row.server
            .map_or_else(String::new, |server| format!("{:.2}", server.cores)),
        format!(
            "{}%{}",
            whole(row.bench_busy * 100.0),
            if row.limited_by_bench { "*" } else { "" }
        ),
    ]
}

/// A fact's value with its unit.
pub(crate) fn value(fact: &Fact) -> String {
    match fact.unit {
        "" => number_text(fact.value),
        "µs" => time_text(fact.value),
        unit => format!("{} {unit}", number_text(fact.value)),
    }
}

const UNREADABLE: &str = "the server's metrics could not be read";

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sent = count(self.sent);
        match (self.ok, &self.metrics_unreadable) {
            (true, None) => f.write_str("ok")?,
            (true, Some(reason)) => write!(f, "unaccounted: {UNREADABLE} ({reason})")?,
            (false, _) => f.write_str("FAULTY")?,
        }
        if self.ok && self.lost == 0 {
            return write!(
                f,
                ": {sent} messages, each arrived once, in order, unaltered"
            );
        }
        write!(f, ": {sent} messages, {} arrived", count(self.arrived))?;
        if self.lost > 0 {
            write!(f, ", {} did not", count(self.lost))?;
            match &self.account {
                Some(account) => {
                    for (reason, dropped) in &account.dropped {
                        write!(f, ", {} dropped as {reason}", count(*dropped))?;
                    }
                }
                None if self.ok => {}
                None => write!(
                    f,
                    ", and {UNREADABLE}, so {} messages are unaccounted",
                    count(self.lost)
                )?,
            }
        }
        if let (Some(account), false) = (&self.account, self.ok) {
            let (received, delivered) = (count(account.received), count(account.delivered));
            write!(
                f,
                "; the server says {received} received, {delivered} delivered"
            )?;
        }
        let faults = &self.faults;
        for (name, number) in [
            ("unexplained", self.unexplained),
            ("duplicated", faults.duplicated),
            ("out of order", faults.reordered),
            ("altered", faults.altered),
            ("misrouted", faults.misrouted),
            ("connections cut", faults.ended),
            ("upgrades refused", faults.refused),
        ] {
            if number > 0 {
                write!(f, "; {} {name}", count(number))?;
            }
        }
        for example in &faults.examples {
            write!(f, "\n    {example}")?;
        }
        Ok(())
    }
}

fn count(messages: u64) -> String {
    number_text(float(messages))
}
