//! The program in its first hour: help, completions, manual, and a configuration made by `init`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use switchboard::config::Settings;

use super::cli::{alone, free_address, outcome, settings_file, switchboard};

const COMMANDS: [&str; 13] = [
    "",
    "serve",
    "init",
    "check",
    "config",
    "config default",
    "healthcheck",
    "token",
    "token issue",
    "token verify",
    "completions",
    "man",
    "help",
];

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

#[test]
fn help_of_every_command_fits_80_columns_and_is_found_in_three_ways() {
    for command in COMMANDS {
        let words = words(command);
        let (code, help, stderr) = outcome(switchboard(&words).arg("--help"));
        assert_eq!((code, &*stderr), (Some(0), ""), "{command}");
        let wide = help.lines().find(|line| line.chars().count() > 80);
        assert_eq!(wide, None, "{command}");
        let asked = [&["help"], &words[..]].concat();
        assert_eq!(
            outcome(&mut switchboard(&asked)),
            (Some(0), help, stderr),
            "{command}"
        );
    }
    let (code, help, _) = outcome(&mut switchboard(&["help", "--help"]));
    assert!(
        code == Some(0) && help.contains("Usage: switchboard help"),
        "{help}"
    );
    let (code, _, stderr) = outcome(&mut switchboard(&["help", "serv"]));
    assert!(code == Some(2) && stderr.contains("'serve'"), "{stderr}");
}

#[test]
fn the_short_options_are_those_of_a_server() {
    let file = settings_file("short.toml", "[limits]\nconnections = 7\n");
    let file = file.to_str().unwrap();
    for arguments in [["-c", file, "check"], ["check", "-c", file]] {
        let (code, stdout, _) = outcome(&mut switchboard(&arguments));
        assert!(
            code == Some(0) && stdout.contains("connections = 7"),
            "{stdout}"
        );
    }
    let version = format!("switchboard {}\n", env!("CARGO_PKG_VERSION"));
    for option in ["-v", "-V", "--version"] {
        let printed = outcome(&mut switchboard(&[option]));
        assert_eq!(printed, (Some(0), version.clone(), String::new()));
    }
}

#[test]
fn completions_of_every_shell_name_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, stderr) = outcome(&mut switchboard(&["completions", shell]));
        assert_eq!((code, &*stderr), (Some(0), ""), "{shell}");
        for word in COMMANDS
            .iter()
            .flat_map(|command| words(command))
            .chain(["--config", "--subject"])
        {
            let option = word.trim_start_matches('-');
            assert!(script.contains(option), "{shell}: {word}");
        }
    }
    // bash itself completes a word by the script.
    let (_, script, _) = outcome(&mut switchboard(&["completions", "bash"]));
    let ask = format!(
        "{script}\nCOMP_WORDS=(switchboard heal); COMP_CWORD=1; _switchboard switchboard heal; echo ${{COMPREPLY[@]}}"
    );
    let (code, stdout, stderr) = outcome(Command::new("bash").args(["-c", &ask]));
    assert_eq!((code, &*stdout), (Some(0), "healthcheck\n"), "{stderr}");
    let (code, _, stderr) = outcome(&mut switchboard(&["completions", "cmd"]));
    assert!(code == Some(2) && stderr.contains("bash"), "{stderr}");
}

#[test]
fn the_manual_has_a_page_for_the_program_and_for_each_command() {
    let (code, page, stderr) = outcome(&mut switchboard(&["man"]));
    assert_eq!((code, &*stderr), (Some(0), ""));
    assert!(page.contains(".TH switchboard 1"), "{page}");
    let folder = alone("manual").with_file_name("pages");
    fs::create_dir(&folder).unwrap();
    let path = folder.to_str().unwrap();
    let written = outcome(&mut switchboard(&["man", path]));
    assert_eq!(written, (Some(0), String::new(), String::new()));
    for command in COMMANDS {
        let name = ["switchboard"].into_iter().chain(words(command));
        let name = name.collect::<Vec<_>>().join("-") + ".1";
        let page = fs::read_to_string(folder.join(&name)).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{name}");
    }
    let (code, _, stderr) = outcome(&mut switchboard(&["man", "/no/such/folder"]));
    assert!(
        code == Some(1) && stderr.contains("/no/such/folder"),
        "{stderr}"
    );
}

#[test]
fn each_package_installs_one_command() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "metadata",
        "--no-deps",
        "--offline",
        "--format-version",
        "1",
    ]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    let (code, stdout, stderr) = outcome(&mut cargo);
    assert_eq!(code, Some(0), "{stderr}");
    let found: Value = serde_json::from_str(&stdout).unwrap();
    for name in ["switchboard", "switchboard-bench"] {
        let packages = found["packages"].as_array().unwrap();
        let package = packages
            .iter()
            .find(|package| package["name"] == name)
            .unwrap();
        let targets = package["targets"].as_array().unwrap();
        let is_program = |target: &&Value| target["kind"] == serde_json::json!(["bin"]);
        let programs: Vec<_> = targets
            .iter()
            .filter(is_program)
            .map(|target| &target["name"])
            .collect();
        assert_eq!(programs, [name]);
        assert_eq!(package["rust_version"], env!("CARGO_PKG_RUST_VERSION"));
    }
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    for word in [
        env!("CARGO_PKG_RUST_VERSION"),
        "Linux",
        "cargo install --locked --path .",
        "MIT",
        "Apache",
    ] {
        assert!(readme.contains(word), "{word} in README.md");
    }
}

