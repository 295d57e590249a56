//! What serde and the TOML decoder say, in the words of the house: what is wrong, and what would be right.
//!
//! A value is only repeated where it is a number or one word of a few; a string may be a secret.

use super::decode::Step;
use super::units;

/// Further apart is another word, not a misspelling.
const NEAR: usize = 3;
/// So many known words are listed where none is near.
const LISTED: usize = 16;

/// Says `message`, which is about the entry at `path`, whose value is a `kind`.
pub(super) fn reword(message: &str, path: &[Step], kind: &str) -> String {
    let secret = |step: &Step| matches!(step.member(), Some("sha256" | "token_sha256"));
    if path.iter().any(secret) && message != units::EMPTY {
        return units::NO_DIGEST.to_owned();
    }
    if message.starts_with("unknown field `") {
        return unknown_key(message, path);
    }
    if let Some(rest) = message.strip_prefix("missing field `") {
        return format!("`{} is missing in {}", rest, title(path));
    }
    if message.starts_with("unknown variant `") {
        return unknown_word(message);
    }
    if message.starts_with("wanted ") {
        return wrong_type(kind, "a string", path, kind);
    }
    if let Some((found, expected)) = pair(message, "invalid type: ") {
        // An integer beyond 64 bits is said to be of another type.
        return match (found.starts_with("integer"), expected) {
            (true, "u16" | "u32" | "usize" | "a nonzero u32") => out_of_range(found, expected),
            _ => wrong_type(found, expected, path, kind),
        };
    }
    if let Some((found, expected)) = pair(message, "invalid value: ") {
        return out_of_range(found, expected);
    }
    message.to_owned()
}

/// What was found and what was expected.
fn pair<'m>(message: &'m str, start: &str) -> Option<(&'m str, &'m str)> {
    message.strip_prefix(start)?.rsplit_once(", expected ")
}

fn unknown_key(message: &str, path: &[Step]) -> String {
    let (last, table) = match path {
        [table @ .., last] => (last.member().unwrap_or_default(), table),
        [] => ("", path),
    };
    let place = match table {
        [] => String::new(),
        table => format!(" in {}", title(table)),
    };
    let known = expected_words(message);
    format!("unknown key `{last}`{place}{}", advice(last, &known))
}

fn unknown_word(message: &str) -> String {
    let known = expected_words(message);
    let word = message.rsplit_once(", expected ").map_or(message, |(found, _)| found);
    let word = word.trim_start_matches("unknown variant `").trim_end_matches('`');
    format!("`{word}` is not possible here{}", advice(word, &known))
}

/// The words in backticks after what was expected.
fn expected_words(message: &str) -> Vec<&str> {
    let expected = message.rsplit_once(", expected ").map_or("", |(_, expected)| expected);
    expected.split('`').skip(1).step_by(2).collect()
}

/// The nearest of the known words, or all of them; to be put behind a fault.
pub(super) fn advice(word: &str, known: &[&str]) -> String {
    let distance = |known: &str| strsim::damerau_levenshtein(word, known);
    let nearest = known.iter().map(|known| (distance(known), known)).min();
    // A short word is near to every short word.
    let near = NEAR.min(word.chars().count() / 2);
    if let Some((_, nearest)) = nearest.filter(|(distance, _)| *distance <= near) {
        return format!("; did you mean `{nearest}`?");
    }
    let listed: Vec<String> = known.iter().take(LISTED).map(|known| format!("`{known}`")).collect();
    let more = if known.len() > LISTED { format!(" and {} more", known.len() - LISTED) } else { String::new() };
    match listed.as_slice() {
        [] => String::new(),
        [only] => format!("; write {only}"),
        several => format!("; known are {}{more}", several.join(", ")),
    }
}

fn wrong_type(found: &str, expected: &str, path: &[Step], kind: &str) -> String {
    // A date comes to serde as a map, so a map is what the tree says it is.
    let found = match found {
        "map" => kind,
        "sequence" => "array",
        "floating point" => "float",
        other => other,
    };
    let found = match found.split(' ').next().unwrap_or(found) {
        "integer" => "an integer",
        "string" => "a string",
        "boolean" => "a boolean",
        "floating" | "float" => "a decimal number",
        "datetime" => "a date",
        "array" => "a list",
        _ => "a table",
    };
    let date = "a date and time with its zone, such as 2027-01-01T00:00:00Z";
    let expected = match expected {
        "a TOML datetime" => date,
        "a sequence" => "a list",
        "a map" => "a table",
        "a boolean" => "`true` or `false`",
        "a nonzero u32" | "u16" | "u32" | "usize" => "an integer",
        other => other,
    };
    let hint = match (path, expected, found) {
        ([Step::Member(name)], "a list", "a table") => format!("; write `[[{name}]]`"),
        // A list found where its first element, a table, stands: it was written as `[[…]]`.
        ([table @ .., Step::Element(_)], "a table", "a list") if kind == "table" => {
            format!("; write one `{}`", title(table))
        }
        ([.., Step::Member(name)], "a list", "a string") => {
            format!("; write `{name} = [\"…\"]`")
        }
        (_, expected, "a string") if expected == date => "; write it without quotes".to_owned(),
        _ => String::new(),
    };
    format!("{expected} was expected, found {found}{hint}")
}

fn out_of_range(found: &str, expected: &str) -> String {
    let number = found.split('`').nth(1).unwrap_or(found);
    match expected {
        "a nonzero u32" => format!("{number} is not possible here; write 1 or more"),
        "u16" => format!("{number} is not between 0 and {}", u16::MAX),
        _ if number.starts_with('-') => format!("{number} is less than nothing; write 0 or more"),
        _ => format!("{number} is too large"),
    }
}

/// A table as one would write its header.
fn title(path: &[Step]) -> String {
    match path {
        [Step::Member(list), Step::Element(_)] => format!("[[{list}]]"),
        [table @ .., Step::Member(list), Step::Element(_)] => {
            format!("`{list}` of {}", title(table))
        }
        _ => {
            let names = path.iter().filter_map(Step::member);
            let quoted: Vec<String> = names.map(quote).collect();
            format!("[{}]", quoted.join("."))
        }
    }
}

/// A name as a TOML key.
fn quote(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.chars().all(bare) { name.to_owned() } else { format!("{name:?}") }
}
