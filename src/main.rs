//! Runs one command and returns its exit code. The only file that ends the process.

use std::convert::Infallible;
use std::future::pending;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread::available_parallelism;

use clap::ArgMatches;
use switchboard::app::{self, App};
use switchboard::cli::{self, ConnectOptions, Options};
use switchboard::config::{self, ConfigError, MachineLimits, Settings};
use switchboard::lifecycle::{Signals, Stop};
use switchboard::telemetry::{self, Telemetry};
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tracing::error;

/// `EX_CONFIG` of sysexits.h.
const EXIT_CONFIG: u8 = 78;

fn main() -> ExitCode {
    run(&cli::program().get_matches()).unwrap_or_else(|error| {
        print_error(format_args!("{error:#}"));
        if error.is::<ConfigError>() {
            ExitCode::from(EXIT_CONFIG)
        } else {
            ExitCode::FAILURE
        }
    })
}

fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let left = Options::of(matches);
    let (command, matches) = match matches.subcommand() {
        None => return serve(&left),
        Some(("token", matches)) => matches.subcommand().expect("it needs a command"),
        Some(command) => command,
    };
    // Only for commands that have these options: clap panics when it is asked for an option that a command lacks.
    let options = || left.clone().with(Options::of(matches));
    match command {
        "serve" => return serve(&options()),
        "init" => print(&cli::init(matches)?)?,
        "check" => check(&options().load()?, matches.get_flag("changed"))?,
        "config" => print(config::DEFAULT)?,
        "healthcheck" => small_runtime()?.block_on(cli::healthcheck(&options().load()?))?,
        "connect" => {
            let settings = options().load()?;
            let talk = ConnectOptions::of(matches);
            let code = small_runtime()?.block_on(talk.talk(&settings))?;
            return Ok(ExitCode::from(code));
        }
        "bench" => return Err(cli::exec_bench(matches).into()),
        "issue" => print(&(cli::issue_token(matches, &options().load()?)? + "\n"))?,
        "verify" => {
            let settings = options().load()?;
            let verified = cli::verified_token(matches, &settings, io::stdin());
            print(&(small_runtime()?.block_on(verified)? + "\n"))?;
        }
        "completions" => cli::write_completions(matches, cli::program(), &mut io::stdout())?,
        "man" => cli::write_manual(matches, cli::program(), &mut io::stdout())?,
        // Ends the process, except for `help bench`: the load generator has a help of its own.
        "help" => return run(&cli::program().get_matches_from(cli::help_arguments(matches))),
        operation => {
            let settings = options().load()?;
            let asked = cli::ask_api(operation, matches, &settings);
            let answer = small_runtime()?.block_on(asked)?;
            answer.write(&mut io::stdout(), io::stdout().is_terminal())?;
            if !answer.is_success() {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}

fn small_runtime() -> io::Result<runtime::Runtime> {
    runtime::Builder::new_current_thread().enable_all().build()
}

fn check(settings: &Settings, changed: bool) -> anyhow::Result<()> {
    let printed = if changed {
        settings.changed_from(&Settings::default())
    } else {
        settings.to_string()
    };
    print(&printed)?;
    let mut warnings = MachineLimits::read()?.warnings(settings);
    warnings.extend(settings.exposure_warnings());
    warnings.extend(telemetry::warnings(&settings.tracing));
    warnings.extend(app::id_file(settings)?.and_then(|id_file| id_file.warning()));
    for warning in warnings {
        print_error(format_args!("warning: {warning}"));
    }
    app::check_files(settings)
}

fn serve(options: &Options) -> anyhow::Result<ExitCode> {
    let settings = options.load()?;
    let workers = match settings.server.worker_threads {
        Some(threads) => threads,
        // The CPUs that the process may use by its affinity and by the quota of its cgroup.
        None => available_parallelism()?.get(),
    };
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()?;
    let telemetry = telemetry::init(&settings.log, &settings.tracing, runtime.handle())?;
    let code = runtime.block_on(async {
        // Caught before anything is bound, because from then on a signal must start a drain.
        let signals = Signals::new()?;
        let hangup = signal(SignalKind::hangup())?;
        let (stop, stopped) = oneshot::channel();
        // The start is a part of it: it may wait for a key server, and a second signal must not.
        let drained = async {
            let (traces, logs) = (telemetry.traces.clone(), telemetry.logs.clone());
            let app = App::build_with(settings.clone(), traces, logs).await?;
            telemetry.traces.serve_at(app.addrs()[0]);
            // The channel closes without a value only if `stop_and_wait` is dropped, and then this is, too.
            app.run(async { stopped.await.unwrap_or(Stop::Drain) })
                .await;
            telemetry.flush().await;
            anyhow::Ok(ExitCode::SUCCESS)
        };
        tokio::select! {
            number = signals.stop_and_wait(stop) => Ok(ExitCode::from(128 + number)),
            code = drained => code,
            never = reload(hangup, options, settings.clone(), &telemetry) => match never {},
        }
    });
    // Does not wait for tasks: the drain has waited for them, and a second signal must not wait.
    runtime.shutdown_background();
    code
}

/// Reads the settings again at every SIGHUP, and applies those that can change in a running process.
/// Invalid settings change nothing.
async fn reload(
    mut hangup: Signal,
    options: &Options,
    mut running: Settings,
    telemetry: &Telemetry,
) -> Infallible {
    loop {
        if hangup.recv().await.is_none() {
            return pending().await;
        }
        match options.load() {
            Ok(settings) => telemetry.reload(&mut running, &settings),
            Err(error) => {
                for problem in error.problems() {
                    error!(%problem, "setting refused");
                }
                error!("settings not reloaded: the running settings stay in effect");
            }
        }
    }
}

fn print_error(message: impl std::fmt::Display) {
    // Fails only if stderr is closed, and then there is no other place to report to.
    drop(writeln!(io::stderr(), "switchboard: {message}"));
}
