//! Merges the trees of all files into one and decodes it.
//!
//! Pools and models come together by name, routes and keys one after the other; what stands in two files otherwise is
//! a fault at the second place, which names the first.

use std::collections::BTreeSet;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::parse::{self, Lost, Wrong};
use super::{Config, Fault, Sources, decode};

/// The names that the files define, also where the entry of that name is faulty and not in the [`Config`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Declared {
    /// Of `[pool.NAME]`.
    pub pools: BTreeSet<String>,
    /// Of `[model.NAME]`.
    pub models: BTreeSet<String>,
    /// Of each `[[route]]`.
    pub routes: BTreeSet<String>,
    /// Whether these are all: not so where a file could not be read or is no TOML, which may hide names.
    pub complete: bool,
}

/// The one tree, as far as the files are merged into it.
struct Merged<'s> {
    sources: &'s Sources,
    faults: &'s mut Vec<Fault>,
    tree: DeTable<'s>,
    lost: Lost,
    /// The lines that are no TOML; what else seems wrong there follows from that.
    broken: Vec<Range<usize>>,
}

/// Decodes what all files say together, and adds what is wrong with it to `faults`.
pub(super) fn merge(
    sources: &Sources,
    environment: &dyn Fn(&str) -> Option<String>,
    faults: &mut Vec<Fault>,
) -> (Config, Declared) {
    let mut merged = Merged { sources, faults, tree: DeTable::new(), lost: Lost::default(), broken: Vec::new() };
    for (text, base) in sources.texts() {
        let parsed = parse::parse(text, base, environment);
        merged.lost.extend(parsed.lost);
        for (span, wrong) in parsed.syntax {
            merged.syntax(span, wrong);
        }
        for (span, message) in parsed.variables {
            merged.fault(span, message);
        }
        merged.add(parsed.tree);
    }
    merged.decode()
}

impl Merged<'_> {
    /// Says what is wrong, but only once on a line that is no TOML: the rest of it means little.
    fn fault(&mut self, span: Range<usize>, message: String) {
        if !self.broken.iter().any(|line| line.contains(&span.start)) {
            self.faults.push(self.sources.fault(span, message));
        }
    }

    fn syntax(&mut self, span: Range<usize>, wrong: Wrong) {
        let line = self.sources.line(span.start);
        let broken = line.map(|line| line.start..line.end.max(span.end));
        let message = match wrong {
            Wrong::Syntax(message) => message,
            Wrong::Twice(name, first) => self.twice(&name, first),
        };
        self.fault(span, message);
        self.broken.extend(broken);
    }

    fn twice(&self, name: &str, first: Option<Range<usize>>) -> String {
        match first.and_then(|span| self.sources.place(span.start)) {
            Some(place) => format!("`{name}` is defined twice; the other is at {place}"),
            None => format!("`{name}` is defined twice"),
        }
    }
}

impl<'s> Merged<'s> {
    fn add(&mut self, tree: DeTable<'s>) {
        let mut doubles = Vec::new();
        for (key, value) in tree {
            let name = key.get_ref().clone();
            let Some((first, _)) = self.tree.get_key_value(&*name) else {
                self.tree.insert(key, value);
                continue;
            };
            let first = first.span();
            let there = self.tree.get_mut(&*name).map(|there| there.get_mut());
            match (&*name, there, value.into_inner()) {
                ("pool" | "model", Some(DeValue::Table(there)), DeValue::Table(more)) => {
                    for (key, value) in more {
                        match there.get_key_value(&**key.get_ref()) {
                            Some((first, _)) => doubles.push((key, first.span())),
                            None => {
                                there.insert(key, value);
                            }
                        }
                    }
                }
                ("include" | "route" | "key", Some(DeValue::Array(there)), DeValue::Array(more)) => {
                    more.into_iter().for_each(|value| there.push(value))
                }
                _ => doubles.push((key, first)),
            }
        }
        for (key, first) in doubles {
            let message = self.twice(key.get_ref(), Some(first));
            self.fault(key.span(), message);
        }
    }

    fn decode(mut self) -> (Config, Declared) {
        let declared = self.declare();
        let tree = std::mem::take(&mut self.tree);
        let lost = std::mem::take(&mut self.lost);
        let (config, errors) = decode::decode(tree, lost);
        for (span, message) in errors {
            self.fault(span, message);
        }
        (config, declared)
    }

    /// Collects the names that the files define.
    fn declare(&self) -> Declared {
        Declared {
            pools: members(&self.tree, "pool"),
            models: members(&self.tree, "model"),
            routes: names(&self.tree, "route"),
            complete: self.broken.is_empty(),
        }
    }
}

/// The names of the members of the root's table `table`.
fn members(tree: &DeTable<'_>, table: &str) -> BTreeSet<String> {
    let table = tree.get(table).and_then(|value| value.get_ref().as_table());
    let keys = table.into_iter().flat_map(DeTable::keys);
    keys.map(|key| key.get_ref().to_string()).collect()
}

/// The `name` of each element of the root's list `list`.
fn names(tree: &DeTable<'_>, list: &str) -> BTreeSet<String> {
    let list = tree.get(list).and_then(|value| value.get_ref().as_array());
    let elements = list.into_iter().flatten();
    let names = elements.filter_map(|element| element.get_ref().as_table()?.get("name")?.get_ref().as_str());
    names.map(str::to_owned).collect()
}
