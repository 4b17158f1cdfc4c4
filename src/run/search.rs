//! Searches for plans by what they are worth: to the caller, or by the errors of tensors.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use xxhash_rust::xxh3::Xxh3;

use super::engine::most_overhead;
use super::fingerprint::sample;
use super::measure::sensitivities;
use super::options::{Options, check_not_input};
use super::pipeline::{known, uniform_plan};
use super::pool::resolve;
use crate::error::{Error, Result};
use crate::plan::{
    Budget, Choices, Config, Evolve, Generation, Genes, Plan, Population, Scored, Sensitivity,
};
use crate::sink::{PARQUET, StagedFile};
use crate::source::{self, Source};

/// Called with a candidate plan, on the thread that made the call: what it is worth, the more the
/// better. Negative infinity ends the search with the best so far.
pub type Serial<'a> = &'a mut dyn FnMut(&Plan) -> f64;

/// A fitness function that may be called on several threads at once.
pub type Parallel<'a> = &'a (dyn Fn(&Plan) -> f64 + Sync);

/// What candidates are worth.
pub enum Fitness<'a> {
    /// Less the sum of the relative errors of all tensors: what budgets go by.
    Errors,
    /// The caller's.
    Serial(Serial<'a>),
    /// The caller's, on several threads.
    Parallel(Parallel<'a>),
}

/// How a search goes about it.
pub struct Search<'a> {
    /// What candidates are worth.
    pub fitness: Fitness<'a>,
    /// Candidates in each generation, at least 2.
    pub population: usize,
    /// Generations after the first.
    pub generations: usize,
    /// Written after each generation.
    pub checkpoint: Option<PathBuf>,
    /// What else tells this search from others: a checkpoint is refused where it differs.
    pub identity: String,
    /// Whether to go on where the checkpoint ended, if it is there.
    pub resume: bool,
    /// Told after each generation; false ends the search with the best so far.
    pub told: Option<&'a mut dyn FnMut(&Generation) -> bool>,
}

impl Default for Search<'_> {
    fn default() -> Self {
        let Evolve {
            population,
            generations,
            ..
        } = Evolve::default();
        Self {
            fitness: Fitness::Errors,
            population,
            generations,
            checkpoint: None,
            identity: String::new(),
            resume: false,
            told: None,
        }
    }
}

/// What a search found.
#[derive(Debug, Clone)]
pub struct Evolution {
    /// The best plan.
    pub plan: Plan,
    /// What it is worth.
    pub fitness: f64,
    /// What the plan is worth that a budget of the same size makes; none if it was not tried.
    pub start: Option<f64>,
    /// What generations came to.
    pub history: Vec<Generation>,
    /// Whether it ended before all of them.
    pub stopped: bool,
    /// Seed of everything that is drawn at random.
    pub seed: u64,
    /// Bytes of planes that every candidate obeys.
    pub limit: u64,
    /// Whether fitness adds up over tensors, so that a budget finds the best plan by itself.
    pub additive: bool,
}

impl Evolution {
    /// The history, for programs and charts.
    pub fn to_json(&self) -> Value {
        json!({
            "seed": self.seed,
            "limit_bytes": self.limit,
            "start": self.start,
            "fitness": self.fitness,
            "stopped": self.stopped,
            "additive": self.additive,
            "generations": self.history,
        })
    }
}

