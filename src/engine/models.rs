//! `GET /v1/models` and `/v1/models/{id}`.

use super::Options;
use super::reply::{Refusal, Reply};
use serde_json::{Value, json};

/// What an engine that serves any name lists.
const ANY: &str = "demo";

/// Whether the engine serves a model: one of its own, or any if it has none.
pub(super) fn serves(options: &Options, model: &str) -> bool {
    options.models.is_empty() || options.models.iter().any(|served| served == model)
}

/// The names that an engine lists.
pub(super) fn listed(options: &Options) -> Vec<&str> {
    if options.models.is_empty() { vec![ANY] } else { options.models.iter().map(String::as_str).collect() }
}

/// The listed name under which a served model is counted.
pub(super) fn label<'a>(options: &Options, model: &'a str) -> &'a str {
    if options.models.is_empty() { ANY } else { model }
}

/// `GET /v1/models`.
pub(super) fn list(options: &Options) -> Reply {
    let data: Vec<Value> = listed(options).into_iter().map(model).collect();
    Reply::json(0, &json!({"object": "list", "data": data}))
}

/// `GET /v1/models/{id}`.
pub(super) fn one(options: &Options, id: &str) -> Result<Reply, Refusal> {
    // Clients escape the slash that many names have, and nothing else that occurs in one.
    let id = id.replace("%2F", "/").replace("%2f", "/");
    if !serves(options, &id) {
        return Err(Refusal::unknown_model(&id));
    }
    Ok(Reply::json(0, &model(&id)))
}

fn model(id: &str) -> Value {
    json!({"id": id, "object": "model", "created": 0, "owned_by": "forebay"})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_without_models_serves_any_name() {
        for (models, asked, served) in [
            (&[][..], "anything", true),
            (&["a", "org/b"], "a", true),
            (&["a", "org/b"], "org%2Fb", true),
            (&["a", "org/b"], "org/b", true),
            (&["a", "org/b"], "A", false),
        ] {
            let options =
                Options { models: models.iter().map(|&model| model.to_owned()).collect(), ..Options::default() };
            assert_eq!(one(&options, asked).is_ok(), served, "{models:?} {asked}");
        }
    }
}
