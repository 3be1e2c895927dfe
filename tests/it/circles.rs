//! No two files of a crate import each other, not even through a third: the arrows between files run one way. Reads
//! imports as text. A name that a file only passes on (`pub use`) is an arrow for the file that uses the name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use crate::tidy::sources;

/// Below these folders nothing is checked, each with its reason.
const EXEMPT: &[&str] = &[
    "cluster", // a new design replaces its inside
    "api",
    "config",
    "directory",
    "http",
    "telemetry", // not straightened yet
];

/// Names that a file takes: each is a path of segments from the crate root.
type Segments = Vec<String>;

struct File {
    /// What it names, outside comments and tests.
    taken: BTreeSet<Segments>,
    /// What it passes on or imports: the last segment, and where that comes from.
    imports: BTreeMap<String, Segments>,
    /// Names of `imports` that only `pub use` mentions.
    passed_on: BTreeSet<String>,
}

/// The source without comments, strings' contents aside, and without an inline test module at its end.
fn code(source: &str) -> String {
    let end = source
        .find("#[cfg(test)]\nmod tests")
        .unwrap_or(source.len());
    let lines = source[..end].lines();
    let lines = lines.map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The leaves of a use tree below `before`: `a::{b, c::d as e}` is `a::b` and `a::c::d`, with the names that
/// they get.
fn leaves(tree: &str, before: &[String], found: &mut Vec<(String, Segments)>) {
    let tree = tree.trim();
    if let Some(open) = tree.find('{') {
        let mut path = before.to_vec();
        path.extend(segments(&tree[..open]));
        let (mut depth, mut start) = (0, open + 1);
        for (at, sign) in tree.char_indices().skip(open + 1) {
            match sign {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    leaves(&tree[start..at], &path, found);
                    start = at + 1;
                }
                _ => {}
            }
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

/// A path as the module `here` writes it, from the crate root; nothing where it leads into another crate.
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

/// Paths in code that is no import: what stands before and behind each `::`.
fn paths(code: &str) -> impl Iterator<Item = Segments> {
    code.split(|sign: char| !sign.is_ascii_alphanumeric() && !matches!(sign, '_' | ':'))
        .filter(|word| word.contains("::"))
        .map(|word| segments(word).collect())
}

/// Whether this is `mod name;`, which takes nothing from that file.
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
        let at = statement.find("use ").filter(|at| {
            let before = statement[..*at].trim_end();
            let before = before.rsplit('\n').next().unwrap_or_default().trim();
            before.is_empty() || before.starts_with("pub")
        });
        match at {
            Some(at) => {
                let into = if statement[..at].contains("pub") {
                    &mut public
                } else {
                    &mut imported
                };
                leaves(statement[at + 4..].trim_end_matches(';'), &[], into);
                rest.push_str(&statement[..at]);
            }
            None if is_declaration(statement) => {}
            None => rest.push_str(statement),
        }
    }
    let words: BTreeSet<_> = rest
        .split(|sign: char| !sign.is_ascii_alphanumeric() && sign != '_')
        .collect();
    let passed_on = public.iter().map(|(name, _)| name.clone());
    let passed_on = passed_on
        .filter(|name| !words.contains(name.as_str()))
        .collect();
    let imports: BTreeMap<_, _> = imported
        .into_iter()
        .chain(public)
        .filter_map(|(name, path)| Some((name, resolve(&path, here, modules)?)))
        .collect();
    let taken = paths(&rest)
        .filter_map(|path| resolve(&path, here, modules))
        .collect();
    File {
        taken,
        imports,
        passed_on,
    }
}

/// The files that each file takes a name from, by module paths.
fn arrows(files: &BTreeMap<Segments, String>) -> BTreeMap<Segments, BTreeSet<Segments>> {
    let modules: BTreeSet<_> = files.keys().cloned().collect();
    let read: BTreeMap<_, _> = files
        .iter()
        .map(|(module, source)| (module.clone(), read(source, module, &modules)))
        .collect();
    let home = |path: &Segments| {
        let mut path = path.clone();
        // A name may be passed on more than once on its way from the file that defines it.
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
                .filter(|(name, _)| !file.passed_on.contains(*name));
            let names = imports.map(|(_, path)| path).chain(&file.taken);
            let to = names.filter_map(home).filter(|to| to != module).collect();
            (module.clone(), to)
        })
        .collect()
}

/// All that is reached from a file.
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

/// Groups of files in which each reaches every other.
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
        let is_test = matches!(
            module.last().unwrap().as_str(),
            "tests" | "model" | "stress"
        );
        if is_test || EXEMPT.contains(&module[0].as_str()) || module == ["lib"] {
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
        ("src", ["session", "relay"]),
        ("benches/load/src", ["scenario", "scenario_run"]),
    ] {
        let arrows = arrows_of(crate_root);
        // A test that reads nothing passes always.
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
fn circles_are_found_through_re_exports_and_only_there() {
    let check = |sources: [(&str, &str); 3]| {
        let files = sources.map(|(module, source)| (segments(module).collect(), source.to_owned()));
        let circles = circles(&arrows(&BTreeMap::from(files)));
        circles
            .into_iter()
            .map(|circle| circle.join(" "))
            .collect::<Vec<_>>()
    };
    let passes_on = "mod b;\nmod c;\npub use b::B;\npub(crate) use c::C;";
    let uses_c = "use super::{C, X as Y};\npub struct B(C);";
    assert!(
        check([
            ("a", passes_on),
            ("a::b", uses_c),
            ("a::c", "pub struct C;")
        ])
        .is_empty()
    );
    let back = check([
        ("a", passes_on),
        ("a::b", uses_c),
        ("a::c", "pub struct C(super::b::B);"),
    ]);
    assert_eq!(back, ["a::b a::c"]);
    // The module's own file uses what it passes on, and its child takes a name of it.
    let uses_b = "mod b;\npub use b::B;\npub struct A(B);";
    let child = "use super::{\n    A,\n    deep::{Other, More},\n};\npub struct B(Box<A>);";
    let found = check([("a", uses_b), ("a::b", child), ("a::c", "")]);
    assert_eq!(found, ["a a::b"]);
    let commented = "// crate::a::A is not an import\npub struct B;\n#[cfg(test)]\nmod tests {\nuse crate::a::A;\n}";
    assert!(check([("a", uses_b), ("a::b", commented), ("a::c", "")]).is_empty());
}
