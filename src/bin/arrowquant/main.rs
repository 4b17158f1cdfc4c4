//! The command line, over the crate's public Rust surface only.
//!
//! Exit codes: 0 done, 1 the work failed or a check did not hold, 2 wrong usage.

mod args;
mod show;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use args::{Args, Command, PlanArgs};
use arrowquant::error::{Error, Result};
use arrowquant::model::Model;
use arrowquant::plan::{Config, Plan};
use arrowquant::run::{self, Options, Progress};
use arrowquant::source;
use indicatif::{ProgressBar, ProgressStyle};

fn main() -> ExitCode {
    let args = Args::read();
    match execute(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            let line = error
                .to_string()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            eprintln!("error: {line}");
            match error {
                Error::Config { .. } => ExitCode::from(2),
                _ => ExitCode::from(1),
            }
        }
    }
}

/// Does one command; false when a check did not hold.
fn execute(args: Args) -> Result<bool> {
    match args.command {
        Command::Quantize(quantize) => quantize_command(&quantize),
        Command::Plan { input, plan, json } => {
            let config = plan.config()?;
            let plan = run::plan(source::open(&input)?.as_ref(), &config)?;
            warn_of_unused_rules(&plan);
            print(&match json {
                true => show::json(&plan.to_json()),
                false => show::plan(&plan),
            });
            Ok(true)
        }
        Command::Inspect { file, json } => {
            let model = Model::open(&file)?;
            print(&match json {
                true => show::json(&show::inspect_json(&model)),
                false => show::inspect(&model),
            });
            Ok(true)
        }
        Command::Verify {
            file,
            against,
            min_cosine,
            threads,
            json,
        } => {
            let model = Model::open(&file)?;
            let original = against.as_deref().map(source::open).transpose()?;
            let original = original.as_deref();
            let verification = with_bar(threads, false, |options| {
                run::verify(&model, original, min_cosine, options)
            })?;
            print(&match json {
                true => show::json(&serde_json::json!(verification)),
                false => show::verification(&verification, original.is_some()),
            });
            Ok(verification.failures().next().is_none())
        }
        Command::Dequantize {
            file,
            output,
            dtype,
            threads,
        } => {
            let dtype = dtype.map(|dtype| dtype.parse());
            let dtype = dtype.transpose().map_err(|error| Error::Config {
                key: "--dtype".into(),
                reason: format!("{error}"),
            })?;
            let model = Model::open(&file)?;
            with_bar(threads, false, |options| {
                run::dequantize_file(&model, &output, dtype, options)
            })?;
            Ok(true)
        }
    }
}

fn quantize_command(args: &args::Quantize) -> Result<bool> {
    let config = args.plan_args.config()?;
    let source = source::open(&args.input)?;
    let plan = match &args.plan {
        None => run::plan(source.as_ref(), &config)?,
        Some(path) => Plan::from_json(&read(path)?)?,
    };
    warn_of_unused_rules(&plan);
    let report = with_bar(config.threads(), args.quiet, |options| {
        run::quantize(source.as_ref(), &plan, &args.output, options)
    })?;
    if let Some(path) = &args.report {
        let text = show::json(&serde_json::json!(report));
        std::fs::write(path, text).map_err(|source| Error::Io {
            path: path.clone(),
            action: "write the report",
            source,
        })?;
    }
    if !args.quiet {
        print(&show::report(&report));
    }
    Ok(true)
}

impl PlanArgs {
    /// The settings, later ones over earlier: profile, YAML, environment, flags.
    fn config(&self) -> Result<Config> {
        let mut config = Config::new();
        if let Some(path) = &self.config {
            let merged = config.merge_yaml(&read(path)?);
            merged.map_err(|error| in_file(path, error))?;
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

fn in_file(path: &Path, error: Error) -> Error {
    match error {
        Error::Config { key, reason } => Error::Config {
            key: format!("{}: {key}", path.display()),
            reason,
        },
        other => other,
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        action: "read",
        source,
    })
}

fn warn_of_unused_rules(plan: &Plan) {
    for rule in &plan.unused_rules {
        eprintln!("warning: rule {rule} matches no tensor");
    }
}

/// Calls `work` with options whose progress draws a bar, on a terminal.
fn with_bar<R>(
    threads: usize,
    quiet: bool,
    work: impl FnOnce(Options<'_>) -> Result<R>,
) -> Result<R> {
    let mut options = Options {
        threads,
        ..Options::default()
    };
    if quiet || !std::io::stderr().is_terminal() {
        return work(options);
    }
    let template = "{wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style);
    let mut tell = |progress: Progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
        true
    };
    options.progress = Some(&mut tell);
    let result = work(options);
    bar.finish_and_clear();
    result
}

/// Writes to standard output. A reader that stops reading is no failure.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
