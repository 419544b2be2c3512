//! The numbers of a captured database, for `/metrics`, `/healthz` and `/status`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::archives::Archives;
use super::rows;
use crate::capture::{Capture, Counters, State};
use crate::error::Result;
use crate::files::with_suffix;
use crate::pages::Frozen;
use crate::pos::Pos;
use crate::serve::{Metric, Report, Status, count};

/// What a captured database tells the server about itself.
pub struct Numbers {
    capture: Arc<Capture>,
    archives: Arc<Archives>,
}

impl Numbers {
    /// Of this capture and what archives it.
    pub fn new(capture: Arc<Capture>, archives: Arc<Archives>) -> Numbers {
        Numbers { capture, archives }
    }
}

impl Report for Numbers {
    fn metrics(&self) -> Vec<Metric> {
        let counters = self.capture.counters();
        let read = |counter: &AtomicU64| count(counter.load(Ordering::Relaxed));
        let totals = self.capture.log().totals();
        let size = |path: &std::path::Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
        let wal = with_suffix(self.capture.path(), "-wal");
        let pos = self.capture.log().position().unwrap_or_default();
        let mut metrics = self.archives.metrics();
        metrics.extend(gate(counters));
        metrics.extend([
            Metric::gauge(
                "litestream_db_size",
                "Size of the database file, in bytes.",
                count(size(self.capture.path())),
            ),
            Metric::gauge("litestream_wal_size", "Size of the WAL, in bytes.", count(size(&wal))),
            Metric::counter(
                "litestream_total_wal_bytes",
                "WAL bytes captured.",
                read(&counters.wal_bytes),
            ),
            Metric::gauge(
                "litestream_shadow_wal_index",
                "Index of the WAL being captured.",
                count(pos.index.get()),
            ),
            Metric::gauge(
                "litestream_shadow_wal_size",
                "Bytes of that index captured.",
                count(pos.offset.get()),
            ),
            Metric::gauge(
                "litestream_log_size",
                "Bytes of all snapshots and segments beside the database.",
                count(totals.size),
            ),
            Metric::counter(
                "litestream_commits_total",
                "Commits captured.",
                read(&counters.commits),
            ),
            Metric::counter(
                "litestream_checkpoint_count",
                "Checkpoints made.",
                read(&counters.checkpoints),
            ),
            Metric::counter(
                "litestream_capture_error_count",
                "Times capture started again after an error.",
                read(&counters.errors),
            ),
        ]);
        metrics
    }

    fn position(&self) -> Result<Option<Pos>> {
        self.capture.position().map(Some)
    }

    fn freeze(&self) -> Result<Option<(Frozen, Pos)>> {
        self.capture.freeze().map(Some)
    }

    fn status(&self) -> Status {
        rows::status(self.capture.path())
    }

    fn error(&self) -> Option<String> {
        match self.capture.status() {
            (State::Running, _, _) => None,
            (_, error, _) => error,
        }
    }
}

/// How writers were held up.
fn gate(counters: &Counters) -> [Metric; 7] {
    let read = |counter: &AtomicU64| count(counter.load(Ordering::Relaxed));
    let total = |name, help, counter| Metric::counter(name, help, read(counter));
    let seconds = |name, help, micros| Metric::gauge(name, help, read(micros) / 1e6);
    [
        total(
            "litestream_gate_count",
            "Times transactions were kept from beginning for the end of a checkpoint.",
            &counters.gates,
        ),
        Metric::counter(
            "litestream_gate_seconds_total",
            "Time transactions were kept from beginning.",
            read(&counters.gate_us) / 1e6,
        ),
        seconds(
            "litestream_gate_seconds_max",
            "Longest time transactions were kept from beginning.",
            &counters.gate_us_max,
        ),
        seconds(
            "litestream_gate_last_seconds",
            "How long transactions were kept from beginning the last time.",
            &counters.gate_us_last,
        ),
        seconds(
            "litestream_gate_last_timestamp_seconds",
            "When that ended, in seconds since 1970.",
            &counters.gate_opened_us,
        ),
        total(
            "litestream_gate_overdue_count",
            "Times that ended before the checkpoint did, which took too long.",
            &counters.gates_overdue,
        ),
        total(
            "litestream_gate_missed_count",
            "Times transactions could not be kept from beginning: one was always running.",
            &counters.gates_missed,
        ),
    ]
}
