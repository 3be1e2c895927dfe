//! Line charts as SVG: inside a page, or as a file that is legible on a light and on a dark background.

use std::fmt::Write as _;

use crate::number::{number_text, rounded};

/// A line chart.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<Series>,
    /// Values on the x axis that have a name.
    pub(crate) marks: Vec<(f64, String)>,
}

/// One line of a chart: its points, from left to right.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) colour: usize,
    pub(crate) stroke: Stroke,
    pub(crate) points: Vec<(f64, f64)>,
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stroke {
    Solid,
    Dashed,
}

/// An axis: its label, and how its values are placed and written.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    pub(crate) label: &'static str,
    pub(crate) scale: Scale,
    pub(crate) unit: Unit,
}

/// How values are placed along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From zero.
    Linear,
    /// From one power of ten to another.
    Log,
    /// Logarithmic, with a tick at the value of each point.
    Each,
    /// Shares of messages that took longer: a half, a tenth, a hundredth, … from left to right.
    Rarity,
}

/// How values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Microseconds, in the unit that suits.
    Time,
    /// Thousands and millions.
    Count,
}

/// Where a chart is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Embedding {
    /// In a page, which has the style already.
    Page,
    /// In a file of its own, with the style and a background.
    File,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 48.0;
const LEGEND_LINE: f64 = 18.0;

/// The style of all charts: colours with enough contrast on a light and on a dark background. Lines of one
/// colour differ by their dashes.
pub(crate) const STYLE: &str = "\
:root{--card:#ffffff;--ink:#1f2328;--dim:#59636e;--grid:#d1d9e0;\
--c0:#0969da;--c1:#bc4c00;--c2:#1a7f37;--c3:#8250df;--c4:#bf3989;--c5:#57606a;--c6:#9a6700;--c7:#0e7c86}\
@media (prefers-color-scheme:dark){:root{--card:#0d1117;--ink:#e6edf3;--dim:#9198a1;--grid:#3d444d;\
--c0:#58a6ff;--c1:#f0883e;--c2:#3fb950;--c3:#bc8cff;--c4:#f778ba;--c5:#8b949e;--c6:#d29922;--c7:#39c5cf}}\
.chart text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:var(--dim)}\
.chart .title{font-size:15px;font-weight:600;fill:var(--ink)}\
.chart .card{fill:var(--card)}.chart .grid{stroke:var(--grid);stroke-width:1}\
.chart .mark{stroke:var(--dim);stroke-width:1;stroke-dasharray:2 3}\
.chart .line{fill:none;stroke-width:2;stroke-linejoin:round}.chart .dashed{stroke-dasharray:7 4}\
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}\
.c4{stroke:var(--c4)}.c5{stroke:var(--c5)}.c6{stroke:var(--c6)}.c7{stroke:var(--c7)}";

const COLOURS: usize = 8;

