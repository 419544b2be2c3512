//! Numbers in the Prometheus text format, version 0.0.4.
//!
//! Each database is a label `db`; a name's `HELP` and `TYPE` lines come once, before its samples.

use std::collections::BTreeMap;
use std::fmt::Write;

/// How a number moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// It only grows, until the process ends.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its name, `litestream_` first and the unit last.
    pub name: &'static str,
    /// What it counts, one line.
    pub help: &'static str,
    /// How it moves.
    pub kind: MetricKind,
    /// Labels besides the database.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: f64,
}

impl Metric {
    /// A number that only grows.
    pub fn counter(name: &'static str, help: &'static str, value: f64) -> Self {
        Metric { name, help, kind: MetricKind::Counter, labels: Vec::new(), value }
    }

    /// A number that goes up and down.
    pub fn gauge(name: &'static str, help: &'static str, value: f64) -> Self {
        Metric { kind: MetricKind::Gauge, ..Metric::counter(name, help, value) }
    }

    /// The same with one more label.
    #[must_use]
    pub fn with(mut self, label: &'static str, value: impl Into<String>) -> Self {
        self.labels.push((label, value.into()));
        self
    }
}

/// An integer as a metric's value; exact up to 2^53.
pub fn count(number: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "the format holds floats")]
    let value = number as f64;
    value
}

/// The text of all metrics.
pub(crate) fn render(metrics: &[Metric]) -> String {
    let mut by_name: BTreeMap<&str, Vec<&Metric>> = BTreeMap::new();
    for metric in metrics {
        by_name.entry(metric.name).or_default().push(metric);
    }
    let mut out = String::new();
    for (name, samples) in by_name {
        let Some(first) = samples.first() else { continue };
        let kind = match first.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        };
        let help = first.help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for metric in samples {
            out.push_str(name);
            for (at, (label, value)) in metric.labels.iter().enumerate() {
                let before = if at == 0 { '{' } else { ',' };
                let _ = write!(out, "{before}{label}=\"{}\"", escape(value));
            }
            let after = if metric.labels.is_empty() { "" } else { "}" };
            let _ = writeln!(out, "{after} {}", number(metric.value));
        }
    }
    out
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() }
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_grouped_and_escaped() {
        let metrics = [
            Metric::gauge("litestream_b", "second", 0.5).with("db", "/a\"b\\c\nd").with("x", "y"),
            Metric::counter("litestream_a", "first\nline", 3.0),
            Metric::gauge("litestream_b", "second", f64::INFINITY),
            Metric::gauge("litestream_b", "second", f64::NAN),
            Metric::gauge("litestream_b", "second", count(1 << 40)),
        ];
        let expected = concat!(
            "# HELP litestream_a first\\nline\n# TYPE litestream_a counter\nlitestream_a 3\n",
            "# HELP litestream_b second\n# TYPE litestream_b gauge\n",
            "litestream_b{db=\"/a\\\"b\\\\c\\nd\",x=\"y\"} 0.5\n",
            "litestream_b +Inf\nlitestream_b NaN\nlitestream_b 1099511627776\n",
        );
        assert_eq!(render(&metrics), expected);
    }
}