/// Searches for the plan that is worth most, among those that take no more than the budget of
/// `config`, or than its plan without one. The first generation has the budget's plan and those that
/// treat all tensors alike. Candidates spend what they may: more bits are taken to do no harm. With
/// the same seed and a fitness that is the same for the same plan, so is the search, on any number of
/// threads.
///
/// # Errors
/// As [`plan_with`](super::plan_with); a fitness is NaN or infinite; the checkpoint cannot be read or written, or
/// is of another search.
pub fn evolve(
    source: &dyn Source,
    config: &Config,
    mut search: Search<'_>,
    options: Options<'_>,
) -> Result<Evolution> {
    if search.population < 2 {
        let reason = format!("{} is less than 2", search.population);
        return Err(Error::config("population", reason));
    }
    config.check()?;
    let config = known(config)?;
    let base = uniform_plan(source, &config)?;
    let open = base.open(&config);
    let threads = options.threads;
    let measured = sensitivities(source, &base, &open, config.seed(), options)?;
    let mut budget = config.budget().unwrap_or(Budget {
        max_size: None,
        avg_bits: None,
        planes: None,
    });
    if budget.max_size.is_none() && budget.avg_bits.is_none() {
        let own = open
            .iter()
            .map(|open| base.entries[open.tensor].bytes() as u64);
        // Where tensors are below their cosine they are to get more than the settings say.
        let least = Choices::new(&base, budget, &measured, 0).least();
        budget.planes = Some(own.fold(0, u64::saturating_add).max(least));
    }
    let own = most_overhead(source, &base, &PARQUET);
    let problem = Problem::new(&base, &config, budget, &measured, own)?;
    let evolution = Evolve {
        population: search.population,
        generations: search.generations,
        seed: config.seed(),
        limit: Some(problem.limit),
    };
    let additive = matches!(search.fitness, Fitness::Errors);
    let identity = problem.identity(source, (additive, &search.identity))?;
    let mut population = Population::new(problem.bytes.clone(), evolution, identity);
    if let Some(path) = &search.checkpoint {
        check_not_input(source, path)?;
        match read(path)? {
            None => {}
            Some(_) if !search.resume => {
                let reason = "already exists: resume would continue it";
                return Err(Error::file(path, reason));
            }
            Some(found) if found.is_of(&population) => population = found,
            Some(_) => {
                let reason = "of another search: another model, other settings, or another seed, \
                              population or fitness";
                return Err(Error::file(path, reason));
            }
        }
    }
    let checkpoint = search.checkpoint.take();
    let mut told = search.told.take();
    let score = |some: &[Genes]| problem.score(&mut search.fitness, some, threads);
    population.run(search.generations, &problem.start, score, |population| {
        if let Some(path) = &checkpoint {
            write(path, population)?;
        }
        Ok(match (&mut told, population.history().last()) {
            (Some(told), Some(last)) => told(last),
            _ => true,
        })
    })?;
    let Some(best) = population.best() else {
        return Err(Error::Cancelled);
    };
    let plan = problem.plan(&best.genes)?;
    Ok(Evolution {
        fitness: best.fitness,
        start: population.fitness(&problem.start[0]),
        history: population.history().to_vec(),
        stopped: population.history().len() <= search.generations,
        seed: config.seed(),
        limit: problem.limit,
        additive,
        plan,
    })
}

/// The tensors that are open, and the ways to store them as genes.
struct Problem<'a> {
    base: &'a Plan,
    config: &'a Config,
    budget: Budget,
    measured: &'a [Sensitivity],
    /// For each tensor and gene, which of the measured ways.
    ways: Vec<Vec<usize>>,
    bytes: Vec<Vec<u64>>,
    limit: u64,
    /// The budget's plan, and those that treat all tensors alike.
    start: Vec<Genes>,
}

impl<'a> Problem<'a> {
    fn new(
        base: &'a Plan,
        config: &'a Config,
        budget: Budget,
        measured: &'a [Sensitivity],
        own: u64,
    ) -> Result<Self> {
        let choices = Choices::new(base, budget, measured, own);
        let solved = choices.solve()?;
        let (mut ways, mut bytes) = (Vec::new(), Vec::new());
        for each in choices.ways() {
            let mut each = each.clone();
            each.sort_by(|a, b| {
                let bytes = a.1.bytes.cmp(&b.1.bytes);
                bytes.then(b.1.error.total_cmp(&a.1.error))
            });
            ways.push(each.iter().map(|way| way.0).collect::<Vec<_>>());
            bytes.push(each.iter().map(|way| way.1.bytes).collect::<Vec<_>>());
        }
        let mut problem = Self {
            base,
            config,
            budget,
            measured,
            ways,
            bytes,
            limit: choices.limit().unwrap_or(u64::MAX),
            start: Vec::new(),
        };
        problem.start.push(problem.genes(|tensor| solved[tensor]));
        problem.start.extend(problem.uniform());
        Ok(problem)
    }

