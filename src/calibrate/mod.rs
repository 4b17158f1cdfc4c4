//! Statistics of activations: which input channels matter, at which timesteps, and how other
//! weights can compensate for an error in one.
//!
//! A [`Calibration`] observes the inputs of each layer as the caller's own runtime computes them.
//! It only stores sums: for each layer and bin of timesteps the range, the squares and a histogram,
//! and optionally for each group of bins the Hessian `sum x x^T` (up to a factor, that of the
//! layer's squared output error). Calibrations can be added, so several machines can share the
//! work.

mod file;
mod hessian;
pub mod histogram;
mod stats;
pub mod time;
mod weighting;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use hessian::HessianSums;
pub use hessian::{BLOCK as HESSIAN_BLOCK, add_products, packed_len};
pub use stats::BinStats;
pub use weighting::{OwnedBin, TimeWeighting, Weights};

use crate::error::{Error, Result};
use crate::format::Float;
use crate::kernel::KernelTable;
use hessian::Spill;
use stats::Sums;

/// Rows that are summed in f32 before they are added to sums in f64.
const CHUNK: usize = 256;

/// The most channels of a layer: with more rows a Hessian would be too large for a file.
const MAX_COLS: usize = 1 << 20;

/// The most bytes of a layer's name.
const MAX_NAME: usize = 4096;

/// How a calibration divides time, and what it stores.
#[derive(Debug, Clone, PartialEq)]
pub struct CalibrationOptions {
    /// Number of timesteps of the model, which start at 0. (For masked text models the timestep is
    /// the mask ratio times this.)
    pub timesteps: u32,
    /// Number of bins of timesteps for ranges, squares and histograms.
    pub bins: u32,
    /// Whether Hessians are stored, for `method: gptq`.
    pub hessian: bool,
    /// Number of groups of timesteps, each with a Hessian; divides `bins`.
    pub hessian_groups: u32,
    /// The most bytes of Hessians in memory; those beyond are in a temporary file.
    pub memory_limit: Option<usize>,
    /// Folder of the temporary file; `None` is the system's temporary folder.
    pub spill_folder: Option<PathBuf>,
}

impl Default for CalibrationOptions {
    fn default() -> Self {
        Self {
            timesteps: 1000,
            bins: 50,
            hessian: true,
            hessian_groups: 10,
            memory_limit: None,
            spill_folder: None,
        }
    }
}

impl CalibrationOptions {
    /// Returns the half-open range of timesteps of bin `i` of `count`.
    fn range(&self, i: u32, count: u32) -> (u32, u32) {
        let boundary =
            |i: u32| (u64::from(i) * u64::from(self.timesteps) / u64::from(count)) as u32;
        (boundary(i), boundary(i + 1))
    }

    /// Returns the bin of a timestep, out of `count`.
    fn bin_of(&self, timestep: u32, count: u32) -> u32 {
        let (t, count, all) = (
            u64::from(timestep),
            u64::from(count),
            u64::from(self.timesteps),
        );
        // The last i with floor(i * all / count) <= t.
        (((t + 1) * count - 1) / all) as u32
    }

    fn check(&self) -> Result<()> {
        let refuse = |key: &str, reason: String| Err(Error::config(key, reason));
        if self.timesteps == 0 || self.timesteps > 1 << 20 {
            return refuse(
                "timesteps",
                format!("{} is not from 1 to 2^20", self.timesteps),
            );
        }
        if self.bins == 0 || self.bins > self.timesteps || self.bins > 4096 {
            let reason = format!(
                "{} is not from 1 to the number of timesteps (or 4096)",
                self.bins
            );
            return refuse("bins", reason);
        }
        let divides = self.hessian_groups > 0 && self.bins.is_multiple_of(self.hessian_groups);
        if self.hessian && !divides {
            let reason = format!(
                "{} does not divide the {} bins",
                self.hessian_groups, self.bins
            );
            return refuse("hessian_groups", reason);
        }
        Ok(())
    }
}

/// Activations of one layer: rows of its input, row-major.
#[derive(Debug, Clone, Copy)]
pub struct Activations<'a> {
    /// Tokens, pixels, or samples.
    pub rows: usize,
    /// Input channels.
    pub cols: usize,
    /// Element type.
    pub float: Float,
    /// `rows * cols` little-endian values, at any alignment.
    pub values: &'a [u8],
}

