//! Name → who serves it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cache::Terms;
use crate::pool::PoolId;

/// A public name that clients ask for, and who serves it.
#[derive(Debug)]
pub struct Model {
    /// Its place among the models.
    pub place: usize,
    /// The public name; a family of names ends in `*`.
    pub name: Arc<str>,
    /// Whose servers answer.
    pub pool: PoolId,
    /// The name sent to the engine, where it is another.
    pub upstream: Option<Box<str>>,
    /// Shown in the list of models.
    pub owned_by: Box<str>,
    /// Which version of it the engines run; empty if that was not said. Shown in the list of models.
    pub version: Box<str>,
    /// How its answers are kept, if they are.
    pub cache: Option<Terms>,
}

/// Every model by its name, families by their prefix.
#[derive(Debug, Default)]
pub struct Models {
    exact: HashMap<Arc<str>, Arc<Model>>,
    /// The longest prefix first, so that the first match is the nearest.
    families: Vec<Arc<Model>>,
    listed: Vec<Arc<Model>>,
}

/// The longest name, in bytes: a family would take any, and it is logged.
const LONGEST: usize = 256;

// === impl Models ===

impl Models {
    /// Models, listed in this order.
    #[must_use]
    pub fn new(models: Vec<Model>) -> Self {
        let listed: Vec<Arc<Model>> = models.into_iter().map(Arc::new).collect();
        let (mut families, exact): (Vec<_>, Vec<_>) =
            listed.iter().cloned().partition(|model| model.prefix().is_some());
        families.sort_by_key(|model| std::cmp::Reverse(model.name.len()));
        let exact = exact.into_iter().map(|model| (model.name.clone(), model)).collect();
        Self { exact, families, listed }
    }

    /// The model of this name: the one that is called so, else the nearest family. A name that no one would give has none.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Arc<Model>> {
        if name.len() > LONGEST {
            return None;
        }
        self.exact.get(name).or_else(|| {
            self.families.iter().find(|model| model.prefix().is_some_and(|prefix| name.starts_with(prefix)))
        })
    }

    /// Every model, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.listed.iter()
    }
}

// === impl Model ===

impl Model {
    /// What the names of a family begin with; `None` for a single model.
    #[must_use]
    pub fn prefix(&self) -> Option<&str> {
        self.name.strip_suffix('*')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exact_name_comes_first_and_then_the_longest_prefix() {
        let model = |name: &str| Model {
            place: 0,
            name: name.into(),
            pool: PoolId(0),
            upstream: None,
            owned_by: "forebay".into(),
            version: "".into(),
            cache: None,
        };
        let models = Models::new(["llama-*", "llama-3", "llama-3*", "qwen"].map(model).into());
        let long = format!("llama-{}", "x".repeat(LONGEST));
        for (asked, found) in [
            ("llama-3", Some("llama-3")),
            ("llama-31", Some("llama-3*")),
            ("llama-2", Some("llama-*")),
            ("qwen", Some("qwen")),
            ("qwen2", None),
            ("llama-*", Some("llama-*")),
            ("", None),
            (long.as_str(), None),
        ] {
            assert_eq!(models.find(asked).map(|model| &*model.name), found, "{asked}");
        }
    }
}
