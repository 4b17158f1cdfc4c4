//! Threads that belong to one run, and work whose results are taken in order.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::sink::GoOn;

/// How often the calling thread looks up while it waits.
const TICK: Duration = Duration::from_millis(50);

/// More threads than this are a mistake.
const MAX_THREADS: usize = 1024;

/// Jobs in flight for each thread. A thread that waits for the pieces of its job takes up another
/// meanwhile, so this bounds the depth of its stack too.
const JOBS_PER_THREAD: usize = 4;

/// The threads of a run; with one thread there are none but the caller's.
pub(super) struct Pool<'a> {
    threads: Option<&'a rayon::ThreadPool>,
    stop: AtomicBool,
}

/// Called now and then by long work on the calling thread; does nothing on others.
pub(super) type Pulse<'a> = &'a dyn Fn();

/// Calls `body` with a pool of `threads` (0: as many as the machine has); they have ended when
/// this returns.
pub(super) fn with_pool<R>(threads: usize, body: impl FnOnce(&Pool<'_>) -> Result<R>) -> Result<R> {
    if threads > MAX_THREADS {
        let reason = format!("{threads} is more than {MAX_THREADS}");
        return Err(Error::config("threads", reason));
    }
    let stop = AtomicBool::new(false);
    if resolve(threads) == 1 {
        return body(&Pool {
            threads: None,
            stop,
        });
    }
    let builder = rayon::ThreadPoolBuilder::new()
        .num_threads(resolve(threads))
        .thread_name(|i| format!("arrowquant-{i}"));
    // A scoped pool is joined, where a plain one is only told to end some time.
    builder
        .build_scoped(
            |thread| thread.run(),
            |pool| {
                body(&Pool {
                    threads: Some(pool),
                    stop,
                })
            },
        )
        .map_err(|error| {
            let threads = resolve(threads);
            Error::config("threads", format!("cannot start {threads}: {error}"))
        })?
}

/// The number of threads meant by `threads`.
pub(super) fn resolve(threads: usize) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        _ => threads,
    }
}