/// Statistics of the inputs of a model's layers, by layer and time. May be shared by threads.
///
/// ```
/// use arrowquant::calibrate::{Activations, Calibration, CalibrationOptions};
/// use arrowquant::format::Float;
///
/// let calibration = Calibration::new(CalibrationOptions {
///     timesteps: 1000,
///     ..CalibrationOptions::default()
/// })?;
/// let x: Vec<u8> = [1.0f32, 2.0, 3.0, -4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
/// let (rows, cols) = (2, 2);
/// calibration.observe("blocks.0.attn.qkv", 500, Activations { rows, cols, float: Float::F32, values: &x })?;
/// assert_eq!(calibration.largest("blocks.0.attn.qkv"), Some(vec![3.0, 4.0]));
/// # Ok::<(), arrowquant::error::Error>(())
/// ```
#[derive(Debug)]
pub struct Calibration {
    options: CalibrationOptions,
    table: &'static KernelTable,
    /// Remaining share of the signal at each timestep (alpha bar), if it was given.
    schedule: RwLock<Vec<f64>>,
    layers: RwLock<BTreeMap<String, SharedLayer>>,
    spill: Arc<Spill>,
}

/// The statistics of one layer.
#[derive(Debug)]
struct Layer {
    cols: usize,
    bins: Vec<Option<Box<BinStats>>>,
    hessians: Vec<HessianSums>,
}

impl Layer {
    fn new(cols: usize, options: &CalibrationOptions, spill: &Arc<Spill>) -> Self {
        let groups = if options.hessian {
            options.hessian_groups
        } else {
            0
        };
        Self {
            cols,
            bins: (0..options.bins).map(|_| None).collect(),
            hessians: (0..groups).map(|_| HessianSums::new(cols, spill)).collect(),
        }
    }

    fn bin(&mut self, bin: usize) -> &mut BinStats {
        self.bins[bin].get_or_insert_with(|| Box::new(BinStats::new(self.cols)))
    }
}

/// Description of an observed layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Name, as it was observed.
    pub name: String,
    /// Input channels.
    pub cols: usize,
    /// Rows observed, at all timesteps.
    pub rows: u64,
}

impl Calibration {
    /// Makes an empty calibration.
    ///
    /// # Errors
    /// An option is out of range, or `AQ_ISA` names no instruction set.
    pub fn new(options: CalibrationOptions) -> Result<Self> {
        options.check()?;
        let table =
            KernelTable::choose().map_err(|error| Error::config("AQ_ISA", error.to_string()))?;
        let spill = Spill::new(options.memory_limit, options.spill_folder.clone());
        Ok(Self {
            options,
            table,
            schedule: RwLock::default(),
            layers: RwLock::default(),
            spill: Arc::new(spill),
        })
    }

