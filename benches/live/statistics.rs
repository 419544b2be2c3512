//! Order statistics: nothing is assumed about how measurements are spread.

/// What is told of some measurements.
pub struct Spread {
    pub count: usize,
    pub min: f64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// Of at least one measurement. A percentile is the smallest value that so many are not above.
pub fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_by(f64::total_cmp);
    let count = values.len();
    let percentile = |percent: usize| values[(count * percent).div_ceil(100).max(1) - 1];
    Spread { count, min: values[0], p50: percentile(50), p99: percentile(99), max: percentile(100) }
}