    /// What genes stand for, and of what.
    fn identity(&self, source: &dyn Source, search: (bool, &str)) -> Result<String> {
        let mut hash = Xxh3::new();
        let mut add = |text: String| {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        add(source::record(source).to_string());
        if source.has_weights() {
            add(sample(source)?);
        }
        add(self.config.to_json().to_string());
        add(format!("{search:?}"));
        for (sensitivity, ways) in self.measured.iter().zip(&self.ways) {
            let recipes = ways.iter().map(|&way| sensitivity.measured[way].recipe);
            add(format!(
                "{} {:?}",
                sensitivity.tensor,
                recipes.collect::<Vec<_>>()
            ));
        }
        Ok(format!("{:016x}", hash.digest()))
    }

    /// The genes that give each tensor a measured way.
    fn genes(&self, way: impl Fn(usize) -> usize) -> Genes {
        let gene = |(tensor, ways): (usize, &Vec<usize>)| {
            let wanted = way(tensor);
            ways.iter().position(|&way| way == wanted).unwrap_or(0) as u16
        };
        self.ways.iter().enumerate().map(gene).collect()
    }

    /// Plans that give all tensors the same, as far as they have it.
    fn uniform(&self) -> Vec<Genes> {
        let Some(first) = self.measured.first() else {
            return Vec::new();
        };
        let alike = |measured: &crate::plan::Measured| {
            self.genes(|tensor| {
                let all = &self.measured[tensor].measured;
                let same = all.iter().position(|other| other.recipe == measured.recipe);
                same.unwrap_or(usize::MAX)
            })
        };
        first.measured.iter().map(alike).collect()
    }

    /// The plan that genes make.
    fn plan(&self, genes: &[u16]) -> Result<Plan> {
        let mut plan = self.base.clone();
        let ways = self.ways.iter().zip(genes);
        let chosen: Vec<usize> = ways.map(|(ways, &gene)| ways[usize::from(gene)]).collect();
        plan.choose(self.config, self.measured, &chosen, "search")?;
        plan.limit(self.budget, Some(self.limit), self.measured);
        Ok(plan)
    }

    /// What candidates are worth; those that are left out end the search.
    fn score(&self, fitness: &mut Fitness<'_>, some: &[Genes], threads: usize) -> Result<Scored> {
        let mut scores = vec![f64::NEG_INFINITY; some.len()];
        match fitness {
            Fitness::Errors => {
                for (score, genes) in scores.iter_mut().zip(some) {
                    *score = -self.error(genes);
                }
            }
            Fitness::Serial(worth) => {
                for (score, genes) in scores.iter_mut().zip(some) {
                    *score = worth(&self.plan(genes)?);
                    if !score.is_finite() {
                        break;
                    }
                }
            }
            Fitness::Parallel(worth) => {
                let plans: Vec<Plan> = some.iter().map(|g| self.plan(g)).collect::<Result<_>>()?;
                at_once(*worth, &plans, &mut scores, threads)?;
            }
        }
        let refused = |score: &&f64| score.is_nan() || **score == f64::INFINITY;
        if let Some(score) = scores.iter().find(refused) {
            let reason = format!("a candidate's is {score}");
            return Err(Error::config("fitness", reason));
        }
        let tried = |score: f64| (score > f64::NEG_INFINITY).then_some(score);
        Ok(scores.into_iter().map(tried).collect())
    }

    fn error(&self, genes: &[u16]) -> f64 {
        let tensors = self.measured.iter().zip(&self.ways).zip(genes);
        let error = |((s, ways), &gene): ((&Sensitivity, &Vec<usize>), &u16)| {
            s.measured[ways[usize::from(gene)]].error
        };
        tensors.map(error).sum()
    }
}

/// Calls a fitness on several threads at once. They are no pool's: what a fitness does may have a
/// pool of its own, and a thread of one that waits for another takes up the next candidate meanwhile.
fn at_once(worth: Parallel<'_>, plans: &[Plan], scores: &mut [f64], threads: usize) -> Result<()> {
    let jobs = Mutex::new(scores.iter_mut().zip(plans));
    let stop = AtomicBool::new(false);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let job = jobs.lock().ok().and_then(|mut jobs| jobs.next());
            let Some((score, plan)) = job else {
                return;
            };
            *score = worth(plan);
            stop.fetch_or(!score.is_finite(), Ordering::Relaxed);
        }
    };
    if resolve(threads) == 1 {
        work();
        return Ok(());
    }
    std::thread::scope(|scope| {
        for _ in 0..resolve(threads).min(plans.len()) {
            let builder = std::thread::Builder::new().stack_size(STACK);
            let started = builder.spawn_scoped(scope, work);
            started.map_err(|error| {
                stop.store(true, Ordering::Relaxed);
                Error::config("threads", format!("cannot start {threads}: {error}"))
            })?;
        }
        Ok(())
    })
}

/// Bytes of a thread's stack that calls a fitness.
const STACK: usize = 8 << 20;

/// A search that was written down; `None` when there is none yet.
fn read(path: &Path) -> Result<Option<Population>> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(Error::io(path, "read"))?,
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| Error::file(path, format!("not a checkpoint of a search: {error}")))
}

fn write(path: &Path, population: &Population) -> Result<()> {
    let mut file = StagedFile::create(path)?;
    let text = json!(population).to_string();
    let written = file.write_all(text.as_bytes());
    written.map_err(Error::io(path, "write"))?;
    file.commit()
}
