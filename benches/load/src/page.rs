//! A report as one HTML page with charts. The page loads nothing from elsewhere.

use std::fmt::Write as _;

use crate::chart::{Axis, Chart, Embedding, STYLE, Scale, Series, Stroke, Unit, escaped};
use crate::engine::TICK;
use crate::number::float;
use crate::outcome::{Outcome, Row, RunReport, Timeline};
use crate::table;

/// The style of the text around the charts.
const PAGE_STYLE: &str = "\
body{margin:2rem auto;max-width:60rem;padding:0 1rem;font:15px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif;\
background:var(--card);color:var(--ink)}h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.5rem}\
.load,.note,footer{color:var(--dim)}table{border-collapse:collapse;margin:.8rem 0;font-variant-numeric:tabular-nums}\
th,td{padding:.2rem .7rem;text-align:right;border-bottom:1px solid var(--grid);font-weight:400}\
th{color:var(--dim)}th:first-child,td:first-child{text-align:left}.scroll{overflow-x:auto}\
.chart{width:100%;height:auto;margin:.6rem 0}.ok{color:var(--c2)}.faulty{color:var(--c1);font-weight:600}\
pre{white-space:pre-wrap}";

/// A page with this title and body.
pub(crate) fn page(title: &str, body: &str) -> String {
    let (title, version) = (escaped(title), env!("CARGO_PKG_VERSION"));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
         <style>{STYLE}{PAGE_STYLE}</style>\n<h1>{title}</h1>\n{body}\
         <footer>switchboard bench {version}</footer>\n</html>\n"
    )
}

impl RunReport {
    /// The whole report as one page.
    pub(crate) fn html(&self) -> String {
        let body: String = self.outcomes.iter().map(section).collect();
        page(&format!("{} measured", self.url), &body)
    }
}

fn section(outcome: &Outcome) -> String {
    let mut html = format!(
        "<section>\n<h2>{}</h2>\n<p class=\"load\">{}</p>\n",
        outcome.scenario,
        escaped(&outcome.load)
    );
    html += &rows(&outcome.rows);
    html += &facts(outcome);
    for note in &outcome.notes {
        writeln!(html, "<p class=\"note\">{}</p>", escaped(note)).expect(WRITE_TO_STRING);
    }
    let class = if outcome.check.ok { "ok" } else { "faulty" };
    let verdict = escaped(&outcome.check.to_string());
    writeln!(html, "<pre class=\"{class}\">{verdict}</pre>").expect(WRITE_TO_STRING);
    html += &latency(outcome).svg(Embedding::Page);
    html += &throughput(&outcome.timelines).svg(Embedding::Page);
    html + "</section>\n"
}

const WRITE_TO_STRING: &str = "writing to a String does not fail";

/// A table with a row of heads.
pub(crate) fn html_table(heads: &[&str], lines: &[Vec<String>]) -> String {
    let line = |cells: &mut dyn Iterator<Item = &str>, tag: &str| {
        let mut line = String::from("<tr>");
        for cell in cells {
            let cell = escaped(cell);
            write!(line, "<{tag}>{cell}</{tag}>").expect(WRITE_TO_STRING);
        }
        line + "</tr>\n"
    };
    let mut html = String::from("<div class=\"scroll\"><table>\n");
    html += &line(&mut heads.iter().copied(), "th");
    for cells in lines {
        html += &line(&mut cells.iter().map(|cell| &**cell), "td");
    }
    html + "</table></div>\n"
}

fn rows(rows: &[Row]) -> String {
    let heads = [
        "",
        "msgs/s",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "max",
        "server CPU",
        "cores",
        "bench",
    ];
    let lines: Vec<_> = rows.iter().map(|row| table::cells(row).to_vec()).collect();
    html_table(&heads, &lines)
}

fn facts(outcome: &Outcome) -> String {
    let lines: Vec<_> = outcome
        .facts
        .iter()
        .map(|fact| vec![fact.name.replace('_', " "), table::value(fact)])
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    html_table(&["", ""], &lines)
}

/// The latencies of all rows as percentile curves.
fn latency(outcome: &Outcome) -> Chart {
    let rows = outcome.rows.iter().enumerate();
    latency_chart(
        "latency by percentile".to_owned(),
        rows.map(|(colour, row)| Series {
            name: row.label.clone(),
            colour,
            stroke: Stroke::Solid,
            points: row.curve.clone(),
        })
        .collect(),
    )
}

/// A chart of percentile curves.
pub(crate) fn latency_chart(title: String, lines: Vec<Series>) -> Chart {
    Chart {
        title,
        x: Axis {
            label: "share of the messages that were at most this late",
            scale: Scale::Rarity,
            unit: Unit::Count,
        },
        y: Axis {
            label: "",
            scale: Scale::Log,
            unit: Unit::Time,
        },
        lines,
        marks: Vec::new(),
    }
}

/// The ratio of two lines from which on the smaller one would be flat on a linear scale.
const FAR_APART: f64 = 8.0;

fn throughput(timelines: &[Timeline]) -> Chart {
    let tick = TICK.as_secs_f64();
    let at = |index: usize| float(index as u64) * tick;
    let line = |(colour, timeline): (usize, &Timeline)| Series {
        name: timeline.name.to_owned(),
        colour,
        stroke: Stroke::Solid,
        points: timeline
            .per_tick
            .iter()
            .enumerate()
            .map(|(index, count)| (at(index), float(*count) / tick))
            .collect(),
    };
    let lines: Vec<_> = timelines.iter().enumerate().map(line).collect();
    let peaks = lines.iter().map(|line| {
        let values = line.points.iter().map(|point| point.1);
        values.fold(1.0, f64::max)
    });
    let (least, most) = peaks.fold((f64::INFINITY, 1.0), |(least, most): (f64, f64), peak| {
        (least.min(peak), most.max(peak))
    });
    let scale = if most > FAR_APART * least {
        Scale::Log
    } else {
        Scale::Linear
    };
    let marks = timelines.first().map_or_else(Vec::new, |timeline| {
        let named = timeline.phases.iter();
        named
            .map(|(ticks, name)| (ticks * tick, (*name).to_owned()))
            .collect()
    });
    Chart {
        title: "messages a second over time".to_owned(),
        x: Axis {
            label: "seconds",
            scale: Scale::Linear,
            unit: Unit::Count,
        },
        y: Axis {
            label: "msgs/s",
            scale,
            unit: Unit::Count,
        },
        lines,
        marks,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_loads_nothing_from_elsewhere() {
        let html = page("a & b", "<p>body</p>\n");
        assert!(html.contains("<title>a &amp; b</title>"));
        for reference in ["src=", "href=", "url(", "@import", "<script", "<link"] {
            assert!(!html.contains(reference), "{reference} in {html}");
        }
    }

    #[test]
    fn lines_far_apart_are_drawn_on_a_log_scale() {
        let timeline = |name, count| Timeline {
            name,
            per_tick: vec![count; 3],
            phases: vec![(1.0, "steady")],
        };
        let near = throughput(&[timeline("a", 100), timeline("b", 300)]);
        assert_eq!(near.y.scale, Scale::Linear);
        let far = throughput(&[timeline("a", 100), timeline("b", 90_000)]);
        assert_eq!(far.y.scale, Scale::Log);
        assert_eq!(far.marks, [(0.1, "steady".to_owned())]);
        assert_eq!(far.lines[0].points[2], (0.2, 1000.0));
    }
}
