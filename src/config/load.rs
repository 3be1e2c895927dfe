//! Loads settings from layers: the built-in defaults, the files, the variables, the option. A later layer wins
//! over an earlier one. Each layer is first read over the defaults alone, so that every problem names its source
//! and no problem hides another.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use config::{Config, FileFormat, Format, Map, Source, Value, ValueKind};

use super::error::{ConfigError, SettingsProblem};
use super::otel::{self, Instead, Unsupported};
use super::read::{Strings, read};
use super::read_error::{ReadError, describe};
use super::rule::Rule;
use super::rules::rules;
use super::settings::Settings;

/// `config/default.toml`: the lowest layer, and the description of every setting.
pub const DEFAULT: &str = include_str!("../../config/default.toml");

/// Prefix of variables. It has two underscores, because Kubernetes sets `SWITCHBOARD_PORT` and others for a
/// Service of that name.
const PREFIX: &str = "SWITCHBOARD__";
const SEPARATOR: &str = "__";
/// Most pieces of a variable's name, more than any key has. It bounds the recursion of reading a tree.
const DEPTH_MAX: usize = 8;
/// Most problems that are reported of one layer, because each costs a reading of the layer.
const LAYER_PROBLEMS_MAX: usize = 20;
/// The key above a layer's tree. `config` parses a top-level key as a path with indices, and would allocate a
/// list of 10^9 for `a[1000000000]`. It does not parse the keys below.
const ROOT: &str = "settings";
const DEFAULT_ORIGIN: &str = "the built-in default";

