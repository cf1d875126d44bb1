//! The `shoal` binary: a node of a cluster, a whole cluster for development, and the admin's commands.
//!
//! In come arguments and files; out go nodes (see [`node`]) or answers on stdout. A failure is one line on stderr that names the
//! thing, and exit code 1 ([`Failure::exit_code`] has the others); wrong arguments are clap's message and exit code 2.

mod admin;
mod advise;
mod arguments;
mod course;
mod data_dir;
mod dev;
mod drain;
mod failure;
mod identity;
mod init;
mod keyspaces;
mod listings;
mod meeting;
mod metrics;
mod node;
mod options;
mod peers;
mod progress;
mod ready;
mod replicas;
mod reshard;
mod serve;
mod status;
mod stream;
mod tables;
mod transactions;
mod tuning;
mod units;

use arguments::{Arguments, Command};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use failure::Failure;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::thread::available_parallelism;
use tracing_subscriber::EnvFilter;

/// Every statement makes and drops many small things, often on another thread than the one that made them. SQLite's are
/// made by it, too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = Arguments::try_parse().unwrap_or_else(|error| with_tip(error).exit());
    let filter = EnvFilter::try_from_env("SHOAL_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("shoal: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

/// What else says where the cluster is.
fn with_tip(mut error: clap::Error) -> clap::Error {
    let lacks_host = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(missing)) => missing.iter().any(|name| name.starts_with("--host ")),
        _ => false,
    };
    if error.kind() == ErrorKind::MissingRequiredArgument && lacks_host {
        let tip = "SHOAL_HOST in the environment says it, too".to_owned();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        // The log and the shards' engines have threads of their own, and want a processor, too.
        runtime.worker_threads(available_parallelism().map_or(1, |all| all.get().saturating_sub(1).max(1)));
    }
    let runtime = runtime.enable_all().build().map_err(Failure::Runtime)?;
    match arguments.command {
        Command::Dev(options) => runtime.block_on(dev::run(*options)),
        Command::Node(node) => match node.admin {
            None => runtime.block_on(serve::run(node.options)),
            Some(command) => runtime.block_on(drain::run(command)),
        },
        Command::Init(options) => runtime.block_on(init::run(options)),
        Command::Status(options) => runtime.block_on(status::run(options)),
        Command::Shards(options) => runtime.block_on(listings::shards(options)),
        Command::Nodes(options) => runtime.block_on(listings::nodes(options)),
        Command::Tables(options) => runtime.block_on(tables::run(options)),
        Command::Advise(options) => runtime.block_on(advise::run(options)),
        Command::Replica(command) => runtime.block_on(replicas::run(command)),
        Command::Keyspace(command) => runtime.block_on(keyspaces::run(command)),
        Command::Stream(options) => runtime.block_on(stream::run(options)),
        Command::Reshard(command) => runtime.block_on(reshard::run(command)),
        Command::Txn(command) => runtime.block_on(transactions::run(command)),
        Command::Completions { shell } => completions(shell),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "shoal", &mut script);
    std::io::stdout().write_all(&script).map_err(Failure::Print)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_no_host_is_told_how() {
        let command = Arguments::command().mut_subcommand("status", |status| {
            status.mut_arg("host", |host| host.env(clap::builder::Resettable::Reset))
        });
        let said = |line: &[&str]| {
            with_tip(command.clone().try_get_matches_from(line).unwrap_err()).render().to_string()
        };
        assert!(said(&["shoal", "status"]).contains("SHOAL_HOST"));
        assert!(!said(&["shoal", "status", "--host"]).contains("SHOAL_HOST"));
    }
}
