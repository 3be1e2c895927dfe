//! A comparison as text, as charts and as a page.

use std::fmt;
use std::path::Path;

use super::{BesideFloods, ByPairs, Comparison, StrategyMedians};
use crate::chart::{Axis, Chart, Embedding, Scale, Series, Stroke, Unit, escaped};
use crate::error::BenchError;
use crate::number::{number_text, time_text};
use crate::output::write_file;
use crate::page::{html_table, latency_chart, page};

impl Comparison {
    /// The charts, with the names of their files.
    fn charts(&self) -> [(&'static str, Chart); 4] {
        let by_pairs = |title: &str, label, figure: fn(&ByPairs) -> f64| Chart {
            title: title.to_owned(),
            x: Axis {
                label: "pairs, 64 messages of 32 B under way in each",
                scale: Scale::Each,
                unit: Unit::Count,
            },
            y: Axis {
                label,
                scale: Scale::Linear,
                unit: Unit::Count,
            },
            lines: self.lines("", Stroke::Solid, |figures| {
                let points = figures.by_pairs.iter();
                points
                    .map(|point| (f64::from(point.pairs), figure(point)))
                    .collect()
            }),
            marks: Vec::new(),
        };
        [
            (
                "throughput",
                by_pairs("messages a second", "msgs/s", |point| {
                    point.messages_per_second
                }),
            ),
            (
                "cpu",
                by_pairs("server CPU for one message", "µs", |point| {
                    point.cpu_us_per_message
                }),
            ),
            ("quiet-pair", self.quiet_pair_chart()),
            ("slow-reader", self.slow_reader_chart()),
        ]
    }

    /// Latency of a quiet pair by the number of pairs that flood beside it.
    fn quiet_pair_chart(&self) -> Chart {
        let quiet = |figure: fn(&BesideFloods) -> f64| {
            move |figures: &StrategyMedians| {
                let points = figures.beside_floods.iter();
                points
                    .map(|point| (f64::from(point.floods), figure(point)))
                    .collect()
            }
        };
        let mut chart = latency_chart(
            "a quiet pair beside pairs that flood".to_owned(),
            [
                self.lines(", p50", Stroke::Solid, quiet(|point| point.p50_us)),
                self.lines(", p99", Stroke::Dashed, quiet(|point| point.p99_us)),
            ]
            .concat(),
        );
        chart.x = Axis {
            label: "pairs that flood, 64 messages under way in each",
            scale: Scale::Each,
            unit: Unit::Count,
        };
        chart
    }

    /// Latency of the other pairs while one user does not read.
    fn slow_reader_chart(&self) -> Chart {
        latency_chart(
            "the others, while one user does not read and is flooded".to_owned(),
            [
                self.lines(", before", Stroke::Solid, |figures| {
                    figures.slow_reader.curve_before.clone()
                }),
                self.lines(", meanwhile", Stroke::Dashed, |figures| {
                    figures.slow_reader.curve_during.clone()
                }),
            ]
            .concat(),
        )
    }

    /// A line for each strategy.
    fn lines(
        &self,
        suffix: &str,
        stroke: Stroke,
        points: impl Fn(&StrategyMedians) -> Vec<(f64, f64)>,
    ) -> Vec<Series> {
        let figures = self.strategies.iter().enumerate();
        figures
            .map(|(colour, figures)| Series {
                name: format!("{}{suffix}", figures.strategy),
                colour,
                stroke,
                points: points(figures),
            })
            .collect()
    }

    /// Writes the charts into a folder.
    pub(crate) fn write_svgs(&self, folder: &Path) -> Result<(), BenchError> {
        for (name, chart) in self.charts() {
            let path = folder.join(format!("{name}.svg"));
            write_file(&path, &chart.svg(Embedding::File))?;
        }
        Ok(())
    }

    /// The whole comparison as one page.
    pub(crate) fn html(&self) -> String {
        let mut body = format!("<p class=\"load\">{}</p>\n", self.conditions());
        for (heads, lines) in self.tables() {
            body += &html_table(&heads, &lines);
        }
        for fault in &self.faults {
            let fault = escaped(fault);
            body += "<pre class=\"faulty\">";
            body += &fault;
            body += "</pre>\n";
        }
        for (_, chart) in self.charts() {
            body += &chart.svg(Embedding::Page);
        }
        page("directory against router", &body)
    }

    fn conditions(&self) -> String {
        let rounds = self.rounds;
        let cpus = if self.cpus_apart {
            "the load generator on a CPU of its own"
        } else {
            "the load generator on the same CPUs"
        };
        format!("medians of {rounds} rounds, {cpus}")
    }

    fn tables(&self) -> [Table; 3] {
        let [directory, router] = &*self.strategies else {
            unreachable!("two strategies");
        };
        [
            by_pairs(directory, router),
            beside_floods(directory, router),
            slow_reader(&self.strategies),
        ]
    }
}

/// A table's heads and lines.
type Table = (Vec<&'static str>, Vec<Vec<String>>);

fn by_pairs(directory: &StrategyMedians, router: &StrategyMedians) -> Table {
    let rate = |point: &ByPairs| {
        let rate = number_text(point.messages_per_second.round());
        format!("{rate}{}", if point.limited_by_bench { "*" } else { "" })
    };
    let cpu = |point: &ByPairs| format!("{:.2} µs", point.cpu_us_per_message);
    let points = directory.by_pairs.iter().zip(&router.by_pairs);
    let lines = points.map(|(directory, router)| {
        vec![
            directory.pairs.to_string(),
            rate(directory),
            rate(router),
            cpu(directory),
            cpu(router),
            time_text(directory.p99_us),
            time_text(router.p99_us),
        ]
    });
    let heads = vec![
        "pairs",
        "msgs/s, directory",
        "router",
        "CPU/msg, directory",
        "router",
        "p99, directory",
        "router",
    ];
    (heads, lines.collect())
}

fn beside_floods(directory: &StrategyMedians, router: &StrategyMedians) -> Table {
    let points = directory.beside_floods.iter().zip(&router.beside_floods);
    let lines = points.map(|(directory, router)| {
        vec![
            directory.floods.to_string(),
            time_text(directory.p50_us),
            time_text(router.p50_us),
            time_text(directory.p99_us),
            time_text(router.p99_us),
        ]
    });
    let heads = vec![
        "floods beside a quiet pair",
        "its p50, directory",
        "router",
        "its p99, directory",
        "router",
    ];
    (heads, lines.collect())
}

fn slow_reader(strategies: &[StrategyMedians]) -> Table {
    let lines = strategies.iter().map(|figures| {
        let slow = &figures.slow_reader;
        vec![
            figures.strategy.to_owned(),
            time_text(slow.p50_before_us),
            time_text(slow.p50_during_us),
            time_text(slow.p99_before_us),
            time_text(slow.p99_during_us),
            number_text(slow.rate_during_to_before),
            format!("{} B", number_text(slow.server_memory_growth_bytes)),
        ]
    });
    let heads = vec![
        "one does not read",
        "p50 before",
        "meanwhile",
        "p99 before",
        "meanwhile",
        "rate kept",
        "memory grows",
    ];
    (heads, lines.collect())
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "directory against router: {}", self.conditions())?;
        for (heads, lines) in self.tables() {
            writeln!(f)?;
            let width = |column: usize| {
                let cells = lines.iter().map(|cells| cells[column].chars().count());
                cells.chain([heads[column].len()]).max().unwrap_or(0)
            };
            let widths: Vec<_> = (0..heads.len()).map(width).collect();
            let mut line = |cells: &mut dyn Iterator<Item = &str>| {
                for (cell, width) in cells.zip(&widths) {
                    write!(f, "  {cell:>width$}")?;
                }
                writeln!(f)
            };
            line(&mut heads.iter().copied())?;
            for cells in &lines {
                line(&mut cells.iter().map(|cell| &**cell))?;
            }
        }
        if self.strategies.iter().any(|figures| {
            let points = &figures.by_pairs;
            points.iter().any(|point| point.limited_by_bench)
        }) {
            writeln!(
                f,
                "\n  note: * is the limit of this load generator, not of the server: it can do more"
            )?;
        }
        match &*self.faults {
            [] => writeln!(f, "\n  ok: every message of every round is accounted for"),
            faults => faults
                .iter()
                .try_for_each(|fault| writeln!(f, "\n  {fault}")),
        }
    }
}