/// The sources of settings, besides the built-in defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Name and text of each file, the lowest first.
    pub files: Vec<(String, String)>,
    /// The environment. Only `SWITCHBOARD__…` and the OpenTelemetry variables that stand for a key of
    /// `[tracing]` are used.
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
                Err(error) => problems.push(SettingsProblem::Unreadable {
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
                // No text that OpenTelemetry allows has this character, so it becomes a warning.
                Err(value) if otel::is_known(&name) => {
                    let value = value.to_string_lossy().into_owned();
                    sources.variables.insert(name, value);
                }
                Err(_) => problems.push(SettingsProblem::Unreadable {
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
    /// Loads settings from the files and the environment, with the value of `--listen` as the last layer.
    pub fn load(files: &[PathBuf], listen: Option<String>) -> Result<Self, ConfigError> {
        Self::resolve(&Sources::read(files, listen)?)
    }

    /// Makes settings from these sources alone, or returns all their problems.
    pub fn resolve(sources: &Sources) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let (mut layers, unsupported) = Layer::all(sources, &mut problems);
        let (defaults, others) = layers.split_first_mut().expect("the defaults are a layer");
        let errors = others.iter_mut().flat_map(|layer| layer.clean(defaults));
        let errors: Vec<_> = errors.collect();

        let tree = merge(&layers);
        let mut settings = match read::<Self>(&tree, Strings::Untyped) {
            Ok(settings) => settings,
            // Every layer can be read over the defaults, so only the defaults can be wrong.
            Err(error) => {
                let problem = error.into_problem(DEFAULT_ORIGIN.to_owned(), &[]);
                return Err(ConfigError::new(vec![problem]));
            }
        };
        if otel::is_off(&sources.variables) {
            settings.tracing.otlp_endpoint = None;
        }
        let warnings = unsupported.iter().map(|value| warning(value, &tree));
        settings.tracing.warnings = warnings.collect();
        let rules = rules(&settings);
        let is_complete = problems.is_empty() && errors.is_empty();
        let errors = errors.into_iter();
        problems.extend(errors.map(|(origin, error)| error.into_problem(origin, &rules)));
        // With a value missing because it could not be read, a rule between keys would compare the default.
        let broken = rules
            .iter()
            .filter(|rule| !rule.is_met && (is_complete || rule.with.is_empty()));
        problems.extend(broken.map(|rule| broken_rule(rule, &tree)));
        if problems.is_empty() {
            Ok(settings)
        } else {
            Err(ConfigError::new(problems))
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::resolve(&Sources::default()).expect("a test loads config/default.toml")
    }
}

/// The lowest layer. Parsed once, because parsing is most of the work of [`Settings::resolve`].
static DEFAULTS: LazyLock<Layer> =
    LazyLock::new(|| Layer::typed(DEFAULT_ORIGIN, DEFAULT).expect("the defaults are TOML"));

/// The values of one source.
#[derive(Clone, Debug)]
struct Layer {
    origin: String,
    tree: Value,
    strings: Strings,
}

impl Layer {
    /// All layers, the lowest first, and the variables of OpenTelemetry that are none. A file with invalid TOML is
    /// a problem instead of a layer.
    fn all(
        sources: &Sources,
        problems: &mut Vec<SettingsProblem>,
    ) -> (Vec<Self>, Vec<Unsupported>) {
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
        let has_endpoint = layers.iter().any(has_endpoint);
        let values = otel::values(&sources.variables, has_endpoint);
        let is_on = has_endpoint || !values.is_empty();
        let mut unsupported = otel::unsupported(&sources.variables, is_on);
        for value in values {
            let path = ["tracing", value.key];
            let layer = Self::untyped(value.variable, &path, &value.text);
            if layer.is_allowed() {
                layers.push(layer);
            } else {
                unsupported.push(Unsupported {
                    variable: value.variable,
                    found: value.found,
                    instead: Instead::Key(value.key),
                });
            }
        }
        if let Some(addresses) = &sources.listen {
            layers.push(Self::untyped("--listen", &["server", "listen"], addresses));
        }
        (layers, unsupported)
    }

    /// Whether the values can be read over the defaults, and meet all rules there.
    fn is_allowed(&self) -> bool {
        let tree = merge(&[DEFAULTS.clone(), self.clone()]);
        let settings = read::<Settings>(&tree, self.strings);
        settings.is_ok_and(|settings| rules(&settings).iter().all(|rule| rule.is_met))
    }

    /// The layer of a file.
    fn typed(origin: &str, text: &str) -> Result<Self, SettingsProblem> {
        let origin = origin.to_owned();
        match FileFormat::Toml.parse(Some(&origin), text) {
            Ok(tree) => Ok(Self {
                tree: Value::new(Some(&origin), tree),
                origin,
                strings: Strings::Typed,
            }),
            Err(error) => Err(SettingsProblem::Syntax {
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

    /// Removes from the layer each value that cannot be read over the defaults, and returns the errors with the
    /// layer's origin. Empties the layer if there are too many.
    fn clean(&mut self, defaults: &Self) -> Vec<(String, ReadError)> {
        let mut errors = Vec::new();
        while let Err(error) =
            read::<Settings>(&merge(&[defaults.clone(), self.clone()]), self.strings)
        {
            let removed = remove(&mut self.tree, error.path());
            errors.push((self.origin.clone(), error));
            if !removed || errors.len() == LAYER_PROBLEMS_MAX {
                self.tree = Map::<String, Value>::new().into();
                break;
            }
        }
        errors
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

/// Removes the value at the path. Returns false if there is none.
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

/// The problem of a rule that is not met, with the values of the other keys that it looks at.
fn broken_rule(rule: &Rule, tree: &Value) -> SettingsProblem {
    let others = rule.with.iter().map(|key| in_effect(tree, key));
    let others = others.collect::<Vec<_>>().join("; ");
    let allowed = if others.is_empty() {
        rule.allowed.clone()
    } else {
        format!("{} ({others})", rule.allowed)
    };
    let value = lookup(tree, rule.key);
    SettingsProblem::Value {
        origin: value.map_or(DEFAULT_ORIGIN, origin).to_owned(),
        key: rule.key.to_owned(),
        found: value.map_or_else(|| "nothing".to_owned(), describe),
        allowed,
    }
}

/// The value of a key, and its source.
fn in_effect(tree: &Value, key: &str) -> String {
    match lookup(tree, key) {
        Some(value) => format!("{key} is {}, set by {}", describe(value), origin(value)),
        None => format!("{key} is not set"),
    }
}

/// What to tell of a variable's value that is not supported.
fn warning(value: &Unsupported, tree: &Value) -> String {
    let found = describe(&Value::new(None, value.found.as_str()));
    let instead = match value.instead {
        Instead::Key(key) => in_effect(tree, &format!("tracing.{key}")),
        Instead::Fixed(text) => format!("{text} is used"),
    };
    format!("{}: {found} is not supported; {instead}", value.variable)
}

fn origin(value: &Value) -> &str {
    value.origin().unwrap_or(DEFAULT_ORIGIN)
}
