//! aq_evolution: a search for the best plan.
//!
//! A budget ("max_size", "avg_bits") minimizes the sum of the errors of tensors. The quality of a
//! model need not be such a sum: a search tries whole plans and scores each with the caller's own
//! function.

use std::ffi::{c_char, c_void};

use super::config::{aq_config, config_or_default};
use super::guard::{Fault, aq_error, aq_status, check_put, guard, put, read, text, versioned};
use super::handle::{Handle, Strings, borrow, free, give};
use super::options::aq_run_options;
use super::plan::aq_plan;
use super::source::aq_source;
use crate::plan::{Generation, Plan};
use crate::run::{self, Evolution, Fitness, Search};

/// The history of a search.
pub struct aq_evolution {
    evolution: Evolution,
    strings: Strings,
}

impl Handle for aq_evolution {
    const NAME: &'static str = "aq_evolution";
}

/// Scores a candidate: higher is better, any finite number. Score a useless candidate with a very
/// low number, such as -1e300. Minus infinity ends the search with the best so far; NaN and
/// infinity are errors.
///
/// The candidate is valid until the function returns, and belongs to the search. It can be read,
/// run (aq_plan_run, aq_plan_run_into) and written as JSON, on any thread.
pub type aq_fitness_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, candidate: *const aq_plan) -> f64>;

/// State of the search after a generation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_generation {
    /// sizeof(aq_generation) in the library.
    pub struct_size: u32,
    /// Number of the generation; 0 is the start.
    pub generation: u32,
    /// Number of candidates scored so far; repeated candidates are not scored again.
    pub evaluations: u64,
    /// The best fitness so far.
    pub best: f64,
    /// Mean fitness of the parents of the next generation: the best fifth so far.
    pub mean: f64,
    /// Bytes of the best candidate's planes, counting only tensors that the search decides on.
    pub bytes: u64,
}

/// Called after each generation, on the thread that made the call. Returning false ends the search
/// with the best so far.
pub type aq_generation_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, generation: *const aq_generation) -> bool>;

/// Means 0 in fields where 0 means the default.
pub const AQ_NONE: u32 = u32::MAX;

/// How a search works. Start with AQ_INIT(aq_evolve_options).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_evolve_options {
    /// sizeof(aq_evolve_options).
    pub struct_size: u32,
    /// Candidates in each generation, at least 2; 0 for 50.
    pub population: u32,
    /// Generations after the first; 0 for 10, and AQ_NONE for none.
    pub generations: u32,
    /// Not 0: `fitness` may be called by several threads at once, as many as `threads` of the run
    /// options. 0: it is called only on the thread that made the call.
    pub parallel: u32,
    /// Not 0: continues from the checkpoint, if it exists.
    pub resume: u32,
    /// File that the search is saved to after each generation; NULL for none.
    pub checkpoint: *const c_char,
    /// Scores candidates. NULL means minus the sum of the relative errors of tensors; for that
    /// measure, a budget already finds the best plan.
    pub fitness: aq_fitness_fn,
    pub generation: aq_generation_fn,
    /// Passed to fitness and generation.
    pub user_data: *mut c_void,
}

versioned!(aq_evolve_options {
    struct_size,
    population,
    generations,
    parallel,
    resume,
    checkpoint,
    fitness,
    generation,
    user_data
});

/// The caller's function, and what it gets.
#[derive(Clone, Copy)]
struct Worth {
    function: unsafe extern "C" fn(*mut c_void, *const aq_plan) -> f64,
    user_data: *mut c_void,
}

// SAFETY: only where the caller asked for it is it used by several threads.
unsafe impl Send for Worth {}
// SAFETY: as above.
unsafe impl Sync for Worth {}

impl Worth {
    /// Scores a candidate, which is lent to the caller as a handle.
    fn of(&self, candidate: &Plan) -> f64 {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a pointer of our own; the caller's function is called as the header says, and
        // nobody else has the handle.
        unsafe {
            if give(aq_plan::new(candidate.clone()), &mut handle).is_err() {
                return f64::NAN;
            }
            let worth = (self.function)(self.user_data, handle);
            let _ = free(handle);
            worth
        }
    }
}

impl aq_evolve_options {
    const DEFAULTS: Self = Self {
        struct_size: 0,
        population: 0,
        generations: 0,
        parallel: 0,
        resume: 0,
        checkpoint: std::ptr::null(),
        fitness: None,
        generation: None,
        user_data: std::ptr::null_mut(),
    };

