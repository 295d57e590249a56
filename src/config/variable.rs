//! `${NAME}` and `${NAME:-default}` in a string: variables of the environment.
//!
//! As in a shell, the default stands in for an empty variable too. `$${` is a literal `${`. What a variable holds is
//! not looked at again, so it cannot name further ones. No message repeats what stands around a variable: it may be
//! a secret.

use std::borrow::Cow;

/// Puts the environment's variables into `text`.
pub(super) fn expand<'t>(
    text: Cow<'t, str>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Cow<'t, str>, String> {
    let mut expanded = String::new();
    let mut rest = &*text;
    while let Some(start) = rest.find("${") {
        if let Some(before) = rest[..start].strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        let Some(end) = rest[start..].find('}').map(|length| start + length) else {
            return Err("`${` without its `}`; write `$${` for a literal `${`".to_owned());
        };
        expanded.push_str(&rest[..start]);
        expanded.push_str(&value(&rest[start + 2..end], environment)?);
        rest = &rest[end + 1..];
    }
    if expanded.is_empty() && rest.len() == text.len() {
        return Ok(text);
    }
    expanded.push_str(rest);
    Ok(Cow::Owned(expanded))
}

/// What `NAME` or `NAME:-default` stands for.
fn value(variable: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let (name, default) = match variable.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (variable, None),
    };
    let part_of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(part_of_a_name) {
        return Err("not a variable; write `${NAME}` or `${NAME:-default}`, \
                    or `$${` for a literal `${`"
            .to_owned());
    }
    match (environment(name), default) {
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!("the environment has no `{name}`; set it, or write `${{{name}:-default}}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_from_the_environment_or_have_a_default() {
        let unset = "the environment has no `NONE`; set it, or write `${NONE:-default}`";
        let odd = "not a variable; write `${NAME}` or `${NAME:-default}`, \
                   or `$${` for a literal `${`";
        let open = "`${` without its `}`; write `$${` for a literal `${`";
        let cases = [
            ("plain $ and } and $$", Ok("plain $ and } and $$")),
            ("", Ok("")),
            ("${HOST}", Ok("gpu1")),
            ("${HOST}:${PORT:-8000}!", Ok("gpu1:8000!")),
            ("${HOST:-other}", Ok("gpu1")),
            ("${EMPTY}", Ok("")),
            ("${EMPTY:-full}", Ok("full")),
            ("${NONE:-}", Ok("")),
            ("$${HOST} ${HOST}", Ok("${HOST} gpu1")),
            ("${NESTED}", Ok("${HOST}")),
            ("${NONE}", Err(unset)),
            ("a ${HOST", Err(open)),
            ("${}", Err(odd)),
            ("${:-x}", Err(odd)),
            ("${a b}", Err(odd)),
            ("${HOST:=x}", Err(odd)),
        ];
        let environment = |name: &str| match name {
            "HOST" => Some("gpu1".to_owned()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${HOST}".to_owned()),
            _ => None,
        };
        for (text, expected) in cases {
            let expanded = expand(Cow::Borrowed(text), &environment);
            let expected = expected.map(Cow::Borrowed).map_err(str::to_owned);
            assert_eq!(expanded, expected, "{text}");
        }
    }
}
