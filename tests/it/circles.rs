//! No two files of a crate import each other, directly or through other files. This test reads the imports as text. A
//! name that a file only re-exports (`pub use`) makes an arrow from the file that uses the name to the file that
//! defines it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use crate::tidy::sources;

/// A path from the crate root, in segments.
type Segments = Vec<String>;

struct File {
    /// Paths in its code, outside imports, comments and tests.
    used: BTreeSet<Segments>,
    /// Names that it imports or re-exports, each with its path.
    imports: BTreeMap<String, Segments>,
    /// Names of `imports` that the file only re-exports.
    re_exported: BTreeSet<String>,
}

/// The source without comments and without an inline test module at its end. A `//` in a string counts as a comment.
fn code(source: &str) -> String {
    let mut parts = source.split("#[cfg(test)]\nmod tests {");
    let lines = parts.next().unwrap_or_default().lines();
    let lines = lines.map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Appends the names and paths of a use tree below `before`: `a::{b, c::d as e}` gives `b` for `a::b` and `e` for
/// `a::c::d`.
fn leaves(tree: &str, before: &[String], found: &mut Vec<(String, Segments)>) {
    let tree = tree.trim();
    if let Some((parent, children)) = tree.split_once('{') {
        let path: Segments = before.iter().cloned().chain(segments(parent)).collect();
        let mut depth = 0;
        let children = children.split(|sign| {
            match sign {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' => return depth == 0,
                _ => {}
            }
            false
        });
        for child in children {
            leaves(child, &path, found);
        }
    } else if !tree.is_empty() {
        let (path, alias) = tree.split_once(" as ").unwrap_or((tree, ""));
        let mut path: Segments = before.iter().cloned().chain(segments(path)).collect();
        if path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        if let Some(last) = path.last() {
            let name = if alias.is_empty() { last } else { alias };
            found.push((name.to_owned(), path));
        }
    }
}

fn segments(path: &str) -> impl Iterator<Item = String> {
    let parts = path.split("::").map(str::trim);
    parts.filter(|part| !part.is_empty()).map(str::to_owned)
}

/// Converts a path in the module `here` to a path from the crate root. Returns None for a path into another crate.
fn resolve(path: &[String], here: &[String], modules: &BTreeSet<Segments>) -> Option<Segments> {
    let mut base = here.to_vec();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => {
            base.clear();
            rest = &path[1..];
        }
        "self" => rest = &path[1..],
        "super" => {
            while rest.first().is_some_and(|first| first == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
        child => {
            base.push(child.to_owned());
            if !modules.contains(&base) {
                return None;
            }
            rest = &path[1..];
        }
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

/// The paths in code without imports: words that contain `::`. `pub(in crate::a)` uses no name of `a`.
fn paths(code: &str) -> impl Iterator<Item = Segments> {
    let parts = code.split("pub(in ").enumerate().map(|(index, part)| {
        let scoped = part.split_once(')').filter(|_| index > 0);
        scoped.map_or(part, |(_, rest)| rest)
    });
    let words = parts.flat_map(|part| {
        part.split(|sign: char| !sign.is_ascii_alphanumeric() && !matches!(sign, '_' | ':'))
    });
    let words = words.filter(|word| word.contains("::"));
    words.map(|word| segments(word).collect())
}

/// Whether the statement is `mod name;`, which uses no name of that file.
fn is_declaration(statement: &str) -> bool {
    let line = statement.trim().rsplit('\n').next().unwrap_or_default();
    let name = line
        .split_once("mod ")
        .map(|(_, name)| name.trim_end_matches(';'));
    name.is_some_and(|name| {
        name.chars()
            .all(|sign| sign.is_ascii_alphanumeric() || sign == '_')
    })
}

fn read(source: &str, here: &[String], modules: &BTreeSet<Segments>) -> File {
    let code = code(source);
    let (mut imported, mut public, mut rest) = (Vec::new(), Vec::new(), String::new());
    for statement in code.split_inclusive(';') {
        let import = statement.split_once("use ").filter(|(before, _)| {
            let line = before.trim_end().rsplit('\n').next().unwrap_or_default();
            line.trim().is_empty() || line.trim().starts_with("pub")
        });
        match import {
            Some((before, tree)) => {
                let into = if before.contains("pub") {
                    &mut public
                } else {
                    &mut imported
                };
                leaves(tree.trim_end_matches(';'), &[], into);
                rest.push_str(before);
            }
            None if is_declaration(statement) => {}
            None => rest.push_str(statement),
        }
    }
    let words: BTreeSet<_> = rest
        .split(|sign: char| !sign.is_ascii_alphanumeric() && sign != '_')
        .collect();
    let re_exported = public.iter().map(|(name, _)| name.clone());
    let re_exported = re_exported
        .filter(|name| !words.contains(name.as_str()))
        .collect();
    let imports: BTreeMap<_, _> = imported
        .into_iter()
        .chain(public)
        .filter_map(|(name, path)| Some((name, resolve(&path, here, modules)?)))
        .collect();
    let used = paths(&rest)
        .filter_map(|path| resolve(&path, here, modules))
        .collect();
    File {
        used,
        imports,
        re_exported,
    }
}

/// For each file, the files whose names it uses. A file is its module path.
fn arrows(files: &BTreeMap<Segments, String>) -> BTreeMap<Segments, BTreeSet<Segments>> {
    let modules: BTreeSet<_> = files.keys().cloned().collect();
    let read: BTreeMap<_, _> = files
        .iter()
        .map(|(module, source)| (module.clone(), read(source, module, &modules)))
        .collect();
    let origin_of = |path: &Segments| {
        let mut path = path.clone();
        // A chain of re-exports can be longer than one.
        for _ in 0..8 {
            let length = (1..=path.len())
                .rev()
                .find(|end| modules.contains(&path[..*end]))?;
            let (module, name) = (&path[..length], path.get(length));
            match name.and_then(|name| read[module].imports.get(name)) {
                Some(origin) => path.clone_from(origin),
                None => return Some(module.to_vec()),
            }
        }
        None
    };
    read.iter()
        .map(|(module, file)| {
            let imports = file
                .imports
                .iter()
                .filter(|(name, _)| !file.re_exported.contains(*name));
            let names = imports.map(|(_, path)| path).chain(&file.used);
            let to = names
                .filter_map(origin_of)
                .filter(|to| to != module)
                .collect();
            (module.clone(), to)
        })
        .collect()
}

/// The files that a file reaches by arrows.
fn reached<'a>(
    from: &'a Segments,
    arrows: &'a BTreeMap<Segments, BTreeSet<Segments>>,
) -> BTreeSet<&'a Segments> {
    let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(module) = next.pop() {
        next.extend(arrows[module].iter().filter(|to| reached.insert(*to)));
    }
    reached
}

/// The groups of files in which each file reaches every other.
fn circles(arrows: &BTreeMap<Segments, BTreeSet<Segments>>) -> BTreeSet<Vec<String>> {
    let reached: BTreeMap<_, _> = arrows
        .keys()
        .map(|from| (from, reached(from, arrows)))
        .collect();
    let circle = |from: &Segments| -> Vec<String> {
        let members = reached[from]
            .iter()
            .filter(|to| reached[*to].contains(from));
        members.map(|module| module.join("::")).collect()
    };
    arrows
        .keys()
        .map(circle)
        .filter(|circle| !circle.is_empty())
        .collect()
}

/// The arrows between the files of a crate.
fn arrows_of(under: &str) -> BTreeMap<Segments, BTreeSet<Segments>> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(under);
    let mut files = BTreeMap::new();
    for path in sources(under) {
        let inner = path.strip_prefix(&root).unwrap().with_extension("");
        let mut module: Segments = inner
            .iter()
            .map(|part| part.to_str().unwrap().to_owned())
            .collect();
        let is_test = module
            .iter()
            .any(|part| matches!(part.as_str(), "tests" | "model" | "stress"));
        if is_test || module == ["lib"] {
            continue;
        }
        module.retain(|part| part != "mod");
        files.insert(module, fs::read_to_string(&path).unwrap());
    }
    arrows(&files)
}

#[test]
fn no_files_import_each_other() {
    for (crate_root, known) in [
        ("src", ["drain", "relay"]),
        ("benches/load/src", ["scenario", "scenario_run"]),
    ] {
        let arrows = arrows_of(crate_root);
        // Without this, a test that reads no file would pass.
        let [from, to] = known.map(|module| vec![module.to_owned()]);
        assert!(arrows[&from].contains(&to), "{arrows:?}");
        let circles = circles(&arrows);
        assert!(
            circles.is_empty(),
            "files of {crate_root} that import each other: {circles:#?}"
        );
    }
}

#[test]
fn re_exports_hide_no_circle_and_make_none() {
    let check = |sources: [(&str, &str); 3]| {
        let files = sources.map(|(module, source)| (segments(module).collect(), source.to_owned()));
        let circles = circles(&arrows(&BTreeMap::from(files)));
        circles
            .into_iter()
            .map(|circle| circle.join(" "))
            .collect::<Vec<_>>()
    };
    let re_exports = "mod b;\nmod c;\npub use b::B;\npub(crate) use c::C;";
    let uses_c = "use super::{C, X as Y};\npub struct B(C);";
    assert!(
        check([
            ("a", re_exports),
            ("a::b", uses_c),
            ("a::c", "pub struct C;")
        ])
        .is_empty()
    );
    let back = check([
        ("a", re_exports),
        ("a::b", uses_c),
        ("a::c", "pub struct C(super::b::B);"),
    ]);
    assert_eq!(back, ["a::b a::c"]);
    // The module's own file uses the name that it re-exports, and its child uses a name of the module's file.
    let uses_b = "mod b;\npub use b::B;\npub struct A(B);";
    let child = "use super::{\n    A,\n    deep::{Other, More},\n};\npub struct B(Box<A>);";
    let found = check([("a", uses_b), ("a::b", child), ("a::c", "")]);
    assert_eq!(found, ["a a::b"]);
    let commented = "// crate::a::A is not an import\npub struct B;\n#[cfg(test)]\nmod tests {\nuse crate::a::A;\n}";
    assert!(check([("a", uses_b), ("a::b", commented), ("a::c", "")]).is_empty());
}