impl Pool<'_> {
    /// Whether the run is to end early; work that sees it may return anything.
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Called between the steps of long work: the calling thread's chance to tell its progress.
    ///
    /// # Errors
    /// The run is to end early.
    pub(super) fn go_on(&self, pulse: Pulse<'_>) -> Result<()> {
        pulse();
        match self.stopped() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }

    /// Does all jobs, on this pool's threads. Without any, `pulse` is called between jobs: it is
    /// the calling thread's chance to tell its progress.
    pub(super) fn each<T: Send>(
        &self,
        jobs: Vec<T>,
        pulse: Pulse<'_>,
        work: impl Fn(T) + Send + Sync,
    ) {
        match self.threads {
            None => jobs.into_iter().for_each(|job| {
                work(job);
                pulse();
            }),
            Some(pool) => pool.install(|| jobs.into_par_iter().for_each(work)),
        }
    }

    /// Does jobs in parallel and hands their results to `consume`, in order, on the calling
    /// thread. Jobs begin only while the costs of those begun and not consumed stay within
    /// `budget` (one always may). `tick` is called on the calling thread now and then; `consume`
    /// gets it, too, for what takes long.
    ///
    /// # Errors
    /// The first error of `consume`, `tick` or a result in order ends the run, so that which error
    /// is reported does not depend on threads.
    pub(super) fn in_order<T: Send, R: Send>(
        &self,
        jobs: impl IntoIterator<Item = (usize, T)>,
        budget: usize,
        work: impl Fn(T, Pulse<'_>) -> Result<R> + Sync,
        tick: impl FnMut() -> Result<()>,
        mut consume: impl FnMut(R, GoOn<'_>) -> Result<()>,
    ) -> Result<()> {
        let consume = |result, go_on: GoOn<'_>| {
            consume(result, go_on).map(ControlFlow::<Infallible>::Continue)
        };
        self.in_order_until(jobs, budget, work, tick, consume)
            .map(drop)
    }

    /// Does jobs as [`Pool::in_order`] does, up to the one at which `consume` breaks off. Work on
    /// what follows is given up.
    ///
    /// # Errors
    /// As for [`Pool::in_order`].
    pub(super) fn in_order_until<T: Send, R: Send, B>(
        &self,
        jobs: impl IntoIterator<Item = (usize, T)>,
        budget: usize,
        work: impl Fn(T, Pulse<'_>) -> Result<R> + Sync,
        tick: impl FnMut() -> Result<()>,
        consume: impl FnMut(R, GoOn<'_>) -> Result<ControlFlow<B>>,
    ) -> Result<ControlFlow<B>> {
        let result = match self.threads {
            None => self.one_by_one(jobs.into_iter(), work, tick, consume),
            Some(pool) => self.overlapped(pool, jobs.into_iter(), budget, work, tick, consume),
        };
        // Nothing is under way any more, so the pool can be used again.
        self.stop.store(false, Ordering::Relaxed);
        result
    }

    /// Does each job and consumes its result before the next begins. Work gets `tick` as its
    /// pulse: an error of it stops the work, and is returned once the work has ended.
    fn one_by_one<T, R, B>(
        &self,
        jobs: impl Iterator<Item = (usize, T)>,
        work: impl Fn(T, Pulse<'_>) -> Result<R>,
        tick: impl FnMut() -> Result<()>,
        mut consume: impl FnMut(R, GoOn<'_>) -> Result<ControlFlow<B>>,
    ) -> Result<ControlFlow<B>> {
        let (tick, ticked) = (RefCell::new(tick), RefCell::new(Ok(())));
        let pulse = || {
            if ticked.borrow().is_ok() {
                let result = (*tick.borrow_mut())();
                self.stop.store(result.is_err(), Ordering::Relaxed);
                *ticked.borrow_mut() = result;
            }
        };
        let mut go_on = || {
            pulse();
            ticked.replace(Ok(()))
        };
        for (_, job) in jobs {
            let result = work(job, &pulse);
            ticked.replace(Ok(()))?;
            if let ControlFlow::Break(end) = consume(result?, &mut go_on)? {
                return Ok(ControlFlow::Break(end));
            }
            go_on()?;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Does jobs on the pool's threads while the calling one consumes what is finished and begins
    /// more.
    fn overlapped<T: Send, R: Send, B>(
        &self,
        pool: &rayon::ThreadPool,
        jobs: impl Iterator<Item = (usize, T)>,
        budget: usize,
        work: impl Fn(T, Pulse<'_>) -> Result<R> + Sync,
        mut tick: impl FnMut() -> Result<()>,
        mut consume: impl FnMut(R, GoOn<'_>) -> Result<ControlFlow<B>>,
    ) -> Result<ControlFlow<B>> {
        pool.in_place_scope_fifo(|scope| {
            let (work, stop) = (&work, &self.stop);
            // Whichever way this ends, by a panic of the caller's functions too, what is queued
            // is not begun. After success there is nothing queued.
            let _stop = StopOnDrop(stop);
            let (sender, receiver) = channel::<(usize, JobOutcome<R>)>();
            let mut jobs = jobs.enumerate().peekable();
            let mut flight = Flight::new(budget, JOBS_PER_THREAD * pool.current_num_threads());
            let mut finished = BTreeMap::new();
            loop {
                while let Some((index, (cost, job))) =
                    jobs.next_if(|(_, (cost, _))| flight.has_room(*cost))
                {
                    flight.begin(index, cost);
                    let sender = sender.clone();
                    scope.spawn_fifo(move |_| {
                        if !stop.load(Ordering::Relaxed) {
                            let outcome = catch_unwind(AssertUnwindSafe(|| work(job, &|| ())));
                            // The receiver is gone only after a stop.
                            let _ = sender.send((index, outcome));
                        }
                    });
                }
                if flight.is_empty() {
                    return Ok(ControlFlow::Continue(()));
                }
                match receiver.recv_timeout(TICK) {
                    Ok((index, outcome)) => drop(finished.insert(index, outcome)),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
                }
                while let Some(outcome) = finished.remove(&flight.next) {
                    let result = outcome.unwrap_or_else(|panic| resume_unwind(panic))?;
                    if let ControlFlow::Break(end) = consume(result, &mut tick)? {
                        return Ok(ControlFlow::Break(end));
                    }
                    flight.end();
                    tick()?;
                }
                tick()?;
            }
        })
    }
}

/// The jobs that are begun and not consumed yet.
struct Flight {
    budget: usize,
    most: usize,
    /// By the number of the job.
    costs: BTreeMap<usize, usize>,
    total: usize,
    /// The job that is consumed next.
    next: usize,
}

impl Flight {
    fn new(budget: usize, most: usize) -> Self {
        Self {
            budget,
            most,
            costs: BTreeMap::new(),
            total: 0,
            next: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.costs.is_empty()
    }

    /// Whether another job of this cost may begin.
    fn has_room(&self, cost: usize) -> bool {
        let fits = self.total.saturating_add(cost) <= self.budget;
        self.is_empty() || fits && self.costs.len() < self.most
    }

    fn begin(&mut self, job: usize, cost: usize) {
        self.total += cost;
        self.costs.insert(job, cost);
    }

    /// Takes out the next job, which is consumed.
    fn end(&mut self) {
        self.total -= self.costs.remove(&self.next).unwrap_or(0);
        self.next += 1;
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a job came to: a result or a panic.
type JobOutcome<R> = std::result::Result<Result<R>, Box<dyn Any + Send>>;

#[cfg(test)]
mod tests {
    use super::*;

    fn run(threads: usize, budget: usize, fail_at: Option<usize>) -> (Vec<usize>, Result<()>) {
        let mut seen = Vec::new();
        let result = with_pool(threads, |pool| {
            pool.in_order(
                (0..40).map(|i| (10, i)),
                budget,
                |i: usize, _| {
                    // Later jobs of a group of four end first.
                    std::thread::sleep(Duration::from_micros(300 * (4 - i as u64 % 4)));
                    match fail_at {
                        Some(at) if i >= at => Err(Error::Plan(i.to_string())),
                        _ => Ok(i),
                    }
                },
                || Ok(()),
                |i, _| {
                    seen.push(i);
                    Ok(())
                },
            )
        });
        (seen, result)
    }

    #[test]
    fn results_come_in_order_for_any_threads_and_budget() {
        for threads in [1, 2, 7] {
            for budget in [0, 25, 1000] {
                let (seen, result) = run(threads, budget, None);
                assert!(result.is_ok());
                assert_eq!(seen, (0..40).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn the_first_error_in_order_wins() {
        for threads in [1, 2, 7] {
            let (seen, result) = run(threads, 1000, Some(13));
            assert_eq!(result.unwrap_err().to_string(), "plan: 13");
            assert_eq!(seen.len(), 13);
        }
    }

    #[test]
    fn jobs_in_flight_stay_within_the_budget() {
        use std::sync::atomic::AtomicUsize;
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        with_pool(4, |pool| {
            pool.in_order(
                (0..50).map(|i| (10, i)),
                20,
                |_, _| {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_micros(200));
                    Ok(())
                },
                || Ok(()),
                |(), _| {
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                },
            )
        })
        .unwrap();
        assert!(most.into_inner() <= 2);
    }

    #[test]
    fn a_panic_of_a_job_reaches_the_caller() {
        for threads in [1, 3] {
            let result = catch_unwind(|| {
                with_pool(threads, |pool| {
                    let jobs = (0..5).map(|i| (1, i));
                    pool.in_order(
                        jobs,
                        9,
                        |i, _| if i == 3 { panic!("three") } else { Ok(i) },
                        || Ok(()),
                        |_, _| Ok(()),
                    )
                })
            });
            assert_eq!(*result.unwrap_err().downcast::<&str>().unwrap(), "three");
        }
    }
}
