//! Work shared by a few threads that live as long as it does.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::error::{Error, Result};
use crate::host::guard::guard;
use crate::registry;

/// Works on `jobs` on up to `threads` threads and hands the results to `take` in the jobs' order,
/// no more than two for each thread being held. Ends at the first error in that order. `name` is
/// the threads'.
pub fn in_order<J, T>(
    name: &'static str,
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
        let body = move || run(name, &given, &report, &*work);
        workers.push(registry::spawn_worker(name, body)?);
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
    name: &str,
    given: &Receiver<(usize, J)>,
    report: &Sender<(usize, Result<T>)>,
    work: &impl Fn(J) -> Result<T>,
) {
    for (at, job) in given {
        let result = guard(name, || work(job));
        if report.send((at, result)).is_err() {
            return;
        }
    }
}

fn died() -> Error {
    Error::bug("a thread ended early")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn results_come_in_order() {
        let mut seen = Vec::new();
        let work = |job: u64| {
            std::thread::sleep(std::time::Duration::from_millis(job * 7 % 5));
            Ok(job * 2)
        };
        in_order("test", 3, (0..50).collect(), work, |result| {
            seen.push(result);
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, (0..50).map(|job| job * 2).collect::<Vec<_>>());
        in_order("test", 3, Vec::<u64>::new(), Ok, |_: u64| Ok(())).unwrap();
    }

    #[test]
    fn the_first_error_ends_it() {
        let work = |job: u64| match job {
            5 => Err(Error::corrupt("five")),
            7 => panic!("on purpose"),
            _ => Ok(job),
        };
        let mut last = None;
        let result = in_order("test", 4, (0..1000).collect(), work, |result| {
            last = Some(result);
            Ok(())
        });
        assert_eq!((result.unwrap_err().to_string().as_str(), last), ("five", Some(4)));
        let result = in_order("test", 2, vec![7], work, |_| Ok(()));
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Bug);
    }
}
