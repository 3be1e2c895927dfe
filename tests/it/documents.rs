//! The documents: every link leads to a file and a heading that exist, the settings document is generated from
//! config/default.toml, and the table of threats names tests that exist. `UPDATE=1 cargo it documents` writes
//! the settings document.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::tidy::sources;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Markdown file of the project.
fn documents() -> Vec<PathBuf> {
    // Folders of built and installed files: they contain documents of other projects.
    const SKIPPED: [&str; 4] = ["target", "node_modules", ".cache", ".git"];
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !SKIPPED.contains(&name) {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// The lines of a document outside its fenced blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let is_fence = line.starts_with("```");
        fenced ^= is_fence;
        !fenced && !is_fence
    })
}

/// The anchors that GitHub gives the headings: lower case, hyphens for spaces, no punctuation.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// The targets of the links and pictures of a document.
fn links(text: &str) -> Vec<&str> {
    let ends = [("](", ')'), ("src=\"", '"'), ("srcset=\"", '"')];
    let of_line = |line| {
        ends.into_iter().flat_map(move |(start, end)| {
            let after = str::split(line, start).skip(1);
            after.filter_map(move |rest: &str| Some(rest.split_once(end)?.0))
        })
    };
    prose(text).flat_map(of_line).collect()
}

/// Describes what is wrong with a link of this document; None for a correct link.
fn broken(document: &Path, link: &str) -> Option<String> {
    if link.starts_with("https://") || link.starts_with("http://") {
        return None;
    }
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match path {
        "" => document.to_owned(),
        path => document.parent().unwrap().join(path),
    };
    let Ok(target) = target.canonicalize() else {
        return Some(format!("{link}: no such file"));
    };
    if !target.starts_with(root().canonicalize().unwrap()) {
        return Some(format!("{link}: outside the project"));
    }
    let has_anchor =
        anchor.is_empty() || anchors(&fs::read_to_string(target).ok()?).contains(anchor);
    (!has_anchor).then(|| format!("{link}: no such heading"))
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut mistakes = Vec::new();
    let mut links_seen = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&text) {
            links_seen += 1;
            let mistake = broken(&document, link);
            mistakes.extend(mistake.map(|mistake| format!("{}: {mistake}", document.display())));
        }
    }
    assert!(links_seen > 20, "only {links_seen} links were found");
    assert!(mistakes.is_empty(), "{mistakes:#?}");
}

#[test]
fn a_broken_link_is_found() {
    let readme = root().join("README.md");
    let check = |link| broken(&readme, link);
    assert_eq!(links("a [b](c.md) and `src=\"d\"`"), ["c.md", "d"]);
    assert_eq!(links("```\n[b](c.md)\n```\n"), [""; 0]);
    assert_eq!(check("https://example.com/"), None);
    assert_eq!(check("src"), None);
    assert!(check("no-such-file.md").unwrap().contains("no such file"));
    assert!(check("../outside").is_some());
    assert!(
        check("#no-such-heading")
            .unwrap()
            .contains("no such heading")
    );
    assert!(anchors("## Let's go: `a_b`, now\n").contains("lets-go-a_b-now"));
}

/// The part of config/README.md after [`SETTINGS`]: the comments of config/default.toml as text and tables.
fn settings() -> String {
    let mut parts = Vec::new();
    let (mut section, mut comment) = ("", Vec::new());
    for line in switchboard::config::DEFAULT.lines() {
        // A setting without a default is commented out.
        let plain = line.strip_prefix('#').map_or(line, str::trim);
        let is_key = |key: &str| key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
            let intro = comment.join("\n");
            let head = "| setting | default | meaning |\n| - | - | - |\n";
            parts.push(format!("\n## {section}\n\n{intro}\n\n{head}"));
        } else if let Some((key, value)) = plain.split_once(" = ").filter(|(key, _)| is_key(key)) {
            let meaning = comment.join(" ");
            assert!(!meaning.is_empty(), "{section}.{key} has no comment");
            let set = format!("`{value}`");
            let default = if line == plain { &set } else { "not set" };
            parts.push(format!("| `{section}.{key}` | {default} | {meaning} |\n"));
        } else if !line.is_empty() {
            comment.push(plain);
            continue;
        } else if section.is_empty() {
            parts.push(comment.join("\n") + "\n");
        }
        comment.clear();
    }
    parts.concat()
}

/// The line above the generated part of config/README.md.
const SETTINGS: &str = "<!-- Made from default.toml by `UPDATE=1 cargo it documents`. -->\n";

#[test]
fn the_settings_document_matches_the_defaults() {
    let path = root().join("config/README.md");
    let found = fs::read_to_string(&path).unwrap();
    let (written, _) = found.split_once(SETTINGS).unwrap();
    let expected = format!("{written}{SETTINGS}{}", settings());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, expected).unwrap();
    } else {
        assert!(
            found == expected,
            "config/README.md is out of date: run UPDATE=1 cargo it documents"
        );
    }
}

/// The table of threats names tests as `module::beginning_…`, or a test module as `module::tests`.
#[test]
fn the_table_of_threats_names_tests_that_exist() {
    let root = root();
    let document = fs::read_to_string(root.join("tests/attacks/README.md")).unwrap();
    let table = document.lines().skip_while(|line| *line != THREATS).skip(2);
    let rows: Vec<_> = table.take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 15, "{rows:?}");
    let all: Vec<_> = ["src", "tests"].into_iter().flat_map(sources).collect();
    let exists = |name: &str| {
        let (module, test) = name.split_once("::").expect("a module and a test");
        let of_module = |path: &&PathBuf| {
            let parts = path.strip_prefix(&root).unwrap().with_extension("");
            parts.iter().any(|part| part == module)
        };
        let wanted = match test.strip_suffix('…') {
            Some(beginning) => format!("fn {}", beginning.trim_start_matches("tests::")),
            None => format!("mod {test}"),
        };
        let mut files = all.iter().filter(of_module);
        files.any(|path| fs::read_to_string(path).unwrap().contains(&wanted))
    };
    let shown = rows.iter().map(|row| row.rsplit('|').nth(1).unwrap());
    let names: Vec<_> = shown
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    assert!(names.len() >= rows.len(), "a row names no test: {names:?}");
    let lost: Vec<_> = names.iter().filter(|name| !exists(name)).collect();
    assert!(lost.is_empty(), "no such test: {lost:?}");
}

const THREATS: &str = "| attacker | attack | what stops it | shown by |";