impl Chart {
    pub(crate) fn svg(&self, embedding: Embedding) -> String {
        let plot = Plot::new(self);
        let mut svg = String::new();
        let title = escaped(&self.title);
        let height = plot.bottom + BOTTOM;
        write!(
            svg,
            "<svg class=\"chart\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             role=\"img\" aria-label=\"{title}\">"
        )
        .expect(WRITE_TO_STRING);
        if embedding == Embedding::File {
            let radius = 6;
            write!(
                svg,
                "<style>{STYLE}</style>\
                 <rect class=\"card\" width=\"{WIDTH}\" height=\"{height}\" rx=\"{radius}\"/>"
            )
            .expect(WRITE_TO_STRING);
        }
        text(&mut svg, (LEFT, 22.0), Anchor::Start, "title", &title);
        self.legend(&mut svg);
        self.grid(&mut svg, &plot);
        for line in &self.lines {
            let points: Vec<_> = line
                .points
                .iter()
                .map(|point| plot.position(*point))
                .collect();
            let colour = line.colour % COLOURS;
            let dashed = match line.stroke {
                Stroke::Solid => "",
                Stroke::Dashed => " dashed",
            };
            let path = points.join(" ");
            write!(
                svg,
                "<polyline class=\"line c{colour}{dashed}\" points=\"{path}\"/>"
            )
            .expect(WRITE_TO_STRING);
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// The position of each entry of the legend, and the y position below all of them.
    fn legend_places(&self) -> (Vec<(f64, f64)>, f64) {
        /// The mean width of a character.
        const CHARACTER: f64 = 6.6;
        const SWATCH: f64 = 44.0;
        let (mut x, mut y) = (LEFT, TOP);
        let mut places = Vec::new();
        for line in &self.lines {
            let characters = u32::try_from(line.name.chars().count()).unwrap_or(u32::MAX);
            let width = SWATCH + f64::from(characters) * CHARACTER;
            if x > LEFT && x + width > WIDTH - RIGHT {
                (x, y) = (LEFT, y + LEGEND_LINE);
            }
            places.push((x, y));
            x += width;
        }
        (places, y + LEGEND_LINE)
    }

    fn legend(&self, svg: &mut String) {
        let (places, _) = self.legend_places();
        for (line, (x, y)) in self.lines.iter().zip(places) {
            let colour = line.colour % COLOURS;
            let dashed = match line.stroke {
                Stroke::Solid => "",
                Stroke::Dashed => " dashed",
            };
            let (end, middle) = (x + 22.0, y - 4.0);
            write!(
                svg,
                "<path class=\"line c{colour}{dashed}\" d=\"M{x} {middle}H{end}\"/>"
            )
            .expect(WRITE_TO_STRING);
            text(svg, (x + 28.0, y), Anchor::Start, "", &escaped(&line.name));
        }
    }

    fn grid(&self, svg: &mut String, plot: &Plot) {
        let right = WIDTH - RIGHT;
        for (value, label) in &plot.y.ticks {
            let y = rounded(plot.y(*value), 1);
            write!(svg, "<path class=\"grid\" d=\"M{LEFT} {y}H{right}\"/>").expect(WRITE_TO_STRING);
            text(svg, (LEFT - 8.0, y + 4.0), Anchor::End, "", label);
        }
        for (value, label) in &plot.x.ticks {
            let x = rounded(plot.x(*value), 1);
            text(svg, (x, plot.bottom + 18.0), Anchor::Middle, "", label);
        }
        for (index, (value, name)) in (0_u8..).zip(&self.marks) {
            let x = rounded(plot.x(*value), 1);
            let (top, bottom) = (plot.top, plot.bottom);
            write!(svg, "<path class=\"mark\" d=\"M{x} {top}V{bottom}\"/>").expect(WRITE_TO_STRING);
            // At two heights in turn, so that neighbouring names do not overlap.
            let y = top + 12.0 + f64::from(index % 2) * 14.0;
            text(svg, (x + 4.0, y), Anchor::Start, "", &escaped(name));
        }
        let middle = f64::midpoint(LEFT, right);
        text(
            svg,
            (middle, plot.bottom + 38.0),
            Anchor::Middle,
            "",
            self.x.label,
        );
        text(
            svg,
            (LEFT - 8.0, plot.top - 14.0),
            Anchor::End,
            "",
            self.y.label,
        );
    }
}

const WRITE_TO_STRING: &str = "writing to a String does not fail";

/// The area of the lines, and the axes that place values in it.
struct Plot {
    top: f64,
    bottom: f64,
    x: Span,
    y: Span,
}

/// The range of an axis on its scale, and its ticks.
struct Span {
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
}

impl Plot {
    fn new(chart: &Chart) -> Self {
        let all = || chart.lines.iter().flat_map(|line| &line.points);
        let (_, legend) = chart.legend_places();
        // Room for the label of the y axis above its highest tick.
        let top = legend + 24.0;
        Self {
            top,
            bottom: top + HEIGHT - TOP - BOTTOM - LEGEND_LINE,
            x: Span::new(&chart.x, all().map(|point| point.0).collect()),
            y: Span::new(&chart.y, all().map(|point| point.1).collect()),
        }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * self.x.share(value)
    }

    fn y(&self, value: f64) -> f64 {
        self.bottom - (self.bottom - self.top) * self.y.share(value)
    }

    fn position(&self, (x, y): (f64, f64)) -> String {
        format!("{},{}", rounded(self.x(x), 1), rounded(self.y(y), 1))
    }
}

impl Span {
    fn new(axis: &Axis, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        values.dedup();
        let least = values.first().copied().unwrap_or(0.0);
        let most = values.last().copied().unwrap_or(1.0);
        let name = |value| (value, axis.unit.name(value));
        let scale = axis.scale;
        let ticks: Vec<(f64, String)> = match scale {
            Scale::Linear => steps(most).into_iter().map(name).collect(),
            Scale::Log => {
                let low = least.max(1.0).log10().floor();
                let high = most.max(1.0).log10().ceil().max(low + 1.0);
                decades(low, high).into_iter().map(name).collect()
            }
            Scale::Each => values.iter().copied().map(name).collect(),
            Scale::Rarity => RARITIES
                .iter()
                .filter(|(share, _)| *share >= least)
                .map(|(share, name)| (*share, (*name).to_owned()))
                .collect(),
        };
        let (low, high) = match scale {
            Scale::Linear => (0.0, ticks.last().map_or(1.0, |tick| tick.0)),
            Scale::Log => (ticks[0].0.log10(), ticks[ticks.len() - 1].0.log10()),
            Scale::Each => (log_position(least), log_position(most)),
            Scale::Rarity => (0.0, -least.max(1e-9).log10()),
        };
        Self {
            scale,
            low,
            high,
            ticks,
        }
    }

    /// The position of a value along the axis, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let at = match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(1e-9).log10(),
            Scale::Each => log_position(value),
            Scale::Rarity => -value.max(1e-9).log10(),
        };
        let length = self.high - self.low;
        if length > 0.0 {
            ((at - self.low) / length).clamp(0.0, 1.0)
        } else {
            0.5
        }
    }
}

