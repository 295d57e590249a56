//! Decodes the tree of all files into a [`Config`] and finds every mistake in it, not the first alone.
//!
//! Plain serde stops at the first mistake. So the smallest entry around it is taken out of the tree and the rest is
//! decoded again, until nothing is left to say; and what then is missing only because it was taken out is not said.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, ValueDeserializer};

use super::parse::Lost;
use super::{Config, units, wording};

/// A mistake and where it is.
type Error = (Range<usize>, String);

/// After so many mistakes the rest waits until these are repaired: each costs a pass over the whole tree.
const MOST: usize = 200;

/// One step down the tree.
pub(super) enum Step {
    /// To a table's member of this name.
    Member(String),
    /// To a list's element at this index.
    Element(usize),
}

/// The entry that a mistake is taken out with.
struct Entry {
    path: Vec<Step>,
    /// How much text the place that holds the mistake covers.
    length: usize,
    /// What its value is, in TOML's words.
    kind: &'static str,
}

impl Step {
    /// The name of the member, if it leads to one.
    pub(super) fn member(&self) -> Option<&str> {
        match self {
            Step::Member(name) => Some(name),
            Step::Element(_) => None,
        }
    }
}

/// Decodes `tree`, from which `lost` is already missing, as far as that is possible.
pub(super) fn decode(mut tree: DeTable<'_>, mut lost: Lost) -> (Config, Vec<Error>) {
    let mut errors: Vec<Error> = Vec::new();
    while errors.len() < MOST {
        let root = Spanned::new(0..0, DeValue::Table(tree.clone()));
        let error = match Config::deserialize(ValueDeserializer::from(root)) {
            Ok(config) => return (config, errors),
            Err(error) => error,
        };
        let span = error.span().unwrap_or_default();
        let Some(entry) = find(&tree, &span) else {
            errors.push((span, wording::reword(error.message(), &[], "table")));
            return (Config::default(), errors);
        };
        if !follows(error.message(), &span, &lost) {
            let message = wording::reword(error.message(), &entry.path, entry.kind);
            if !errors.contains(&(span.clone(), message.clone())) {
                errors.push((span, message));
            }
        }
        remove(&mut tree, 0..0, &entry.path, &mut lost);
    }
    if let Some((span, _)) = errors.last().cloned() {
        errors.push((span, format!("{MOST} faults; there may be more after these")));
    }
    (Config::default(), errors)
}

/// Whether this is only wrong because something was taken out, or was said when that was.
fn follows(message: &str, span: &Range<usize>, lost: &Lost) -> bool {
    if let Some(rest) = message.strip_prefix("missing field `") {
        return lost.has(span.clone(), Some(rest.trim_end_matches('`')));
    }
    // `[[server]]` stands where its first element does and loses one after the other.
    let list = message == units::EMPTY || message.starts_with("invalid type: sequence");
    list && lost.has(span.clone(), None)
}

/// Finds the smallest entry that holds `span`; of entries at one place, the innermost.
fn find(tree: &DeTable<'_>, span: &Range<usize>) -> Option<Entry> {
    let mut entry = in_table(tree, span)?;
    entry.path.reverse();
    Some(entry)
}

// The spans of tables under a `[header]` cover only that header, so an outer entry need not hold its inner ones and
// every entry has to be looked at.
fn in_table(table: &DeTable<'_>, span: &Range<usize>) -> Option<Entry> {
    let entries = table.iter().filter_map(|(key, value)| {
        let step = || Step::Member(key.get_ref().to_string());
        let places = [key.span(), value.span()];
        smallest(&places, value, span, step)
    });
    entries.min_by_key(|entry| entry.length)
}

fn in_value(value: &DeValue<'_>, span: &Range<usize>) -> Option<Entry> {
    match value {
        DeValue::Table(table) => in_table(table, span),
        DeValue::Array(array) => {
            let entries = array
                .iter()
                .enumerate()
                .filter_map(|(index, value)| smallest(&[value.span()], value, span, || Step::Element(index)));
            entries.min_by_key(|entry| entry.length)
        }
        _ => None,
    }
}

/// The smallest entry for `span` of an entry that stands at `places` and of what is in its `value`.
fn smallest(
    places: &[Range<usize>],
    value: &Spanned<DeValue<'_>>,
    span: &Range<usize>,
    step: impl Fn() -> Step,
) -> Option<Entry> {
    let holds = |place: &&Range<usize>| place.start <= span.start && span.end <= place.end;
    let length = places.iter().filter(holds).map(Range::len).min();
    match (in_value(value.get_ref(), span), length) {
        (Some(mut inner), length) if length.is_none_or(|length| inner.length <= length) => {
            inner.path.push(step());
            Some(inner)
        }
        (_, Some(length)) => Some(Entry { path: vec![step()], length, kind: value.get_ref().type_str() }),
        (_, None) => None,
    }
}

/// Takes the entry at `path` out of the tree.
fn remove(table: &mut DeTable<'_>, holder: Range<usize>, path: &[Step], lost: &mut Lost) {
    match path {
        [Step::Member(name)] => {
            table.remove(name.as_str());
            lost.add(holder, Some(name));
        }
        [Step::Member(name), rest @ ..] => {
            if let Some(value) = table.get_mut(name.as_str()) {
                remove_below(value, rest, lost);
            }
        }
        _ => {}
    }
}

fn remove_below(value: &mut Spanned<DeValue<'_>>, path: &[Step], lost: &mut Lost) {
    let holder = value.span();
    match (value.get_mut(), path) {
        (DeValue::Table(table), path) => remove(table, holder, path, lost),
        (DeValue::Array(array), [Step::Element(index)]) => {
            let elements = std::mem::replace(array, DeArray::new()).into_iter().enumerate();
            *array = elements.filter(|(position, _)| position != index).map(|(_, element)| element).collect();
            lost.add(holder, None);
        }
        (DeValue::Array(array), [Step::Element(index), rest @ ..]) => {
            if let Some(element) = array.get_mut(*index) {
                remove_below(element, rest, lost);
            }
        }
        _ => {}
    }
}
