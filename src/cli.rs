//! Arguments → command → exit code: one file a command.
//!
//! Exit codes: 0 fine, 1 a run-time failure, 2 wrong usage or configuration.

mod admin;
mod check;
mod demo;
mod drain;
mod engine;
mod explain;
mod key;
mod reload;
mod run;
mod status;
mod upgrade;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// An edge reverse proxy for inference engines.
#[derive(Debug, Parser)]
#[command(name = "forebay", version = VERSION, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Check(check::Check),
    Explain(explain::Explain),
    Status(status::Status),
    Reload(reload::Reload),
    Drain(drain::Drain),
    Ready(drain::Ready),
    Maint(drain::Maint),
    Upgrade(upgrade::Upgrade),
    Demo(demo::Demo),
    #[command(subcommand)]
    Key(key::Command),
    Engine(engine::Engine),
}

/// Which configuration to read.
#[derive(Debug, Args)]
struct Source {
    /// The configuration file
    #[arg(short = 'c', long = "config", value_name = "FILE", default_value = "/etc/forebay/forebay.toml")]
    config: PathBuf,
    /// Short for FOREBAY_ENV=NAME: what `${FOREBAY_ENV}` stands for in the configuration
    #[arg(long, value_name = "NAME")]
    env: Option<String>,
}

/// Why a command did not succeed: what to say, and how to exit.
#[derive(Debug)]
enum Failure {
    /// Wrong usage or configuration.
    Usage(String),
    /// Something failed while running.
    Runtime(String),
    /// There is nothing left to say: the answer was no, or nobody listens.
    Silent,
}

/// Runs what the arguments say.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse(); // exits with 2 by itself
    let done = match cli.command {
        Command::Run(command) => command.run(),
        Command::Check(command) => command.run(),
        Command::Explain(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Reload(command) => command.run(),
        Command::Drain(command) => command.run(),
        Command::Ready(command) => command.run(),
        Command::Maint(command) => command.run(),
        Command::Upgrade(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Key(command) => command.run(),
        Command::Engine(command) => command.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Version and git revision.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("FOREBAY_REVISION"), ")");

// === impl Source ===

impl Source {
    /// What gives the values of `${NAME}`.
    fn environment(&self) -> impl Fn(&str) -> Option<String> + Send + Sync + 'static {
        let named = self.env.clone();
        move |name| match &named {
            Some(named) if name == "FOREBAY_ENV" => Some(named.clone()),
            _ => std::env::var(name).ok(),
        }
    }
}

/// Prints all of it.
///
/// # Errors
/// When nobody takes it: what was asked for has not been told.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|e| match e.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::Silent, // its reader has what it wanted
        _ => Failure::Runtime(format!("cannot print: {e}")),
    })
}

// === impl Failure ===

impl Failure {
    /// What there is to say.
    fn said(&self) -> Option<&str> {
        match self {
            Self::Usage(said) | Self::Runtime(said) => Some(said),
            Self::Silent => None,
        }
    }

    fn report(&self) -> ExitCode {
        match self {
            Self::Usage(said) => {
                eprintln!("{said}");
                ExitCode::from(2)
            }
            Self::Runtime(said) => {
                eprintln!("forebay: {said}");
                ExitCode::from(1)
            }
            Self::Silent => ExitCode::from(1),
        }
    }
}
