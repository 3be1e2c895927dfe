//! The structure of the sources: the modules that each module may use, and a `//!` comment in every file.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module and the modules that it may use, lowest first. A module without a row is an error.
const ARROWS: &[(&str, &[&str])] = &[
    ("identity", &[]),
    ("config", &[]),
    ("lifecycle", &[]),
    ("net", &["config"]),
    ("auth", &["config", "identity", "net"]),
    ("ticket", &["identity"]),
    ("protocol", &["identity"]),
    ("telemetry", &["config", "net"]),
    ("admission", &["config", "lifecycle", "telemetry"]),
    ("ledger", &["identity", "telemetry"]),
    (
        "directory",
        &["config", "identity", "protocol", "ledger", "telemetry"],
    ),
    (
        "cluster",
        &[
            "config",
            "identity",
            "protocol",
            "ledger",
            "directory",
            "lifecycle",
            "net",
            "telemetry",
        ],
    ),
    (
        "relay",
        &[
            "config",
            "id_file",
            "identity",
            "protocol",
            "ledger",
            "telemetry",
            "cluster",
            "directory",
        ],
    ),
    (
        "session",
        &[
            "config",
            "identity",
            "net",
            "protocol",
            "ledger",
            "relay",
            "directory",
            "lifecycle",
            "admission",
            "net",
            "telemetry",
        ],
    ),
    (
        "api",
        &[
            "config",
            "identity",
            "protocol",
            "ledger",
            "directory",
            "lifecycle",
            "relay",
            "telemetry",
        ],
    ),
    (
        "http",
        &[
            "api",
            "auth",
            "config",
            "identity",
            "protocol",
            "lifecycle",
            "admission",
            "relay",
            "session",
            "telemetry",
            "ticket",
            "net",
        ],
    ),
    ("drain", &["config", "directory", "lifecycle", "relay"]),
    ("id_file", &["identity"]),
    ("notices", &["ledger", "relay", "telemetry"]),
    ("cli", &["auth", "config", "identity", "net", "protocol"]),
    (
        "app",
        &[
            "api",
            "auth",
            "cluster",
            "config",
            "directory",
            "drain",
            "http",
            "id_file",
            "identity",
            "ledger",
            "lifecycle",
            "notices",
            "protocol",
            "admission",
            "relay",
            "session",
            "telemetry",
            "ticket",
            "net",
        ],
    ),
];

pub(crate) fn sources(under: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(under)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The module below the crate root that a file belongs to.
fn module(path: &Path) -> String {
    let src = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let first = path.strip_prefix(src).unwrap().components().next().unwrap();
    let name = Path::new(first.as_os_str()).file_stem().unwrap();
    name.to_str().unwrap().to_owned()
}

/// The modules that a line of code names after `crate::`.
fn used(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::").skip(1).map(|rest| {
        rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .next()
            .unwrap_or_default()
    })
}

#[test]
fn modules_use_only_modules_below_them() {
    let mut mistakes = Vec::new();
    for path in sources("src") {
        let module = module(&path);
        if module == "main" || module == "lib" {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
            mistakes.push(format!(
                "{}: the module has no row in ARROWS",
                path.display()
            ));
            continue;
        };
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            if line.trim_start().starts_with("//") || line.contains("pub(in crate::") {
                continue;
            }
            for name in used(line) {
                // Also an error: `use crate::{…}`, because no name follows. Use one line for each module.
                if name != module && !allowed.contains(&name) {
                    mistakes.push(format!(
                        "{}:{}: {module} uses {name}",
                        path.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
}

#[test]
#[allow(
    clippy::print_stderr,
    reason = "a long file is reported, but is no error"
)]
fn every_file_begins_with_a_module_comment() {
    let all = ["src", "tests", "benches"]
        .into_iter()
        .filter(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).exists());
    let silent: Vec<_> = all
        .flat_map(sources)
        .filter(|path| !path.components().any(|part| part.as_os_str() == "target"))
        .filter(|path| {
            !fs::read_to_string(path)
                .unwrap()
                .trim_start()
                .starts_with("//!")
        })
        .collect();
    for path in sources("src") {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        if lines > 300 {
            eprintln!("long: {} has {lines} lines", path.display());
        }
    }
    assert!(silent.is_empty(), "files without a //! comment: {silent:?}");
}
