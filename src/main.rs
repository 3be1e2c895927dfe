//! Runs one verb and returns its exit code. The only file that ends the process.

use std::convert::Infallible;
use std::future::pending;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread::available_parallelism;

use clap::Parser;
use switchboard::app::{self, App};
use switchboard::cli::{self, Cli, ConfigVerb, Options, TokenVerb, Verb};
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
    run(Cli::parse()).unwrap_or_else(|error| {
        print_error(format_args!("{error:#}"));
        if error.is::<ConfigError>() {
            ExitCode::from(EXIT_CONFIG)
        } else {
            ExitCode::FAILURE
        }
    })
}

fn run(Cli { verb, options, .. }: Cli) -> anyhow::Result<ExitCode> {
    match verb.unwrap_or_else(|| Verb::Serve(Options::default())) {
        Verb::Serve(right) => return serve(&options.with(right)),
        Verb::Init(init) => io::stdout().write_all(init.write()?.as_bytes())?,
        Verb::Check(right) => check(&options.with(right.options).load()?, right.changed)?,
        Verb::Config(ConfigVerb::Default) => io::stdout().write_all(config::DEFAULT.as_bytes())?,
        Verb::Bench(bench) => return Err(bench.exec().into()),
        Verb::Healthcheck(right) => {
            let settings = options.with(right).load()?;
            small_runtime()?.block_on(cli::healthcheck(&settings))?;
        }
        Verb::Token(TokenVerb::Issue(issue)) => {
            let settings = options.with(issue.options.clone()).load()?;
            let token = issue.token(&settings)?;
            io::stdout().write_all(format!("{token}\n").as_bytes())?;
        }
        Verb::Token(TokenVerb::Verify(verify)) => {
            let settings = options.with(verify.options.clone()).load()?;
            let verified = verify.verified(&settings, io::stdin());
            let verified = small_runtime()?.block_on(verified)?;
            io::stdout().write_all(format!("{verified}\n").as_bytes())?;
        }
        Verb::Connect(connect) => {
            let settings = options.with(connect.options.clone()).load()?;
            let code = small_runtime()?.block_on(connect.talk(&settings))?;
            return Ok(ExitCode::from(code));
        }
        Verb::Operate(operation) => {
            let settings = options.with(operation.api().options.clone()).load()?;
            let answer = small_runtime()?.block_on(operation.ask(&settings))?;
            answer.write(&mut io::stdout(), io::stdout().is_terminal())?;
            return Ok(success_if(answer.is_success()));
        }
        Verb::Completions(shell) => shell.write(Cli::program(), &mut io::stdout())?,
        Verb::Man(man) => man.write(Cli::program(), &mut io::stdout())?,
        // Ends the process, except for `help bench`: the load generator has a help of its own.
        Verb::Help(help) => return run(Cli::parse_from(help.arguments())),
    }
    Ok(ExitCode::SUCCESS)
}

fn success_if(is_well: bool) -> ExitCode {
    if is_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
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
    io::stdout().write_all(printed.as_bytes())?;
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
