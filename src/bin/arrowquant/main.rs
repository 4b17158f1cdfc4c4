//! The command line, over the crate's public Rust surface only.
//!
//! Exit codes: 0 success, 1 an error or a failed check, 2 wrong usage, 130 stopped by Ctrl-C.

mod args;
mod chart;
mod pages;
mod report;
mod search;
mod show;
mod stop;

use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use args::{Args, Command, PlanArgs};
use arrowquant::calibrate::Calibration;
use arrowquant::error::{Error, Result};
use arrowquant::format::Float;
use arrowquant::model::Model;
use arrowquant::plan::{Config, Plan};
use arrowquant::run::{self, Fold, Level, Options, Progress};
use arrowquant::source::{self, Source};
use indicatif::{ProgressBar, ProgressStyle};

/// The most bytes of a calibration's Hessians in memory if no command uses them.
const HELD_HESSIANS: usize = 1 << 20;

fn main() -> ExitCode {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !arrowquant::error::panics_are_quiet() {
            hook(panic);
        }
    }));
    let args = Args::read();
    match execute(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        // `with_bar` has printed the message.
        Err(Error::Cancelled) => ExitCode::from(stop::EXIT_CODE),
        Err(error) => {
            // One line, even if a name or a nested message has several.
            let message = error.to_string();
            let lines: Vec<&str> = message.lines().map(str::trim).collect();
            complain(&format!("error: {}", show::printable(&lines.join(" "))));
            match error {
                Error::Config { .. } => ExitCode::from(2),
                _ => ExitCode::from(1),
            }
        }
    }
}

/// Runs one command; false if a check failed.
fn execute(args: Args) -> Result<bool> {
    run::check_environment()?;
    match args.command {
        Command::Quantize(quantize) => quantize_command(&quantize),
        Command::Plan {
            input,
            without,
            plan,
            json,
        } => {
            let config = plan.config()?;
            let source = without.open(&input)?;
            let plan = make_plan(&input, source.as_ref(), &config, false)?;
            warn(&plan);
            print(&match json {
                true => show::json(&plan.to_json()),
                false => show::plan(&plan, run::predicted_bytes(source.as_ref(), &plan)),
            })?;
            Ok(true)
        }
        Command::Analyze {
            input,
            without,
            plan,
            chart,
            json,
        } => {
            let config = plan.config()?;
            let source = without.open(&input)?;
            let doing = format!("analyzing {}", input.display());
            let analysis = with_bar(&doing, config.threads(), false, |options| {
                run::analyze(source.as_ref(), &config, options)
            })?;
            if let Some(path) = chart {
                run::check_not_input(source.as_ref(), &path)?;
                show::analysis_chart(&analysis).write(&path)?;
            }
            print(&match json {
                true => show::json(&serde_json::json!(analysis)),
                false => show::analysis(&analysis),
            })?;
            Ok(true)
        }
        Command::Evolve(evolve) => search::evolve(&evolve),
        Command::Fold {
            input,
            output,
            without,
            calibration,
            alpha,
            dtype,
            threads,
            json,
        } => {
            let float = float(dtype)?;
            let calibration = Calibration::load(&calibration, Some(HELD_HESSIANS))?;
            let source = without.open(&input)?;
            let doing = format!("folding {}", input.display());
            let report = with_bar(&doing, threads, false, |options| {
                run::fold(
                    source.as_ref(),
                    &calibration,
                    &output,
                    Fold { alpha, float },
                    options,
                )
            })?;
            print(&match json {
                true => show::json(&serde_json::json!(report)),
                false => show::fold(&report),
            })?;
            Ok(true)
        }
        Command::Completions { shell } => {
            print(&pages::completions(shell))?;
            Ok(true)
        }
        Command::Man { folder } => pages::manual(&folder).map(|()| true),
        Command::Inspect { file, json } => {
            let model = open_model(&file)?;
            print(&match json {
                true => show::json(&show::inspect_json(&model)),
                false => show::inspect(&model),
            })?;
            Ok(true)
        }
        Command::Verify {
            file,
            against,
            without,
            min_cosine,
            threads,
            json,
        } => {
            let model = open_model(&file)?;
            let open = |path| args::open_without(path, &without);
            let original = against.as_deref().map(open).transpose()?;
            let original = original.as_deref();
            let doing = format!("verifying {}", file.display());
            let verification = with_bar(&doing, threads, false, |options| {
                run::verify(&model, original, min_cosine, options)
            })?;
            print(&match json {
                true => show::json(&serde_json::json!(verification)),
                false => show::verification(&verification, original.is_some()),
            })?;
            Ok(verification.failures().next().is_none())
        }
        Command::Merge { folder, json } => {
            let totals = run::merge(&folder)?;
            print(&match json {
                true => show::json(&serde_json::json!(totals)),
                false => show::totals(&totals),
            })?;
            Ok(true)
        }
        Command::Dequantize {
            file,
            output,
            dtype,
            threads,
        } => {
            let dtype = float(dtype)?;
            let model = open_model(&file)?;
            let doing = format!("decoding {}", file.display());
            with_bar(&doing, threads, false, |options| {
                run::dequantize_file(&model, &output, dtype, options)
            })?;
            Ok(true)
        }
    }
}

