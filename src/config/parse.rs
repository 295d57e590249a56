//! One file's text as a tree whose positions count over all files and whose strings have their variables.
//!
//! What cannot be read is left out of the tree and noted as [`Lost`], so that nothing is later said to be missing
//! that was only wrong.

use std::collections::HashSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::variable;

/// One file, parsed.
pub(super) struct Parsed<'t> {
    /// What could be read.
    pub(super) tree: DeTable<'t>,
    /// What was taken out of it.
    pub(super) lost: Lost,
    /// What is no TOML, where; in the order of the text.
    pub(super) syntax: Vec<(Range<usize>, Wrong)>,
    /// Which strings could not be expanded, and why.
    pub(super) variables: Vec<(Range<usize>, String)>,
}

/// Why a text is no TOML.
pub(super) enum Wrong {
    /// As the parser says it.
    Syntax(String),
    /// A name stands twice in one table, first at the position given, if that could be found.
    Twice(String, Option<Range<usize>>),
}

/// What was taken out of tables and lists because it was wrong.
#[derive(Default)]
pub(super) struct Lost(HashSet<(Range<usize>, Option<String>)>);

/// A tree on its way into the space of all files.
struct Shift<'a> {
    base: usize,
    environment: &'a dyn Fn(&str) -> Option<String>,
    lost: Lost,
    variables: Vec<(Range<usize>, String)>,
}

/// Parses `text`, which begins at `base` among all files.
pub(super) fn parse<'t>(text: &'t str, base: usize, environment: &dyn Fn(&str) -> Option<String>) -> Parsed<'t> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut shift = Shift { base, environment, lost: Lost::default(), variables: Vec::new() };
    let tree = shift.table(&(0..0), root.into_inner());
    let errors = errors.iter().map(|error| {
        let span = error.span().unwrap_or(text.len()..text.len());
        let wrong = match error.message() {
            "duplicate key" => twice(text, &span, base),
            message => Wrong::Syntax(message.to_owned()),
        };
        (span.start + base..span.end + base, wrong)
    });
    let mut syntax: Vec<_> = errors.collect();
    syntax.sort_by_key(|(span, _)| span.start);
    unclosed(&mut syntax, base + text.len());
    Parsed { tree, lost: shift.lost, syntax, variables: shift.variables }
}

/// Says of a bracket that is not closed only that, at the first place that goes wrong for it, up to the text's `end`.
fn unclosed(syntax: &mut Vec<(Range<usize>, Wrong)>, end: usize) {
    let starts = |wrong: &Wrong, start: &str| match wrong {
        Wrong::Syntax(message) => message.starts_with(start),
        Wrong::Twice(..) => false,
    };
    // In the parser's order it comes last, where the text ends, after a complaint for each line in between.
    let open = syntax.iter().rposition(|(_, wrong)| starts(wrong, "unclosed "));
    let first = syntax.iter().position(|(_, wrong)| starts(wrong, "missing "));
    if let (Some(open), Some(first)) = (open, first)
        && first < open
    {
        let start = syntax[first].0.start;
        syntax.swap(first, open);
        syntax.truncate(first + 1);
        syntax[first].0 = start..end;
    }
}

/// Describes the name at `span`, which its table has already.
fn twice(text: &str, span: &Range<usize>, base: usize) -> Wrong {
    // The parser does not tell where the first one is. Under a name of its own the second one gets into the tree, and
    // in the table where it lands is the first.
    const UNIQUE: &str = "forebay-second-of-that-name";
    let written = text.get(span.clone()).unwrap_or_default();
    let name = written.trim_matches(['"', '\'']);
    let before = text.get(..span.start).unwrap_or_default();
    let after = text.get(span.end..).unwrap_or_default();
    let renamed = format!("{before}{UNIQUE}{after}");
    let (root, _) = DeTable::parse_recoverable(&renamed);
    let first = table_with(root.get_ref(), UNIQUE)
        .and_then(|table| table.get_key_value(name))
        .map(|(key, _)| key.span())
        .filter(|first| first.end <= span.start)
        .map(|first| first.start + base..first.end + base);
    Wrong::Twice(name.to_owned(), first)
}

/// The table somewhere in `table` that has the member `name`.
fn table_with<'t, 'i>(table: &'t DeTable<'i>, name: &str) -> Option<&'t DeTable<'i>> {
    if table.contains_key(name) {
        return Some(table);
    }
    table.values().find_map(|value| below(value.get_ref(), name))
}

fn below<'t, 'i>(value: &'t DeValue<'i>, name: &str) -> Option<&'t DeTable<'i>> {
    match value {
        DeValue::Table(table) => table_with(table, name),
        DeValue::Array(array) => array.iter().find_map(|value| below(value.get_ref(), name)),
        _ => None,
    }
}

impl Lost {
    /// Notes that the member `name`, or an element of a list, was taken out of what stands at `holder`.
    pub(super) fn add(&mut self, holder: Range<usize>, name: Option<&str>) {
        self.0.insert((holder, name.map(str::to_owned)));
    }

    /// Whether it was.
    pub(super) fn has(&self, holder: Range<usize>, name: Option<&str>) -> bool {
        self.0.contains(&(holder, name.map(str::to_owned)))
    }

    /// Adds what was taken out elsewhere.
    pub(super) fn extend(&mut self, other: Lost) {
        self.0.extend(other.0);
    }
}

impl Shift<'_> {
    fn span(&self, span: Range<usize>) -> Range<usize> {
        span.start + self.base..span.end + self.base
    }

    fn table<'t>(&mut self, holder: &Range<usize>, table: DeTable<'t>) -> DeTable<'t> {
        let mut shifted = DeTable::new();
        for (key, value) in table {
            let span = self.span(key.span());
            let name = key.into_inner();
            match self.value(value) {
                Some(value) => {
                    shifted.insert(Spanned::new(span, name), value);
                }
                None => self.lost.add(holder.clone(), Some(&name)),
            }
        }
        shifted
    }

    fn array<'t>(&mut self, holder: &Range<usize>, array: DeArray<'t>) -> DeArray<'t> {
        let mut shifted = DeArray::new();
        for value in array {
            match self.value(value) {
                Some(value) => shifted.push(value),
                None => self.lost.add(holder.clone(), None),
            }
        }
        shifted
    }

    fn value<'t>(&mut self, value: Spanned<DeValue<'t>>) -> Option<Spanned<DeValue<'t>>> {
        // The parser puts a value that stands nowhere in the place of one that is missing.
        if value.span().is_empty() {
            return None;
        }
        let span = self.span(value.span());
        let shifted = match value.into_inner() {
            DeValue::String(text) => match variable::expand(text, self.environment) {
                Ok(text) => DeValue::String(text),
                Err(message) => {
                    self.variables.push((span, message));
                    return None;
                }
            },
            DeValue::Array(array) => DeValue::Array(self.array(&span, array)),
            DeValue::Table(table) => DeValue::Table(self.table(&span, table)),
            other => other,
        };
        Some(Spanned::new(span, shifted))
    }
}