/// An empty folder of this name.
fn empty(name: &str) -> PathBuf {
    let folder = alone(name).with_file_name("relay");
    fs::create_dir(&folder).unwrap();
    folder
}

#[test]
fn init_writes_a_configuration_that_check_accepts_and_only_the_owner_can_read() {
    let folder = empty("init");
    let (code, stdout, stderr) = outcome(switchboard(&["init"]).current_dir(&folder));
    assert_eq!((code, &*stderr), (Some(0), ""));
    let settings = folder.canonicalize().unwrap().join("switchboard.toml");
    let path = settings.to_str().unwrap();
    for next in [
        &format!("switchboard -c {path}"),
        "http://127.0.0.1:8080",
        "switchboard connect",
        // The metrics are at admin.listen, and want its token.
        &format!(
            "switchboard bench pairs --metrics http://127.0.0.1:9090/metrics --metrics-token-file {}",
            folder.canonicalize().unwrap().join("admin-token").display()
        ),
    ] {
        assert!(stdout.contains(next), "{next} in {stdout}");
    }
    let text = fs::read_to_string(&settings).unwrap();
    assert!((8..=14).contains(&text.lines().count()), "{text}");
    for word in [
        "listen = ",
        "allowed_origins = ",
        "[tickets]",
        "[admin]",
        "token_file = ",
        "# ",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let mut names = Vec::new();
    let mut secrets = Vec::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(
            path.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{path:?}"
        );
        let text = fs::read_to_string(&path).unwrap();
        if text.lines().count() == 1 {
            assert_eq!(text.trim().len(), 43, "32 bytes in base64");
            secrets.push(text);
        }
        names.push(path.file_name().unwrap().to_owned());
    }
    names.sort();
    assert_eq!(names, ["admin-token", "switchboard.toml", "ticket-secret"]);
    assert_ne!(secrets[0], secrets[1]);
    // From another folder, too.
    let (code, stdout, stderr) = outcome(switchboard(&["check", "-c", path]).current_dir("/"));
    assert_eq!(code, Some(0), "{stderr}");
    let printed = [&stdout, &stderr, &text].map(String::as_str).concat();
    assert!(
        secrets
            .iter()
            .all(|secret| !printed.contains(secret.trim()))
    );
}

#[test]
fn init_overwrites_nothing() {
    for name in ["switchboard.toml", "ticket-secret", "admin-token"] {
        let folder = empty("init-again");
        let file = folder.join(name);
        fs::write(&file, "mine").unwrap();
        let (code, stdout, stderr) = outcome(&mut switchboard(&["init", folder.to_str().unwrap()]));
        assert_eq!((code, &*stdout), (Some(1), ""));
        let complaint = format!(
            "switchboard: {} exists, and init overwrites nothing\n",
            file.canonicalize().unwrap().display()
        );
        assert_eq!(stderr, complaint);
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
    let (code, _, stderr) = outcome(&mut switchboard(&["init", "/no/such/folder"]));
    assert!(
        code == Some(1) && stderr.contains("/no/such/folder"),
        "{stderr}"
    );
}

#[test]
fn check_changed_prints_only_what_differs_from_the_defaults() {
    let none = outcome(&mut switchboard(&["check", "--changed"]));
    assert_eq!((none.0, &*none.1), (Some(0), ""));
    let address = free_address().to_string();
    let secret = settings_file("changed-secret", "hunter2-hunter2-hunter2-hunter2-\n");
    let file = settings_file(
        "changed.toml",
        "[limits]\nhandshakes = 400\nmessage_rate = 9\n[server.tls]\n[drain]\nspread = \"20s\"\n",
    );
    let mut command = switchboard(&[
        "check",
        "--changed",
        "--listen",
        &address,
        "-c",
        file.to_str().unwrap(),
    ]);
    command.env("SWITCHBOARD__TICKETS__SECRET_FILE", &secret);
    let (code, stdout, stderr) = outcome(&mut command);
    assert_eq!(code, Some(0), "{stderr}");
    let expected = format!(
        "[drain]\nspread = \"20s\"\n\n[limits]\nmessage_rate = 9\n\n[server]\nlisten = [\"{address}\"]\n\n\
         [tickets]\nsecret_file = \"{}\"\n",
        secret.display()
    );
    assert_eq!(stdout, expected);
    // It is a configuration with the same effect, and still warns.
    let again = settings_file("changed-again.toml", &stdout);
    let loaded = Settings::load(&[again], None).unwrap();
    assert_eq!(loaded.drain.spread.as_secs(), 20);
    assert!(
        stderr.contains("warning: rates without a limit"),
        "{stderr}"
    );
    let (code, stdout, _) = outcome(command.env("SWITCHBOARD__DRAIN__TIMEOUT", "1s"));
    assert_eq!((code, &*stdout), (Some(78), ""));
}
