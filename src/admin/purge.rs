//! Which kept answers are thrown out.

use serde::Deserialize;

use super::listed;
use crate::config::plan::Plan;

/// What a body says: a model's answers, or all.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    model: Option<String>,
}

/// The model in the body of a call; none: all.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub(super) fn read(body: &[u8]) -> Result<Option<String>, String> {
    let wrong =
        |e| format!("the body is not what is expected: {e}; send {{\"model\": \"NAME\"}}, or {{}} for all models");
    serde_json::from_slice(body).map(|Said { model }| model).map_err(wrong)
}

/// That a model is in the configuration, by its name there.
///
/// # Errors
/// Which are.
pub(super) fn known(plan: &Plan, name: &str) -> Result<(), String> {
    let names = || plan.models.iter().map(|model| &*model.name);
    if names().any(|known| known == name) {
        return Ok(());
    }
    Err(format!("nothing of a model {name:?} is kept, and none is called so; there is {}", listed(names())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_names_a_model_or_none() {
        for (body, model) in [("{}", None), (r#"{"model": null}"#, None), (r#"{"model": "a"}"#, Some("a"))] {
            assert_eq!(read(body.as_bytes()), Ok(model.map(str::to_owned)), "{body}");
        }
        for body in
            ["", "[]", "\"a\"", r#"{"model": 1}"#, r#"{"models": "a"}"#, r#"{"model": "a", "model": "b"}"#, "{} {}"]
        {
            let why = read(body.as_bytes()).expect_err(body);
            assert!(why.ends_with(r#"; send {"model": "NAME"}, or {} for all models"#), "{body}: {why}");
        }
    }
}
