//! Layers: the built-in defaults, the files, the variables, the option, the later over the earlier.
//! Each is read by itself first, so that every problem has its place and none hides behind another.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use config::{Config, FileFormat, Format, Map, Source, Value, ValueKind};

use super::error::{ConfigError, Problem};
use super::read::{Strings, read};
use super::refusal::{Refusal, describe};
use super::rules::{Rule, rules};
use super::{DEFAULT, Settings, otel};

/// What a variable starts with. Two underscores, since Kubernetes sets `SWITCHBOARD_PORT` and others
/// for a Service of that name.
const PREFIX: &str = "SWITCHBOARD__";
const SEPARATOR: &str = "__";
/// Pieces that a variable's name is split into, more than any key has: the reading of a tree recurses.
const DEPTH_MAX: usize = 8;
/// Problems of one layer after which it is given up: each costs a reading, and nobody reads them all.
const REFUSALS_MAX: usize = 20;
/// The key that a layer's tree hangs on. `config` takes a key at the top for a path with indices and
/// would make a list of 10^9 for `a[1000000000]`; further down a key is a key.
const ROOT: &str = "settings";
const DEFAULT_ORIGIN: &str = "the built-in default";

/// What settings are made of, beside the built-in defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Name and text of each file, the lowest first.
    pub files: Vec<(String, String)>,
    /// The environment; what does not start with `SWITCHBOARD__`, and is no variable of OpenTelemetry
    /// for what `[tracing]` sets, is ignored.
    pub variables: BTreeMap<String, String>,
    /// The value of `--listen`.
    pub listen: Option<String>,
}

impl Sources {
    /// Reads the files and the environment.
    pub fn read(files: &[PathBuf], listen: Option<String>) -> Result<Self, ConfigError> {
        let mut sources = Self {
            listen,
            ..Self::default()
        };
        let mut problems = Vec::new();
        for path in files {
            let origin = path.display().to_string();
            match fs::read_to_string(path) {
                Ok(text) => sources.files.push((origin, text)),
                Err(error) => problems.push(Problem::Unreadable {
                    origin,
                    reason: error.to_string(),
                }),
            }
        }
        for (name, value) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if !name.starts_with(PREFIX) && !otel::is_known(&name) {
                continue;
            }
            match value.into_string() {
                Ok(value) => {
                    sources.variables.insert(name, value);
                }
                Err(_) => problems.push(Problem::Unreadable {
                    origin: name,
                    reason: "is not UTF-8".to_owned(),
                }),
            }
        }
        if problems.is_empty() {
            Ok(sources)
        } else {
            Err(ConfigError::new(problems))
        }
    }
}

impl Settings {
    /// Settings from the files and the environment, with the value of `--listen` on top.
    pub fn load(files: &[PathBuf], listen: Option<String>) -> Result<Self, ConfigError> {
        Self::resolve(&Sources::read(files, listen)?)
    }

    /// Settings from these sources and nothing else, or all that is wrong with them.
    pub fn resolve(sources: &Sources) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let mut layers = Layer::all(sources, &mut problems);
        let (defaults, others) = layers.split_first_mut().expect("the defaults are a layer");
        let refusals = others.iter_mut().flat_map(|layer| layer.clean(defaults));
        let refusals: Vec<_> = refusals.collect();

        let tree = merge(&layers);
        let mut settings = match read::<Self>(&tree, Strings::Untyped) {
            Ok(settings) => settings,
            // Where every layer can be read over the defaults, only the defaults can be at fault.
            Err(refusal) => {
                let problem = refusal.into_problem(DEFAULT_ORIGIN.to_owned(), &[]);
                return Err(ConfigError::new(vec![problem]));
            }
        };
        if otel::is_off(&sources.variables) {
            settings.tracing.otlp_endpoint = None;
        }
        let rules = rules(&settings);
        let layers_hold = problems.is_empty() && refusals.is_empty();
        let refusals = refusals.into_iter();
        problems.extend(refusals.map(|(origin, refusal)| refusal.into_problem(origin, &rules)));
        // A rule between keys says nothing where the value of one was left out as refused.
        let rules = rules
            .iter()
            .filter(|rule| layers_hold || rule.with.is_empty());
        problems.extend(
            rules
                .filter(|rule| !rule.holds)
                .map(|rule| broken(rule, &tree)),
        );
        if problems.is_empty() {
            Ok(settings)
        } else {
            Err(ConfigError::new(problems))
        }
    }
}

/// The lowest layer, of which reading the text is the larger part of the work.
static DEFAULTS: LazyLock<Layer> =
    LazyLock::new(|| Layer::typed(DEFAULT_ORIGIN, DEFAULT).expect("the defaults are TOML"));

/// What one source says.
#[derive(Clone, Debug)]
struct Layer {
    origin: String,
    tree: Value,
    strings: Strings,
}

