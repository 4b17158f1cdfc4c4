//! How much memory a run takes, and what of a ceiling goes to what.

use bytesize::ByteSize;

use super::job::TileJob;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::run::inputs::Calibrator;
use crate::run::options::Options;
use crate::sink::SinkLimits;
use crate::source::Source;

/// The ceiling of a streaming run that is given no other.
const STREAMING_LIMIT: usize = 256 << 20;

/// The program itself: its code as far as it is used, and what the allocator holds.
const PROGRAM: usize = 16 << 20;

/// A thread's stack and heap, and the buffers of a piece that it works on.
const THREAD: usize = 2 << 20;

/// What is known of a tensor: in the source, the plan, the report and the summary.
const TENSOR: usize = 3 << 10;

/// Times that names and metadata are held: in the source, the plan, tiles and reports, and in the
/// footer as JSON in JSON.
const COPIES: usize = 16;

/// What is known of a tile, and its row group in the footer.
const TILE: usize = 4 << 10;

/// What is known of a tile of a part that is there already, as the parquet crate holds it, with the
/// pages of the file that are looked at.
const OPENED: usize = 96 << 10;

/// What a run may hold, and why so much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryPlan {
    /// Bytes of planes in flight.
    pub(crate) in_flight: usize,
    /// Bytes of planes that wait to be used again.
    pub(crate) waiting: usize,
    /// The ceiling, where there is one.
    pub(crate) limit: Option<usize>,
    /// Why the run streams, though nobody asked for it.
    pub(crate) because: Option<String>,
}

/// What the jobs of a run take.
struct Needs {
    /// Beside planes in flight.
    fixed: usize,
    /// Planes of the job that takes most, when they are held no longer than they must.
    largest: usize,
    /// All planes.
    planes: usize,
    /// The most that a calibration takes for one job.
    guides: usize,
}

impl MemoryPlan {
    /// Decides for a run: the budget of its options may be in flight where the plan says no less
    /// and memory is free.
    ///
    /// # Errors
    /// The plan's limit is too small, or the run would have to stream and is to fail instead.
    pub(crate) fn new(
        source: &dyn Source,
        plan: &Plan,
        (jobs, limits): (&[TileJob], &SinkLimits),
        threads: usize,
        calibrator: Option<&Calibrator>,
        options: &Options<'_>,
    ) -> Result<Self> {
        let (budget, free) = (options.budget, options.free_memory.or_else(free));
        let mut needs = Needs::of(source, plan, (jobs, limits), threads, options);
        let calibration = calibrator.map_or(0, |c| c.calibration.held_bytes());
        needs.fixed = needs.fixed.saturating_add(calibration);
        let least = needs.least();
        let size = |bytes: usize| ByteSize::b(bytes as u64).display().si().to_string();
        if let Some(limit) = plan.memory_limit {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            if limit < least {
                // The smallest that can be written in whole megabytes.
                let smallest = least.div_ceil(1_000_000);
                let threads = match threads {
                    1 => "one thread".to_owned(),
                    n => format!("{n} threads"),
                };
                let reason = format!(
                    "{} is too small for this model with {threads}; it needs at least {smallest}MB",
                    size(limit)
                );
                return Err(Error::config("memory_limit", reason));
            }
            return Ok(needs.within(limit, budget));
        }
        if plan.streaming {
            return Ok(needs.within(STREAMING_LIMIT.max(least), budget));
        }
        let batch = needs
            .fixed
            .saturating_add(needs.planes.min(budget))
            .saturating_add(needs.guides);
        match free.and_then(|free| usize::try_from(free).ok()) {
            Some(free) if batch > free => {
                let because = format!(
                    "it would take {} of memory, but only {} are free",
                    size(batch),
                    size(free)
                );
                if plan.fail_fast {
                    let reason = format!("{because}; streaming_mode would take less");
                    return Err(Error::config("fail_fast", reason));
                }
                let mut memory = needs.within(STREAMING_LIMIT.min(free).max(least), budget);
                memory.because = Some(because);
                Ok(memory)
            }
            _ => Ok(Self {
                in_flight: budget,
                waiting: budget / 4,
                limit: None,
                because: None,
            }),
        }
    }