/// The position on a logarithmic axis that includes 0.
fn log_position(value: f64) -> f64 {
    (value + 1.0).log2()
}

/// Shares of messages that took longer, each with its percentile.
const RARITIES: [(f64, &str); 7] = [
    (0.5, "50%"),
    (0.1, "90%"),
    (0.01, "99%"),
    (0.001, "99.9%"),
    (0.000_1, "99.99%"),
    (0.000_01, "99.999%"),
    (0.000_001, "99.9999%"),
];

/// Round numbers from 0 to at least `most`, four to eight of them.
fn steps(most: f64) -> Vec<f64> {
    let most = if most > 0.0 { most } else { 1.0 };
    let power = 10_f64.powf((most / 4.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| most / step <= 6.0)
        .unwrap_or(10.0 * power);
    let mut ticks = vec![0.0];
    while ticks[ticks.len() - 1] < most {
        let next = ticks[ticks.len() - 1] + step;
        ticks.push(rounded(next, 6));
    }
    ticks
}

fn decades(low: f64, high: f64) -> Vec<f64> {
    let mut ticks = Vec::new();
    let mut power = low;
    while power <= high {
        ticks.push(10_f64.powf(power).round());
        power += 1.0;
    }
    ticks
}

impl Unit {
    fn name(self, value: f64) -> String {
        match self {
            Self::Time if value < 1000.0 => format!("{value} µs"),
            Self::Time if value < 1e6 => format!("{} ms", value / 1e3),
            Self::Time => format!("{} s", value / 1e6),
            Self::Count if value >= 1e6 => format!("{}M", rounded(value / 1e6, 2)),
            Self::Count if value >= 1e4 => format!("{}k", rounded(value / 1e3, 2)),
            // Ticks below ten may be decimal fractions, shown without trailing zeros.
            Self::Count if value < 10.0 => rounded(value, 6).to_string(),
            Self::Count => number_text(value),
        }
    }
}

#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: Anchor, class: &str, text: &str) {
    let anchor = match anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    let (x, y) = (rounded(x, 1), rounded(y, 1));
    write!(
        svg,
        "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{text}</text>"
    )
    .expect(WRITE_TO_STRING);
}

