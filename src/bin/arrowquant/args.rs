//! Commands and flags.

use std::path::{Path, PathBuf};

use arrowquant::error::Error;
use arrowquant::run::Share;
use arrowquant::source::{self, OpenOptions, Source};
use bytesize::ByteSize;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

/// Quantizes diffusion-model weights to INT2, INT4 or INT8.
#[derive(Parser)]
#[command(name = "arrowquant", version, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Quantize a model: safetensors, a folder of shards, a diffusers folder, GGUF or Parquet
    Quantize(Quantize),
    /// Show what each tensor would get, and the file size, before any work
    Plan {
        /// A safetensors file, a folder of shards with their index, a diffusers folder, a GGUF file
        /// (or one part of a split one), or a Parquet file of unquantized tensors
        input: PathBuf,
        #[command(flatten)]
        without: Without,
        #[command(flatten)]
        plan: PlanArgs,
        /// Print JSON, which `quantize --plan` takes
        #[arg(long)]
        json: bool,
    },
    /// Measure what each tensor would lose in each format, on a sample of its rows
    Analyze {
        /// Any input that `plan` takes
        input: PathBuf,
        #[command(flatten)]
        without: Without,
        #[command(flatten)]
        plan: PlanArgs,
        /// Draw a chart
        #[arg(long, value_name = "FILE.png")]
        chart: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Search for the best plan by a fitness, within a budget or the size of the settings' plan
    Evolve(EvolveArgs),
    /// Fold smoothing into the preceding weights: an equivalent model with large input channels
    /// evened out
    Fold {
        /// A safetensors file, a folder of shards with their index, a diffusers folder, or a Parquet
        /// file of unquantized tensors, with names as in LLaMA, LLaDA or DiT
        input: PathBuf,
        /// The safetensors file to write
        output: PathBuf,
        #[command(flatten)]
        without: Without,
        /// A calibration of the model. The written model needs a new one
        #[arg(long, value_name = "FILE")]
        calibration: PathBuf,
        /// Channels are divided by absmax(X)^ALPHA / absmax(W)^(1-ALPHA)
        #[arg(long, value_name = "ALPHA", default_value_t = 0.5)]
        alpha: f64,
        /// Float type of all float tensors: f32, f16 or bf16 [default: each keeps its type]
        #[arg(long, value_name = "DTYPE")]
        dtype: Option<String>,
        /// Threads; 0 means all threads of the machine
        #[arg(long, value_name = "N", default_value_t = 0, value_parser = threads)]
        threads: usize,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the tensors of a quantized file
    Inspect {
        /// A file or folder written by `quantize`
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check a quantized file's checksums, and its error against the original
    Verify {
        /// A file or folder written by `quantize`
        file: PathBuf,
        /// The model it was made from
        #[arg(long, value_name = "ORIGINAL")]
        against: Option<PathBuf>,
        /// Leave out a component if ORIGINAL is a pipeline (repeatable)
        #[arg(long, value_name = "COMPONENT", requires = "against")]
        without: Vec<String>,
        /// Fail tensors whose measured cosine is below this
        #[arg(long, value_name = "X", requires = "against", value_parser = cosine)]
        min_cosine: Option<f64>,
        /// Threads; 0 means all threads of the machine
        #[arg(long, value_name = "N", default_value_t = 0, value_parser = threads)]
        threads: usize,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Combine a folder of parts from several runs with --part into one model
    Merge {
        /// The folder with all parts
        folder: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Decode a quantized file to safetensors
    Dequantize {
        /// A file or folder written by `quantize`
        file: PathBuf,
        /// The safetensors file to write
        output: PathBuf,
        /// Float type of all float tensors: f32, f16 or bf16 [default: as in the original, but
        /// bf16 for quantized f8]
        #[arg(long, value_name = "DTYPE")]
        dtype: Option<String>,
        /// Threads; 0 means all threads of the machine
        #[arg(long, value_name = "N", default_value_t = 0, value_parser = threads)]
        threads: usize,
    },
    /// Print shell completions for commands and flags
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// Write manual pages
    Man {
        /// The folder to write them to, such as ~/.local/share/man/man1
        folder: PathBuf,
    },
}

#[derive(clap::Args)]
pub struct Quantize {
    /// A safetensors file, a folder of shards with their index, a diffusers folder, a GGUF file
    /// (or one part of a split one), or a Parquet file of unquantized tensors
    pub input: PathBuf,
    /// The file to write, ending in .parquet; or a folder of parts with a manifest
    pub output: PathBuf,
    #[command(flatten)]
    pub without: Without,
    #[command(flatten)]
    pub plan_args: PlanArgs,
    /// Resume with the parts that an earlier run left in the folder (the default)
    #[arg(long)]
    pub resume: bool,
    /// Remove the parts of an earlier run, whatever it was, and make all parts again
    #[arg(long, conflicts_with = "resume")]
    pub restart: bool,
    /// Do the K-th of N shares of the work into a folder, for `merge`
    #[arg(long, value_name = "K/N")]
    pub part: Option<Share>,
    /// Bytes of planes after which a part of a folder ends [default: 128MiB]
    #[arg(long, value_name = "SIZE")]
    pub part_size: Option<ByteSize>,
    /// Carry out this plan, printed by `plan --json`; it cannot be combined with settings
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "profile", "config", "bits", "group_size", "scheme", "method", "gain", "scale_dtype",
        "on_nonfinite", "keep", "rule", "compression", "time_aware", "time_groups", "time_weighting",
        "spatial", "calibration", "min_cosine", "mixed", "max_size", "avg_bits", "candidates", "seed",
        "modality",
    ])]
    pub plan: Option<PathBuf>,
    /// Write the measurements: a page if FILE ends in .html, else JSON (repeatable)
    #[arg(long, value_name = "FILE")]
    pub report: Vec<PathBuf>,
    /// Print only errors
    #[arg(long)]
    pub quiet: bool,
}

#[derive(clap::Args)]
pub struct EvolveArgs {
    /// Any input that `plan` takes
    pub input: PathBuf,
    /// The plan to write, which `quantize --plan` takes
    pub output: PathBuf,
    #[command(flatten)]
    pub without: Without,
    #[command(flatten)]
    pub plan: PlanArgs,
    /// A shell command, with {} for the plan file; the last number it prints is the fitness of the
    /// plan, higher is better [default: minus the errors of tensors]
    #[arg(long, value_name = "COMMAND")]
    pub fitness: Option<String>,
    /// Plans tried in each generation
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub population: usize,
    /// Generations after the first
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub generations: usize,
    /// Save the search after each generation
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Continue from the checkpoint
    #[arg(long, requires = "checkpoint")]
    pub resume: bool,
    /// Draw the results of the generations
    #[arg(long, value_name = "FILE.png")]
    pub chart: Option<PathBuf>,
    /// Print the results of the generations as JSON
    #[arg(long)]
    pub json: bool,
}

/// Components of a pipeline to leave out.
#[derive(clap::Args)]
pub struct Without {
    /// Leave out a component of a pipeline, which may then be missing (repeatable)
    #[arg(long = "without", value_name = "COMPONENT")]
    components: Vec<String>,
}

impl Without {
    /// Opens an input without these components.
    pub fn open(&self, input: &Path) -> Result<Box<dyn Source>, Error> {
        open_without(input, &self.components)
    }
}

/// Opens an input, except some components of a pipeline.
pub fn open_without(input: &Path, components: &[String]) -> Result<Box<dyn Source>, Error> {
    let without = components.to_vec();
    source::open_with(input, &OpenOptions { without }).map_err(|error| match error {
        Error::Config { key, reason } if key == "without" => Error::Config {
            key: "--without".to_owned(),
            reason,
        },
        other => other,
    })
}

#[derive(clap::Args)]
pub struct PlanArgs {
    /// Defaults for the target machine: edge, local or cloud
    #[arg(long)]
    profile: Option<String>,
    /// A YAML file of settings
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Bits per weight: 2, 4 or 8
    #[arg(long)]
    bits: Option<String>,
    /// Weights per scale: a multiple of 16 up to 1024, or 0 for the whole row
    #[arg(long, value_name = "N")]
    group_size: Option<String>,
    /// symmetric or affine
    #[arg(long)]
    scheme: Option<String>,
    /// How codes and scales are chosen: minmax, lsq, or gptq, which requires a calibration
    #[arg(long)]
    method: Option<String>,
    /// A calibration file [default method with it: gptq]
    #[arg(long, value_name = "FILE")]
    calibration: Option<String>,
    /// Whether timesteps are distinguished, with a calibration
    #[arg(long, value_name = "true|false")]
    time_aware: Option<String>,
    /// Number of timestep groups
    #[arg(long, value_name = "N")]
    time_groups: Option<String>,
    /// How timestep groups are weighted: auto, rows, equal, snr, relative, or a number for each
    #[arg(long, value_name = "HOW")]
    time_weighting: Option<String>,
    /// Whether smoothing and rotation are tried, with a calibration
    #[arg(long, value_name = "true|false")]
    spatial: Option<String>,
    /// What the model generates: text, code, image, audio, unknown, or auto (detected)
    #[arg(long)]
    modality: Option<String>,
    /// Whether amplitude is restored: unit (yes), lsq (no), auto (yes for 2 and 4 bits)
    #[arg(long)]
    gain: Option<String>,
    /// How scales are stored: auto (f16, or f32 for tiles that need it), f16 or f32
    #[arg(long, value_name = "DTYPE")]
    scale_dtype: Option<String>,
    /// What to do with tensors that contain NaN or infinity: error or keep
    #[arg(long, value_name = "ACTION")]
    on_nonfinite: Option<String>,
    /// What to do with weights packed by another quantizer: error or keep
    #[arg(long, value_name = "ACTION")]
    packed: Option<String>,
    /// Keep tensors whose name matches: a glob, or a regular expression after re:
    #[arg(long, value_name = "PATTERN")]
    keep: Vec<String>,
    /// Use other settings for tensors whose name matches; later rules win
    #[arg(long, value_name = "PATTERN=bits:8,group:64")]
    rule: Vec<String>,
    /// none or zstd
    #[arg(long)]
    compression: Option<String>,
    /// Keep memory use low, even if that takes longer
    #[arg(long)]
    streaming: bool,
    /// Memory limit for the whole program, such as 256MB; implies --streaming
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<String>,
    /// Stop with an error in situations that a run normally handles, such as by streaming
    #[arg(long)]
    fail_fast: bool,
    /// Cosine that every tensor must reach, or none: a tensor that does not gets more bits, or is
    /// kept [default: from the profile, 0.85]
    #[arg(long, value_name = "X")]
    min_cosine: Option<String>,
    /// Choose the format of each tensor by its loss: as few bytes as --min-cosine allows, or as
    /// little loss as --max-size and --avg-bits allow, which imply it
    #[arg(long)]
    mixed: bool,
    /// Maximum size of the file, such as 2GB
    #[arg(long, value_name = "SIZE")]
    max_size: Option<String>,
    /// Average bits per weight, including scales
    #[arg(long, value_name = "BITS")]
    avg_bits: Option<String>,
    /// Formats to choose from, such as int2:256,int4:128:affine,int8,keep [default: int2, int4, int8
    /// with several group sizes, and keep, restricted by --bits, --group-size and --scheme]
    #[arg(long, value_name = "FORMATS")]
    candidates: Option<String>,
    /// Seed for sampling rows and for the plans that a search tries
    #[arg(long, value_name = "N")]
    seed: Option<String>,
    /// Threads; 0 means all threads of the machine [default: from the profile]
    #[arg(long, value_name = "N")]
    threads: Option<String>,
    /// Rules from `--keep` and `--rule`, in the order they were given.
    #[arg(skip)]
    pub rules_in_order: Vec<String>,
}

impl PlanArgs {
    /// Flag, key and value of every setting.
    pub fn settings(&self) -> [(&'static str, &'static str, Option<&str>); 26] {
        [
            ("--profile", "deployment_profile", self.profile.as_deref()),
            ("--bits", "bit_width", self.bits.as_deref()),
            ("--group-size", "group_size", self.group_size.as_deref()),
            ("--scheme", "scheme", self.scheme.as_deref()),
            ("--method", "method", self.method.as_deref()),
            ("--calibration", "calibration", self.calibration.as_deref()),
            (
                "--time-aware",
                "enable_time_aware",
                self.time_aware.as_deref(),
            ),
            (
                "--time-groups",
                "num_time_groups",
                self.time_groups.as_deref(),
            ),
            (
                "--time-weighting",
                "time_weighting",
                self.time_weighting.as_deref(),
            ),
            ("--spatial", "enable_spatial", self.spatial.as_deref()),
            ("--modality", "modality", self.modality.as_deref()),
            ("--gain", "gain", self.gain.as_deref()),
            ("--scale-dtype", "scale_dtype", self.scale_dtype.as_deref()),
            (
                "--on-nonfinite",
                "on_nonfinite",
                self.on_nonfinite.as_deref(),
            ),
            ("--packed", "packed", self.packed.as_deref()),
            ("--compression", "compression", self.compression.as_deref()),
            (
                "--streaming",
                "streaming_mode",
                self.streaming.then_some("true"),
            ),
            (
                "--memory-limit",
                "memory_limit",
                self.memory_limit.as_deref(),
            ),
            ("--fail-fast", "fail_fast", self.fail_fast.then_some("true")),
            ("--min-cosine", "min_cosine", self.min_cosine.as_deref()),
            ("--mixed", "mixed_precision", self.mixed.then_some("true")),
            ("--max-size", "max_size", self.max_size.as_deref()),
            ("--avg-bits", "avg_bits", self.avg_bits.as_deref()),
            ("--candidates", "candidates", self.candidates.as_deref()),
            ("--seed", "seed", self.seed.as_deref()),
            ("--threads", "num_threads", self.threads.as_deref()),
        ]
    }

    fn order_rules(&mut self, matches: &ArgMatches) {
        let places = |id: &str| matches.indices_of(id).into_iter().flatten();
        let keeps = self.keep.iter().map(|pattern| format!("{pattern}=keep"));
        let mut rules: Vec<(usize, String)> = places("keep").zip(keeps).collect();
        rules.extend(places("rule").zip(self.rule.iter().cloned()));
        rules.sort();
        self.rules_in_order = rules.into_iter().map(|(_, rule)| rule).collect();
    }
}

impl Args {
    /// Reads the command line; wrong usage ends the program with exit code 2.
    pub fn read() -> Self {
        let matches = Self::command().get_matches();
        let mut args = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        if let Some((_, matches)) = matches.subcommand() {
            match &mut args.command {
                Command::Quantize(quantize) => quantize.plan_args.order_rules(matches),
                Command::Plan { plan, .. } | Command::Analyze { plan, .. } => {
                    plan.order_rules(matches);
                }
                Command::Evolve(evolve) => evolve.plan.order_rules(matches),
                _ => {}
            }
        }
        args
    }
}

fn threads(text: &str) -> Result<usize, String> {
    let config = &mut arrowquant::plan::Config::new();
    let set = config.set("num_threads", text);
    set.map(|()| config.threads())
        .map_err(|error| error.to_string())
}

fn cosine(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match (-1.0..=1.0).contains(&value) {
        true => Ok(value),
        false => Err("a cosine is between -1 and 1".to_owned()),
    }
}
