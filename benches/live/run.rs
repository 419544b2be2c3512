//! Which run a line belongs to: programs that one `make bench` starts are told the same name.

/// `BENCH_RUN`, or a name of this process alone.
pub fn id() -> String {
    let own = || format!("{}-{}", jiff::Timestamp::now().as_second(), std::process::id());
    std::env::var("BENCH_RUN").unwrap_or_else(|_| own())
}