/// The text with the characters escaped that XML reserves.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(x: Scale, y: Scale, points: Vec<(f64, f64)>) -> Chart {
        let axis = |scale| Axis {
            label: "",
            scale,
            unit: Unit::Count,
        };
        Chart {
            title: "a < b".to_owned(),
            x: axis(x),
            y: axis(y),
            lines: vec![Series {
                name: "one".to_owned(),
                colour: 9,
                stroke: Stroke::Dashed,
                points,
            }],
            marks: vec![(1.0, "here".to_owned())],
        }
    }

    #[test]
    fn points_lie_within_the_axes_in_their_order() {
        for (x, y) in [
            (Scale::Linear, Scale::Linear),
            (Scale::Each, Scale::Log),
            (Scale::Linear, Scale::Log),
        ] {
            let chart = chart(x, y, vec![(0.0, 3.0), (1.0, 40.0), (8.0, 900.0)]);
            let plot = Plot::new(&chart);
            let places: Vec<_> = chart.lines[0]
                .points
                .iter()
                .map(|(x, y)| (plot.x(*x), plot.y(*y)))
                .collect();
            assert!(
                places.is_sorted_by(|a, b| a.0 < b.0 && a.1 > b.1),
                "{places:?}"
            );
            let within = |(x, y): &(f64, f64)| {
                (LEFT..=WIDTH - RIGHT).contains(x) && (plot.top..=plot.bottom).contains(y)
            };
            assert!(places.iter().all(within), "{places:?}");
        }
    }

    #[test]
    fn rarer_is_further_right() {
        let chart = chart(Scale::Rarity, Scale::Log, vec![(1.0, 10.0), (0.001, 99.0)]);
        let plot = Plot::new(&chart);
        assert!((plot.x(1.0) - LEFT).abs() < 1e-6);
        assert!((plot.x(0.001) - (WIDTH - RIGHT)).abs() < 1e-6);
        assert_eq!(plot.x.ticks.last().unwrap().1, "99.9%");
    }

    #[test]
    fn ticks_are_round_numbers_that_reach_beyond_the_values() {
        assert_eq!(steps(4_152_353.0), [0.0, 1e6, 2e6, 3e6, 4e6, 5e6]);
        assert_eq!(steps(0.24), [0.0, 0.05, 0.1, 0.15, 0.2, 0.25]);
        assert_eq!(decades(1.0, 3.0), [10.0, 100.0, 1000.0]);
        assert_eq!(Unit::Count.name(4e6), "4M");
        assert_eq!(Unit::Count.name(250_000.0), "250k");
        assert_eq!(Unit::Time.name(100_000.0), "100 ms");
    }

    #[test]
    fn a_file_has_its_style_and_a_page_has_not() {
        let chart = chart(Scale::Linear, Scale::Linear, vec![(0.0, 1.0), (1.0, 2.0)]);
        let (file, page) = (chart.svg(Embedding::File), chart.svg(Embedding::Page));
        assert!(file.contains("prefers-color-scheme:dark") && file.contains("class=\"card\""));
        assert!(!page.contains("<style>"));
        for svg in [file, page] {
            assert!(
                svg.contains("a &lt; b") && svg.contains("class=\"line c1 dashed\""),
                "{svg}"
            );
        }
    }
}
