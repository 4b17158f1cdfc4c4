//! Shell completions and manual pages, generated from the definition of the command line.

use std::path::Path;

use arrowquant::error::{Error, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Args;

/// Returns the completions for a shell.
pub fn completions(shell: Shell) -> String {
    let mut text = Vec::new();
    let mut command = Args::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Writes the manual into a folder, creating it if necessary: `arrowquant.1`, and a page for each
/// command.
pub fn manual(folder: &Path) -> Result<()> {
    let failed = |source| Error::Io {
        path: folder.to_owned(),
        action: "write the manual to",
        source,
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Args::command().disable_help_subcommand(true), folder).map_err(failed)
}