    /// Makes a calibration that only has mean squares of the input channels, as in importance
    /// matrices: without ranges, Hessians and time.
    ///
    /// # Errors
    /// The errors of [`Calibration::new`].
    pub fn of_mean_squares<'a>(
        layers: impl IntoIterator<Item = (&'a str, &'a [f32])>,
    ) -> Result<Self> {
        let calibration = Self::new(CalibrationOptions {
            timesteps: 1,
            bins: 1,
            hessian: false,
            hessian_groups: 1,
            ..CalibrationOptions::default()
        })?;
        for (name, squares) in layers {
            let layer = calibration.layer(layer_name(name), squares.len());
            let layer = &mut *lock(&layer);
            let bin = layer.bin(0);
            bin.count = 1;
            bin.squares = squares.iter().map(|&x| f64::from(x)).collect();
        }
        Ok(calibration)
    }

    /// Returns the options.
    pub fn options(&self) -> &CalibrationOptions {
        &self.options
    }

    /// Sets the remaining share of the signal at each timestep (the cumulative product of 1 -
    /// beta), for [`TimeWeighting::Snr`].
    ///
    /// # Errors
    /// There is not one number from 0 to 1 for each timestep.
    pub fn set_schedule(&self, alphas: &[f64]) -> Result<()> {
        let expected = self.options.timesteps as usize;
        if alphas.len() != expected {
            let reason = format!("{} numbers for {expected} timesteps", alphas.len());
            return Err(Error::config("schedule", reason));
        }
        match alphas.iter().position(|a| !(0.0..=1.0).contains(a)) {
            Some(t) => {
                let reason = format!("{} at timestep {t} is not from 0 to 1", alphas[t]);
                Err(Error::config("schedule", reason))
            }
            None => {
                *self
                    .schedule
                    .write()
                    .unwrap_or_else(PoisonError::into_inner) = alphas.to_vec();
                Ok(())
            }
        }
    }

    /// Returns the schedule that was set, or an empty one.
    pub fn schedule(&self) -> Vec<f64> {
        let schedule = self.schedule.read().unwrap_or_else(PoisonError::into_inner);
        schedule.clone()
    }

    /// Adds rows of a layer's input at a timestep. Layers have the names of their weights, with or
    /// without a trailing `.weight`. Threads may observe at once; those of the same layer take
    /// turns.
    ///
    /// # Errors
    /// The timestep is out of range, the layer was observed with another number of channels, a
    /// value is NaN, infinite or above 10^18, or a temporary file cannot be written. Except in the
    /// last case, nothing is added then.
    pub fn observe(&self, layer: &str, timestep: u32, x: Activations<'_>) -> Result<()> {
        let refuse = |reason: String| Error::config(format!("layer '{layer}'"), reason);
        let name = layer_name(layer);
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(refuse("its name must have 1 to 4096 bytes".into()));
        }
        if timestep >= self.options.timesteps {
            let last = self.options.timesteps - 1;
            return Err(refuse(format!(
                "timestep {timestep} is not from 0 to {last}"
            )));
        }
        let row_bytes = x.cols.checked_mul(x.float.size());
        let expected = row_bytes.and_then(|bytes| bytes.checked_mul(x.rows));
        if x.cols == 0 || x.cols > MAX_COLS || expected != Some(x.values.len()) {
            let (rows, cols, found) = (x.rows, x.cols, x.values.len());
            let reason = format!(
                "{found} bytes are not {rows} rows of {cols} {} channels",
                x.float
            );
            return Err(refuse(reason));
        }
        if x.rows == 0 {
            return Ok(());
        }
        let check = |cols: usize| match cols == x.cols {
            true => Ok(()),
            false => Err(refuse(format!(
                "{} channels, but {cols} were observed before",
                x.cols
            ))),
        };
        if let Some(cols) = self.cols(name) {
            check(cols)?;
        }
        // Everything is summed before anything is added, because a value may not be finite.
        let mut sums = Vec::with_capacity(x.rows.div_ceil(CHUNK));
        for (i, chunk) in x.values.chunks(CHUNK * x.cols * x.float.size()).enumerate() {
            let found = Sums::of(self.table, x.float, x.cols, chunk);
            if !found.are_usable() {
                return Err(refuse(stats::explain(x, i * CHUNK)));
            }
            sums.push(found);
        }
        let bin = self.options.bin_of(timestep, self.options.bins) as usize;
        let group = match self.options.hessian {
            true => self.options.bin_of(timestep, self.options.hessian_groups) as usize,
            false => 0,
        };
        let mut values = vec![0.0f32; CHUNK.min(x.rows) * x.cols];
        let state = self.layer(name, x.cols);
        let state = &mut *lock(&state);
        check(state.cols)?; // another thread may have been faster
        for (chunk, sums) in x.values.chunks(CHUNK * x.cols * x.float.size()).zip(&sums) {
            let values = &mut values[..chunk.len() / x.float.size()];
            self.table.widen(x.float, chunk, values);
            state.bin(bin).add(sums, values);
            if let Some(hessian) = state.hessians.get_mut(group) {
                hessian
                    .add(values)
                    .map_err(Error::io(self.spill.folder(), "write"))?;
            }
        }
        Ok(())
    }

    /// Returns the layer with this name, creating it if necessary.
    fn layer(&self, name: &str, cols: usize) -> SharedLayer {
        if let Some(layer) = self.find(name) {
            return layer;
        }
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        let make = || Arc::new(Mutex::new(Layer::new(cols, &self.options, &self.spill)));
        layers.entry(name.to_owned()).or_insert_with(make).clone()
    }

    fn find(&self, name: &str) -> Option<SharedLayer> {
        let layers = self.layers.read().unwrap_or_else(PoisonError::into_inner);
        layers.get(layer_name(name)).cloned()
    }

    /// Returns every layer, by name.
    pub fn layers(&self) -> Vec<LayerInfo> {
        let layers = self.layers.read().unwrap_or_else(PoisonError::into_inner);
        let info = |(name, layer): (&String, &SharedLayer)| {
            let layer = lock(layer);
            let rows = layer.bins.iter().flatten().map(|bin| bin.count);
            LayerInfo {
                name: name.clone(),
                cols: layer.cols,
                rows: rows.fold(0, u64::saturating_add),
            }
        };
        layers.iter().map(info).collect()
    }

    /// Returns the input channels of a layer, or `None` if it was not observed.
    pub fn cols(&self, layer: &str) -> Option<usize> {
        self.find(layer).map(|layer| lock(&layer).cols)
    }

    /// Whether Hessians are stored.
    pub fn has_hessians(&self) -> bool {
        self.options.hessian
    }

    /// Adds the observations of another calibration of the same model. Counts, ranges and
    /// histograms are as if one calibration had observed everything; sums are so up to f64
    /// rounding.
    ///
    /// # Errors
    /// The other one divides time differently, has no Hessians although this one does, has another
    /// schedule, or has a layer with another number of channels. Nothing is added then.
    pub fn merge(&self, other: &Self) -> Result<()> {
        let differ =
            |what: &str| Error::config("merge", format!("the calibrations differ in {what}"));
        let (ours, theirs) = (&self.options, &other.options);
        if (ours.timesteps, ours.bins) != (theirs.timesteps, theirs.bins) {
            return Err(differ("timesteps or bins"));
        }
        let groups = |of: &CalibrationOptions| of.hessian.then_some(of.hessian_groups);
        if groups(ours) != groups(theirs) {
            return Err(differ("Hessians"));
        }
        let (mine, schedule) = (self.schedule(), other.schedule());
        if !mine.is_empty() && !schedule.is_empty() && mine != schedule {
            return Err(differ("schedule"));
        }
        if std::ptr::eq(self, other) {
            return Err(Error::config(
                "merge",
                "a calibration cannot be merged with itself",
            ));
        }
        // One merge at a time: two that merge with each other would wait for each other's layers.
        static MERGING: Mutex<()> = Mutex::new(());
        let _turn = lock(&MERGING);
        let pairs = self.pairs(other)?;
        if mine.is_empty() && !schedule.is_empty() {
            self.set_schedule(&schedule)?;
        }
        for (ours, theirs) in pairs {
            let theirs = &mut *lock(&theirs);
            let ours = &mut *lock(&ours);
            for (i, bin) in theirs.bins.iter().enumerate() {
                if let Some(bin) = bin {
                    ours.bin(i).merge(bin);
                }
            }
            for (ours, theirs) in ours.hessians.iter_mut().zip(&mut theirs.hessians) {
                ours.merge(theirs)
                    .map_err(Error::io(self.spill.folder(), "write"))?;
            }
        }
        Ok(())
    }

    /// Pairs the layers of another calibration with those of the same names here, creating missing
    /// ones: all of them, or none on an error.
    fn pairs(&self, other: &Self) -> Result<Vec<(SharedLayer, SharedLayer)>> {
        let theirs = other.layers.read().unwrap_or_else(PoisonError::into_inner);
        let theirs = theirs.clone();
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        for (name, layer) in &theirs {
            let (ours, theirs) = (layers.get(name), lock(layer).cols);
            let ours = ours.map(|layer| lock(layer).cols);
            if let Some(ours) = ours.filter(|&ours| ours != theirs) {
                let reason = format!("layer '{name}' has {ours} channels here and {theirs} there");
                return Err(Error::config("merge", reason));
            }
        }
        let pair = |(name, theirs): (String, SharedLayer)| {
            let cols = lock(&theirs).cols;
            let make = || Arc::new(Mutex::new(Layer::new(cols, &self.options, &self.spill)));
            (layers.entry(name).or_insert_with(make).clone(), theirs)
        };
        Ok(theirs.into_iter().map(pair).collect())
    }
}

/// A layer shared by threads.
type SharedLayer = Arc<Mutex<Layer>>;

/// Removes `.weight` from the name of a weight, which gives the name of its layer.
fn layer_name(name: &str) -> &str {
    name.trim_end_matches(".weight")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