    /// Calls `work` with a search that calls the caller's functions.
    unsafe fn with<R>(self, work: impl FnOnce(Search<'_>) -> Result<R, Fault>) -> Result<R, Fault> {
        let user_data = self.user_data;
        let mut told = |generation: &Generation| {
            let told = aq_generation {
                struct_size: size_of::<aq_generation>() as u32,
                generation: generation.generation as u32,
                evaluations: generation.evaluations as u64,
                best: generation.best,
                mean: generation.mean,
                bytes: generation.bytes,
            };
            // SAFETY: the caller's function, called as the header says.
            self.generation
                .is_none_or(|tell| unsafe { tell(user_data, &told) })
        };
        let worth = self.fitness.map(|function| Worth {
            function,
            user_data,
        });
        let many = |plan: &Plan| worth.map_or(f64::NAN, |worth| worth.of(plan));
        let mut one = many;
        let mut search = Search {
            fitness: match (worth, self.parallel) {
                (None, _) => Fitness::Errors,
                (Some(_), 0) => Fitness::Serial(&mut one),
                (Some(_), _) => Fitness::Parallel(&many),
            },
            resume: self.resume != 0,
            told: Some(&mut told),
            ..Search::default()
        };
        let numbers = [
            (self.population, &mut search.population),
            (self.generations, &mut search.generations),
        ];
        for (given, field) in numbers {
            if given > 0 {
                *field = if given == AQ_NONE { 0 } else { given as usize };
            }
        }
        if !self.checkpoint.is_null() {
            // SAFETY: by the header's conventions it ends in NUL.
            let path = unsafe { text(self.checkpoint, "evolve.checkpoint")? };
            search.checkpoint = Some(path.into());
        }
        if search.resume && search.checkpoint.is_none() {
            return Err(Fault::Argument("evolve.resume without a checkpoint"));
        }
        work(search)
    }
}

/// Searches for the plan with the highest fitness. The limit in bytes is the budget of `config`,
/// or, without a budget, the size of the plan that `config` gives. The first generation has the
/// budget's plan, and the plans with one format for all tensors. Candidates use the limit fully:
/// tensors get more bits as long as these fit. With the same "seed", and a fitness that depends
/// only on the plan, the search is the same with any number of threads.
///
/// First measures the loss of each tensor in each format, as aq_plan_new does, with the threads,
/// progress and log of `options`. A parallel fitness uses the same number of threads. `config`,
/// `evolve`, `options` and `evolution` may be NULL.
///
/// Fails with AQ_ERROR_CANCELLED if the search is ended before a plan is found.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_evolve(
    source: *const aq_source,
    config: *const aq_config,
    evolve: *const aq_evolve_options,
    options: *const aq_run_options,
    plan: *mut *mut aq_plan,
    evolution: *mut *mut aq_evolution,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            check_put(plan, "plan")?;
            let (source, config) = (borrow(source)?.source(), config_or_default(config)?);
            let evolve = match evolve.is_null() {
                true => aq_evolve_options::DEFAULTS,
                false => read(evolve, "evolve")?,
            };
            let options = aq_run_options::read(options)?.or_threads_of(&config);
            let found = evolve.with(|search| {
                options.with(|options| run::evolve(source, &config, search, options))
            })?;
            give(aq_plan::new(found.plan.clone()), plan)?;
            if evolution.is_null() {
                return Ok(());
            }
            let strings = Strings::default();
            give(
                aq_evolution {
                    evolution: found,
                    strings,
                },
                evolution,
            )
        })
    }
}

/// Writes the history as JSON, as `arrowquant evolve --json` does: "fitness" (of the best plan),
/// "start" (the fitness of the budget's plan; null if it was not scored), "generations" (the
/// history), "stopped" (whether the search was ended early), "seed", "limit_bytes" and "additive".
/// The text belongs to the evolution.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_evolution_to_json(
    evolution: *const aq_evolution,
    json: *mut *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let evolution = borrow(evolution)?;
            let text = evolution.evolution.to_json().to_string();
            put(json, evolution.strings.lend(&text), "json")
        })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_evolution_free(evolution: *mut aq_evolution) {
    // SAFETY: by the header's conventions.
    unsafe { guard(std::ptr::null_mut(), || free(evolution)) };
}
