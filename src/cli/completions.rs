//! `completions`: for the shell.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Exit};

/// Print completions for a shell
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  unified-backend completions bash > /etc/bash_completion.d/unified-backend
  unified-backend completions zsh > ~/.zfunc/_unified-backend
  unified-backend completions fish > ~/.config/fish/completions/unified-backend.fish")]
pub struct Arguments {
    shell: Shell,
}

pub fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    // Into memory first: the generator panics where the output cannot be written.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "unified-backend", &mut script);
    std::io::stdout().lock().write_all(&script)?;
    Ok(Exit::Done)
}
