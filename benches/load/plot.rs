//! A plot as SVG: both axes logarithmic, a line for each series, and under it what the slopes are.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 480.0;
/// Left, top, right, bottom of the axes.
const EDGES: [f64; 4] = [80.0, 40.0, 740.0, 420.0];
const COLORS: [&str; 5] = ["#1b5fa8", "#c8461e", "#2c8a3c", "#7a3fa0", "#8a6d1a"];

/// One line.
pub struct Series {
    /// With its unit.
    pub name: &'static str,
    pub points: Vec<(f64, f64)>,
    /// The power of x it may grow with: 0 is not at all, 1 is in proportion.
    pub may_grow: f64,
}

impl Series {
    pub fn new(name: &'static str, may_grow: f64) -> Series {
        Series { name, points: Vec::new(), may_grow }
    }

    /// The power of x each step grew with.
    pub fn slopes(&self) -> Vec<f64> {
        let steps = self.points.windows(2);
        steps.map(|pair| (pair[1].1 / pair[0].1).ln() / (pair[1].0 / pair[0].0).ln()).collect()
    }
}

/// Powers of ten around some values, which are above 0.
fn decades(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut least, mut most) = (f64::MAX, f64::MIN);
    for value in values {
        (least, most) = (least.min(value.log10().floor()), most.max(value.log10().ceil()));
    }
    (least, most.max(least + 1.0))
}

/// The file's text.
pub fn svg(title: &str, x_name: &str, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|one| &one.points);
    let (x, y) = (decades(points().map(|at| at.0)), decades(points().map(|at| at.1)));
    let [left, top, right, bottom] = EDGES;
    let across = |value: f64| left + (value.log10() - x.0) / (x.1 - x.0) * (right - left);
    let up = |value: f64| bottom - (value.log10() - y.0) / (y.1 - y.0) * (bottom - top);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{left}\" y=\"24\" font-size=\"16\">{title}</text>\n"
    );
    let mut line = |from: (f64, f64), to: (f64, f64), label: (f64, f64), anchor, value: f64| {
        writeln!(
            text,
            "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{value}</text>",
            from.0, from.1, to.0, to.1, label.0, label.1
        )
        .unwrap();
    };
    let mut power = x.0;
    while power <= x.1 {
        let value = 10_f64.powf(power);
        let at = across(value);
        line((at, top), (at, bottom), (at, bottom + 18.0), "middle", value);
        power += 1.0;
    }
    power = y.0;
    while power <= y.1 {
        let value = 10_f64.powf(power);
        let at = up(value);
        line((left, at), (right, at), (left - 8.0, at + 4.0), "end", value);
        power += 1.0;
    }
    writeln!(text, "<text x=\"{right}\" y=\"458\" text-anchor=\"end\">{x_name}</text>").unwrap();
    for (number, (one, color)) in series.iter().zip(COLORS).enumerate() {
        let mut path = String::new();
        for (at, value) in &one.points {
            let (at, value) = (across(*at), up(*value));
            write!(path, "{}{at:.1} {value:.1}", if path.is_empty() { "M" } else { "L" }).unwrap();
            writeln!(text, "<circle cx=\"{at:.1}\" cy=\"{value:.1}\" r=\"3\" fill=\"{color}\"/>")
                .unwrap();
        }
        writeln!(
            text,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{color}\">{}</text>",
            left + 12.0,
            top + 18.0 + 18.0 * number as f64,
            one.name
        )
        .unwrap();
    }
    text + "</svg>\n"
}