    /// Whether a job is written in place instead of being held until it is done: so that two
    /// can be in flight.
    pub(crate) fn in_place(&self, job: &TileJob, limits: &SinkLimits, threads: usize) -> bool {
        let gathered = limits.gathers(job.recipe.is_none(), job.tile.bytes());
        let cost = job.cost(limits);
        let guided = job.guide_cost(threads);
        let too_large = cost > self.in_flight / 2
            || self.limit.is_some() && guided > 0 && cost.saturating_add(guided) > self.in_flight;
        limits.in_place && !gathered && too_large
    }
}

impl Needs {
    fn of(
        source: &dyn Source,
        plan: &Plan,
        (jobs, limits): (&[TileJob], &SinkLimits),
        threads: usize,
        options: &Options<'_>,
    ) -> Self {
        let (mut largest, mut planes, mut read, mut gathered) = (0, 0usize, 0, 0usize);
        let mut guides = 0;
        let (mut opened, mut part) = (0usize, (0usize, 0usize));
        for job in jobs {
            let cost = job.cost(limits);
            planes = planes.saturating_add(cost);
            guides = guides.max(job.guide_cost(threads));
            read = read.max(job.piece_bytes());
            let guided = job.guide_cost(threads);
            let least = match limits.in_place {
                true => job.piece_cost(),
                false => cost,
            };
            largest = largest.max(least.saturating_add(guided));
            let bytes = job.tile.bytes();
            if limits.gathers(job.recipe.is_none(), bytes) {
                gathered += bytes;
            }
            // Parts are opened one at a time; each has about as many tiles as this.
            part.0 += 1;
            part.1 += bytes;
            if options.resume {
                opened = opened.max(part.0);
            }
            if part.1 > options.part_bytes {
                part = (0, 0);
            }
        }
        let gathered = gathered.min(limits.gathers) * limits.gathered_copies;
        let names: usize = plan
            .entries
            .iter()
            .map(|entry| entry.tensor.name.len())
            .sum();
        let metadata = source
            .metadata()
            .iter()
            .map(|(key, value)| key.len() + value.len());
        let metadata: usize = metadata.sum();
        let thread = THREAD + read + limits.thread_bytes;
        let fixed = [
            PROGRAM,
            threads.saturating_mul(thread),
            gathered,
            plan.entries.len() * TENSOR,
            jobs.len() * TILE,
            opened * OPENED,
            COPIES * (names + metadata),
            source.held_bytes(),
        ];
        Self {
            fixed: fixed.into_iter().fold(0, usize::saturating_add),
            largest,
            planes,
            guides,
        }
    }

    /// The smallest ceiling: a job at a time, and nothing waits.
    fn least(&self) -> usize {
        self.fixed.saturating_add(self.largest)
    }

    /// What goes to what under a ceiling of at least [`Needs::least`]. Buffers that are used
    /// again may be twice as large as what they are used for.
    fn within(&self, limit: usize, budget: usize) -> MemoryPlan {
        let rest = limit.saturating_sub(self.fixed);
        let comfortable = rest / 4 >= self.largest;
        let (in_flight, waiting) = match comfortable {
            true => (rest / 4, rest / 4),
            false => (rest, 0),
        };
        MemoryPlan {
            in_flight: in_flight.min(budget),
            waiting: waiting.min(budget / 4),
            limit: Some(limit),
            because: None,
        }
    }
}

/// Bytes of memory that are free on this machine, or under the limit that its container sets.
fn free() -> Option<u64> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    let free = system.available_memory();
    // What a container uses counts its page cache in, which gives way.
    let contained = system.cgroup_limits().map_or(u64::MAX, |limits| {
        limits.total_memory.saturating_sub(limits.rss)
    });
    // Systems that cannot be asked say 0.
    Some(free.min(contained)).filter(|&free| free > 0)
}