/// Parses the float type in `--dtype`.
fn float(dtype: Option<String>) -> Result<Option<Float>> {
    let parse = |text: String| {
        text.parse().map_err(|error| Error::Config {
            key: "--dtype".into(),
            reason: format!("'{text}': {error}"),
        })
    };
    dtype.map(parse).transpose()
}

fn quantize_command(args: &args::Quantize) -> Result<bool> {
    let config = args.plan_args.config()?;
    let source = args.without.open(&args.input)?;
    let plan = match &args.plan {
        None => make_plan(&args.input, source.as_ref(), &config, args.quiet)?,
        Some(path) => {
            let plan = Plan::from_json(&read(path)?);
            let mut plan = plan.map_err(|error| match error {
                Error::Plan(reason) => Error::Plan(format!("{}: {reason}", path.display())),
                other => other,
            })?;
            // These do not change what tensors get.
            plan.streaming |= config.streaming();
            plan.memory_limit = config.memory_limit().or(plan.memory_limit);
            plan.fail_fast |= config.fail_fast();
            plan
        }
    };
    if !args.quiet {
        show::source_notes(&plan).lines().for_each(complain);
    }
    // Created before the work, so that a mistyped folder does not cost hours.
    let report_files = report::create(&args.report, source.as_ref(), &args.output)?;
    let doing = format!("quantizing {}", args.input.display());
    let report = with_bar(&doing, config.threads(), args.quiet, |mut options| {
        options.resume = args.resume;
        options.restart = args.restart;
        options.share = args.part;
        if let Some(size) = args.part_size {
            options.part_bytes = usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        }
        run::quantize(source.as_ref(), &plan, &args.output, options)
    })?;
    report::write(report_files, &report)?;
    if !args.quiet {
        print(&show::report(&report))?;
    }
    Ok(true)
}

/// Opens a quantized model; if the path has weights instead, the error says so.
fn open_model(path: &Path) -> Result<Model> {
    Model::open(path).map_err(|error| match error {
        Error::File { path: file, .. } if source::open(path).is_ok() => Error::File {
            path: file,
            reason: "not a quantized model but weights; `plan` shows how they would be quantized"
                .to_owned(),
        },
        error => error,
    })
}

/// Makes the plan for a source, with a progress bar while measuring.
fn make_plan(input: &Path, source: &dyn Source, config: &Config, quiet: bool) -> Result<Plan> {
    let doing = format!("planning for {}", input.display());
    with_bar(&doing, config.threads(), quiet, |mut options| {
        // Messages are printed when the plan is carried out.
        options.log = None;
        run::plan_with(source, config, options)
    })
}

impl PlanArgs {
    /// Merges the settings; later ones win: profile, YAML, environment, flags.
    fn config(&self) -> Result<Config> {
        let mut config = Config::new();
        if let Some(path) = &self.config {
            config.merge_yaml_file(path)?;
        }
        config.merge_env(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }))?;
        for (flag, key, value) in self.settings() {
            if let Some(value) = value {
                config.set(key, value).map_err(|error| match error {
                    Error::Config { reason, .. } => Error::Config {
                        key: flag.to_owned(),
                        reason,
                    },
                    other => other,
                })?;
            }
        }
        for rule in &self.rules_in_order {
            config.push_rule(rule.parse()?);
        }
        Ok(config)
    }
}

/// Reads a plan, which may come from a pipe.
fn read(path: &Path) -> Result<String> {
    /// A size that no plan reaches, even with the most tensors.
    const MOST: u64 = 256 << 20;
    let failed = |source| Error::Io {
        path: path.to_owned(),
        action: "read",
        source,
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MOST + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    match text.len() as u64 <= MOST {
        true => Ok(text),
        false => Err(failed(std::io::ErrorKind::FileTooLarge.into())),
    }
}

/// Prints warnings about the plan to standard error.
fn warn(plan: &Plan) {
    for warning in plan.warnings() {
        complain(&format!("warning: {}", show::printable(&warning)));
    }
}

/// Calls `work` with options that draw a progress bar on a terminal, print warnings, and stop on
/// Ctrl-C; then `doing` is printed as stopped.
fn with_bar<R>(
    doing: &str,
    threads: usize,
    quiet: bool,
    work: impl FnOnce(Options<'_>) -> Result<R>,
) -> Result<R> {
    let bar = match quiet || !std::io::stderr().is_terminal() {
        true => ProgressBar::hidden(),
        false => ProgressBar::new(0),
    };
    let template = "{wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
    bar.set_style(style);
    let mut tell = |progress: Progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
        !stop::asked()
    };
    let mut log = |level: Level, message: &str| {
        let kind = match level {
            _ if quiet => None,
            Level::Info => None,
            Level::Warning => Some("warning: "),
            Level::Notice => Some(""),
        };
        if let Some(kind) = kind {
            bar.suspend(|| complain(&format!("{kind}{}", show::printable(message))));
        }
        true
    };
    let options = Options {
        threads,
        progress: Some(&mut tell),
        log: Some(&mut log),
        ..Options::default()
    };
    let result = stop::listening(|| work(options));
    bar.finish_and_clear();
    if matches!(result, Err(Error::Cancelled)) && stop::asked() {
        complain(&format!("stopped: {}", show::printable(doing)));
    }
    result
}

/// Writes a line to standard error; failures are ignored.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes to standard output. A closed pipe is not an error; a full disk is.
fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::Io {
            path: "standard output".into(),
            action: "write",
            source: error,
        }),
        _ => Ok(()),
    }
}
