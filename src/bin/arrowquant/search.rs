//! `evolve`: searches for a plan, by the errors of tensors or by a command's output.

use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};

use arrowquant::error::{Error, Result};
use arrowquant::plan::{Generation, Plan};
use arrowquant::run::{self, Fitness, Search};
use arrowquant::sink::StagedFile;
use indicatif::{ProgressBar, ProgressStyle};

use super::args::EvolveArgs;
use super::report::same_file;
use super::{print, show, stop, warn, with_bar};

pub fn evolve(args: &EvolveArgs) -> Result<bool> {
    let config = args.plan.config()?;
    let source = args.without.open(&args.input)?;
    run::check_not_input(source.as_ref(), &args.output)?;
    let others = [&args.checkpoint, &args.chart].map(Option::as_ref);
    if others
        .into_iter()
        .flatten()
        .any(|path| same_file(path, &args.output))
    {
        return Err(Error::Config {
            key: "--checkpoint, --chart".to_owned(),
            reason: format!("'{}' is the output", args.output.display()),
        });
    }
    let mut output = StagedFile::create(&args.output)?;
    let mut failure = None;
    let mut by_command = |plan: &Plan| match args.fitness.as_deref() {
        // Ctrl-C also reaches the command; that is not a failure.
        Some(_) if stop::asked() => f64::NEG_INFINITY,
        Some(command) => worth(command, plan).unwrap_or_else(|error| {
            if !stop::asked() {
                failure = Some(error);
            }
            f64::NEG_INFINITY
        }),
        None => 0.0,
    };
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new(args.generations as u64),
        false => ProgressBar::hidden(),
    };
    let template = "{wide_bar} generation {pos}/{len}  {msg}  {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
    bar.set_style(style);
    let mut told = |generation: &Generation| {
        bar.set_position(generation.generation as u64);
        bar.set_message(format!("best {:.6}", generation.best));
        !stop::asked()
    };
    let search = Search {
        fitness: match args.fitness {
            Some(_) => Fitness::Serial(&mut by_command),
            None => Fitness::Errors,
        },
        population: args.population,
        generations: args.generations,
        checkpoint: args.checkpoint.clone(),
        identity: args.fitness.clone().unwrap_or_default(),
        resume: args.resume,
        told: Some(&mut told),
    };
    let doing = format!("searching for a plan for {}", args.input.display());
    let found = with_bar(&doing, config.threads(), false, |options| {
        run::evolve(source.as_ref(), &config, search, options)
    });
    bar.finish_and_clear();
    if let Some(error) = failure {
        return Err(error);
    }
    let found = found?;
    warn(&found.plan);
    let written = output.write_all(show::json(&found.plan.to_json()).as_bytes());
    written.map_err(|source| Error::Io {
        path: args.output.clone(),
        action: "write",
        source,
    })?;
    output.commit()?;
    if let Some(path) = &args.chart {
        run::check_not_input(source.as_ref(), path)?;
        show::evolution_chart(&found).write(path)?;
    }
    print(&match args.json {
        true => show::json(&found.to_json()),
        false => show::evolution(&found),
    })?;
    Ok(true)
}

/// Returns the last number that a command prints for a plan.
fn worth(command: &str, plan: &Plan) -> Result<f64> {
    let refuse = |reason: String| Error::Plan(format!("--fitness '{command}' {reason}"));
    let failed = |error: std::io::Error| refuse(format!("cannot be run: {error}"));
    let mut file = tempfile::Builder::new()
        .prefix("plan-")
        .suffix(".json")
        .tempfile()
        .map_err(failed)?;
    let text = show::json(&plan.to_json());
    file.write_all(text.as_bytes()).map_err(failed)?;
    // Closed, because on Windows others may be unable to open a file that is open for writing.
    let path = file.into_temp_path();
    let output = shell(&command.replace("{}", &path.to_string_lossy()))
        .stderr(Stdio::inherit())
        .output()
        .map_err(failed)?;
    if !output.status.success() {
        return Err(refuse(format!("failed: {}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut words = text.split_whitespace().rev();
    words
        .find_map(|word| word.parse::<f64>().ok())
        .ok_or_else(|| refuse("printed no number".to_owned()))
}

/// Makes a command for the system's shell.
#[cfg(not(windows))]
fn shell(line: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", line]);
    shell
}

/// Makes a command for the system's shell: in quotes, within which other quotes are unchanged.
#[cfg(windows)]
fn shell(line: &str) -> Command {
    use std::os::windows::process::CommandExt;
    let mut shell = Command::new("cmd");
    shell.raw_arg(format!("/S /C \"{line}\""));
    shell
}
