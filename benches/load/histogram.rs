//! Millions of durations in a few kilobytes: 16 buckets for each power of two, so a percentile is
//! right within 6 %.

use std::time::Duration;

use serde_json::{Value, json};

const BUCKETS: usize = 16 * 64;

pub struct Histogram {
    counts: Vec<u64>,
    pub max_us: u64,
}

impl Histogram {
    pub fn new() -> Histogram {
        Histogram { counts: vec![0; BUCKETS], max_us: 0 }
    }

    pub fn add(&mut self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap();
        self.counts[bucket(us)] += 1;
        self.max_us = self.max_us.max(us);
    }

    pub fn merge(&mut self, other: &Value) {
        for pair in other["counts"].as_array().unwrap() {
            let at = usize::try_from(pair[0].as_u64().unwrap()).unwrap();
            self.counts[at] += pair[1].as_u64().unwrap();
        }
        self.max_us = self.max_us.max(other["max_us"].as_u64().unwrap());
    }

    pub fn json(&self) -> Value {
        let counts = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        let counts: Vec<Value> = counts.map(|(at, count)| json!([at, count])).collect();
        json!({"counts": counts, "max_us": self.max_us})
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How many took at least so long, to the next bucket.
    pub fn above(&self, us: u64) -> u64 {
        self.counts[bucket(us)..].iter().sum()
    }

    /// The smallest bucket's start that so many of a million are not above.
    pub fn part(&self, of_a_million: u64) -> u64 {
        let wanted = (self.count() * of_a_million).div_ceil(1_000_000);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return start(at);
            }
        }
        self.max_us
    }
}

fn bucket(us: u64) -> usize {
    if us < 16 {
        return usize::try_from(us).unwrap();
    }
    let power = us.ilog2();
    let part = (us >> (power - 4)) & 15;
    16 * (power as usize - 3) + usize::try_from(part).unwrap()
}

fn start(bucket: usize) -> u64 {
    if bucket < 16 {
        return bucket as u64;
    }
    let (power, part) = (bucket / 16 + 3, bucket as u64 % 16);
    (16 + part) << (power - 4)
}
