//! The files for contributors: tests/run, the workflow, the guide. The files, parts and versions that they name must
//! exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn tests_run(argument: &str) -> Output {
    let mut command = Command::new(root().join("tests/run"));
    command.arg(argument).output().unwrap()
}

/// The names of a shell script's functions that begin with `prefix`, without the prefix.
fn functions<'a>(script: &'a str, prefix: &'a str) -> BTreeSet<&'a str> {
    let lines = script.lines();
    lines
        .filter_map(|line| line.strip_prefix(prefix)?.split_once("() {"))
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn help_of_tests_run_lists_every_part() {
    let output = tests_run("--help");
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    let (_, parts) = help.split_once("\nParts:\n").unwrap();
    let (parts, _) = parts.split_once("\n\n").unwrap();
    let names: BTreeSet<_> = parts
        .lines()
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    let script = read("tests/run");
    let install = read("tests/install.sh");
    assert_eq!(names, functions(&script, "part_"));
    let needs = &functions(&script, "need_") | &functions(&install, "need_");
    assert!(names.is_subset(&needs), "{names:?} {needs:?}");
}

#[test]
fn unknown_part_is_refused_with_the_list_of_parts() {
    let output = tests_run("no-such-part");
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("\"no-such-part\""), "{message}");
    for part in functions(&read("tests/run"), "part_") {
        assert!(message.contains(&format!(" {part} ")), "{part}: {message}");
    }
}

#[test]
fn workflow_runs_the_checks_with_the_oldest_toolchain() {
    let workflow = read(".github/workflows/ci.yml");
    let image = format!("container: rust:{}-", env!("CARGO_PKG_RUST_VERSION"));
    assert!(workflow.contains(&image), "no {image}");
    assert!(workflow.contains("- run: .ci/run\n"));
}

#[test]
fn contributing_names_files_that_exist() {
    let guide = read(".github/CONTRIBUTING.md");
    let spans = guide.split('`').skip(1).step_by(2);
    let is_path = |span: &&str| {
        ["src/", "tests/", "config/", "benches/", ".ci/"]
            .iter()
            .any(|folder| span.starts_with(folder))
    };
    // A span can be a command: the path ends at the first space.
    let paths: BTreeSet<_> = spans
        .filter(is_path)
        .filter_map(|span| span.split(' ').next())
        .collect();
    assert!(paths.len() > 20, "{paths:?}");
    let lost: Vec<_> = paths
        .iter()
        .filter(|path| !root().join(path).exists())
        .collect();
    assert!(lost.is_empty(), "no such file: {lost:?}");
}

#[test]
fn dependabot_looks_into_folders_that_exist() {
    let updates = read(".github/dependabot.yml");
    let folders: Vec<_> = updates
        .lines()
        .filter_map(|line| line.trim().strip_prefix("director")?.split_once(": "))
        .flat_map(|(_, list)| list.trim_matches(['[', ']']).split(", "))
        .collect();
    assert!(folders.len() > 5, "{folders:?}");
    for folder in folders {
        let path = root().join(folder.trim_start_matches('/'));
        assert!(path.is_dir(), "no such folder: {folder}");
    }
}
