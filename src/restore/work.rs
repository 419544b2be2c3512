//! Threads of a restore: how they are told to stop, and items worked on by several of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::archive::Archive;
use crate::error::{Error, ErrorKind, Result, lock};
use crate::host::conn::Connection;
use crate::host::guard::guard;
use crate::registry;

/// Whether anybody still waits for a restore. Once set it stays set.
#[derive(Default)]
pub struct Stop {
    is_set: AtomicBool,
    waits: Mutex<Waits>,
}

/// What a restore may be waiting for.
#[derive(Default)]
struct Waits {
    archive: Option<Arc<Archive>>,
    connection: Option<Arc<Connection>>,
}

impl Stop {
    /// An error once the restore is to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_set.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Stopped, "interrupted"));
        }
        Ok(())
    }

    /// Makes the restore stop: whatever it waits for ends.
    pub fn set(&self) {
        self.is_set.store(true, Ordering::Release);
        let waits = lock(&self.waits);
        if let Some(archive) = &waits.archive {
            archive.store().close();
        }
        if let Some(connection) = &waits.connection {
            connection.interrupt();
        }
    }

    /// From now on a stop closes the archive's store.
    pub fn reads(&self, archive: &Arc<Archive>) -> Result<()> {
        lock(&self.waits).archive = Some(Arc::clone(archive));
        self.check()
    }

    /// A stop interrupts the connection, until it is taken away again.
    pub fn runs(&self, connection: Option<&Arc<Connection>>) -> Result<()> {
        lock(&self.waits).connection = connection.map(Arc::clone);
        self.check()
    }
}

/// Works on `jobs` on up to `threads` threads and hands the results to `take` in the jobs' order,
/// no more than two for each thread being held. Ends at the first error in that order.
pub fn in_order<J, T>(
    threads: usize,
    jobs: Vec<J>,
    work: impl Fn(J) -> Result<T> + Send + Sync + 'static,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<()>
where
    J: Send + 'static,
    T: Send + 'static,
{
    let total = jobs.len();
    let (give, given) = bounded::<(usize, J)>(2 * threads);
    let (report, results) = unbounded::<(usize, Result<T>)>();
    let work = Arc::new(work);
    let mut workers = Vec::new();
    for _ in 0..threads.min(total) {
        let (given, report, work) = (given.clone(), report.clone(), Arc::clone(&work));
        let body = move || run(&given, &report, &*work);
        workers.push(registry::spawn_worker("litestream-restore", body)?);
    }
    drop((given, report));
    let mut jobs = jobs.into_iter().enumerate();
    let (mut sent, mut early) = (0, BTreeMap::new());
    let outcome = (0..total).try_for_each(|next| {
        loop {
            while sent - next < 2 * threads
                && let Some(job) = jobs.next()
            {
                give.send(job).map_err(|_| died())?;
                sent += 1;
            }
            if let Some(result) = early.remove(&next) {
                return take(result?);
            }
            let (at, result) = results.recv().map_err(|_| died())?;
            early.insert(at, result);
        }
    });
    drop(give);
    workers.into_iter().for_each(registry::join);
    outcome
}

fn run<J, T>(
    given: &Receiver<(usize, J)>,
    report: &Sender<(usize, Result<T>)>,
    work: &impl Fn(J) -> Result<T>,
) {
    for (at, job) in given {
        let result = guard("restore", || work(job));
        if report.send((at, result)).is_err() {
            return;
        }
    }
}

fn died() -> Error {
    Error::bug("a thread of the restore ended early")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order() {
        let mut seen = Vec::new();
        let work = |job: u64| {
            std::thread::sleep(std::time::Duration::from_millis(job * 7 % 5));
            Ok(job * 2)
        };
        in_order(3, (0..50).collect(), work, |result| {
            seen.push(result);
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, (0..50).map(|job| job * 2).collect::<Vec<_>>());
        in_order(3, Vec::<u64>::new(), Ok, |_: u64| Ok(())).unwrap();
    }

    #[test]
    fn the_first_error_ends_it() {
        let work = |job: u64| match job {
            5 => Err(Error::corrupt("five")),
            7 => panic!("on purpose"),
            _ => Ok(job),
        };
        let mut last = None;
        let result = in_order(4, (0..1000).collect(), work, |result| {
            last = Some(result);
            Ok(())
        });
        assert_eq!((result.unwrap_err().to_string().as_str(), last), ("five", Some(4)));
        let result = in_order(2, vec![7], work, |_| Ok(()));
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Bug);
    }
}
