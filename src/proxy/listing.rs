//! The models that a client may ask, in OpenAI's form, from memory.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use pingora::Result;
use pingora::http::ResponseHeader;
use serde_json::{Value, json};

use crate::access::{Key, Model};
use crate::config::plan::Plan;

/// All models that can be asked by this key, or by anyone. A family has no one name to ask for.
#[must_use]
pub fn all(plan: &Plan, key: Option<&Key>) -> Bytes {
    let may_ask = |model: &Model| key.is_none_or(|key| key.may_ask(&model.name));
    let listed = plan.models.iter().filter(|model| model.prefix().is_none() && may_ask(model));
    let data: Vec<Value> = listed.map(|model| entry(plan, model, &model.name)).collect();
    json!({"object": "list", "data": data}).to_string().into()
}

/// One model under the name that was asked for.
#[must_use]
pub fn one(plan: &Plan, model: &Model, asked: &str) -> Bytes {
    entry(plan, model, asked).to_string().into()
}

/// The header of an answer from memory.
pub fn header(body: &Bytes) -> Result<ResponseHeader> {
    let mut header = ResponseHeader::build(StatusCode::OK, Some(4))?;
    header.insert_header(CONTENT_TYPE, "application/json")?;
    header.insert_header(CONTENT_LENGTH, body.len())?;
    Ok(header)
}

fn entry(plan: &Plan, model: &Model, id: &str) -> Value {
    let mut entry = json!({"id": id, "object": "model", "created": plan.loaded_at, "owned_by": model.owned_by});
    if !model.version.is_empty() {
        entry["version"] = model.version[..].into();
    }
    entry
}