impl Layer {
    /// All layers, the lowest first. A file that is not TOML is a problem and no layer.
    fn all(sources: &Sources, problems: &mut Vec<Problem>) -> Vec<Self> {
        let mut layers = vec![DEFAULTS.clone()];
        for (origin, text) in &sources.files {
            match Self::typed(origin, text) {
                Ok(layer) => layers.push(layer),
                Err(problem) => problems.push(problem),
            }
        }
        for (name, value) in &sources.variables {
            if let Some(key) = name.strip_prefix(PREFIX)
                && !value.is_empty()
            {
                let key = key.to_lowercase();
                let path: Vec<_> = key.splitn(DEPTH_MAX, SEPARATOR).collect();
                layers.push(Self::untyped(name, &path, value));
            }
        }
        let has_endpoint = |layer: &Self| lookup(&layer.tree, "tracing.otlp_endpoint").is_some();
        let endpoint = layers.iter().any(has_endpoint);
        for said in otel::say(&sources.variables, endpoint, problems) {
            layers.push(Self::untyped(
                said.variable,
                &["tracing", said.key],
                &said.value,
            ));
        }
        if let Some(addresses) = &sources.listen {
            layers.push(Self::untyped("--listen", &["server", "listen"], addresses));
        }
        layers
    }

    /// A layer of a file.
    fn typed(origin: &str, text: &str) -> Result<Self, Problem> {
        let origin = origin.to_owned();
        match FileFormat::Toml.parse(Some(&origin), text) {
            Ok(tree) => Ok(Self {
                tree: Value::new(Some(&origin), tree),
                origin,
                strings: Strings::Typed,
            }),
            Err(error) => Err(Problem::Syntax {
                origin,
                reason: error.to_string().trim_end().to_owned(),
            }),
        }
    }

    /// A layer of one value.
    fn untyped(origin: &str, path: &[&str], value: &str) -> Self {
        let origin = origin.to_owned();
        let value = Value::new(Some(&origin), value);
        let tree = path.iter().rfold(value, |value, key| {
            Value::new(Some(&origin), Map::from([((*key).to_owned(), value)]))
        });
        Self {
            origin,
            tree,
            strings: Strings::Untyped,
        }
    }

    /// Takes out of the layer, one after the other, what cannot be read over the defaults; with more
    /// than a few such, all of it.
    fn clean(&mut self, defaults: &Self) -> Vec<(String, Refusal)> {
        let mut refusals = Vec::new();
        while let Err(refusal) =
            read::<Settings>(&merge(&[defaults.clone(), self.clone()]), self.strings)
        {
            let removed = remove(&mut self.tree, refusal.path());
            refusals.push((self.origin.clone(), refusal));
            if !removed || refusals.len() == REFUSALS_MAX {
                self.tree = Map::<String, Value>::new().into();
                break;
            }
        }
        refusals
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(Map::from([(ROOT.to_owned(), self.tree.clone())]))
    }
}

fn merge(layers: &[Layer]) -> Value {
    let merged = Config::builder().add_source(layers.to_vec()).build();
    let mut merged = merged.expect("layers are in memory").cache;
    child(&mut merged, ROOT)
        .map(std::mem::take)
        .unwrap_or_default()
}

fn child<'a>(tree: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    match &mut tree.kind {
        ValueKind::Table(entries) => entries.get_mut(key),
        _ => None,
    }
}

/// Removes the value at the path; says whether there was one.
fn remove<'a>(tree: &mut Value, mut path: impl DoubleEndedIterator<Item = &'a str>) -> bool {
    let Some(last) = path.next_back() else {
        return false;
    };
    let parent = path.try_fold(tree, child);
    match parent.map(|parent| &mut parent.kind) {
        Some(ValueKind::Table(entries)) => entries.remove(last).is_some(),
        _ => false,
    }
}

/// The value of a key.
fn lookup<'a>(tree: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(tree, |tree, key| match &tree.kind {
        ValueKind::Table(entries) => entries.get(key),
        _ => None,
    })
}

/// A rule that does not hold, with the values of the other keys that it looks at.
fn broken(rule: &Rule, tree: &Value) -> Problem {
    let say = |key: &str| match lookup(tree, key) {
        Some(value) => (
            value.origin().unwrap_or(DEFAULT_ORIGIN).to_owned(),
            describe(value),
        ),
        None => (DEFAULT_ORIGIN.to_owned(), "nothing".to_owned()),
    };
    let (origin, found) = say(rule.key);
    let with = rule.with.iter().map(|other| {
        let (origin, found) = say(other);
        format!("{other} is {found} by {origin}")
    });
    let with = with.collect::<Vec<_>>().join(", ");
    let allowed = match rule.with {
        [] => rule.allowed.clone(),
        _ => format!("{} ({with})", rule.allowed),
    };
    Problem::Value {
        origin,
        key: rule.key.to_owned(),
        found,
        allowed,
    }
}
