//! `POST /v1/embeddings`: a vector per text, the sum of one direction per word.
//!
//! So the same text always has the same vector, and texts that share words lie close to each other. Vectors have
//! length 1, except that of a text without words, which is zero.

use super::answer::{Answer, count};
use super::call::{Call, text_of};
use super::reply::{Refusal, Reply};
use super::splitmix::SplitMix;
use serde_json::{Value, json};

/// The dimensions of a vector if the client does not say.
const DIMENSIONS: usize = 16;

/// The most dimensions a client gets.
const MAX_DIMENSIONS: usize = 4096;

/// The most words of one text, as OpenAI has it for tokens; it also bounds the work of one call.
const MAX_WORDS: usize = 8192;

/// The most texts of one call.
const MAX_TEXTS: usize = 2048;

/// `POST /v1/embeddings`.
pub(super) fn embed(call: &Call) -> Result<Reply, Refusal> {
    let texts = texts(&call.body["input"])?;
    let dimensions = call.count("dimensions")?.unwrap_or(DIMENSIONS);
    if dimensions > MAX_DIMENSIONS {
        let message = format!("`dimensions` may be {MAX_DIMENSIONS} at most.");
        return Err(Refusal::invalid(Some("dimensions"), message));
    }
    let encode = encoding(&call.body["encoding_format"])?;
    let embedding = |(index, text): (usize, &String)| {
        let vector = encode(&vector(text, dimensions));
        json!({"object": "embedding", "index": index, "embedding": vector})
    };
    let data: Vec<Value> = texts.iter().enumerate().map(embedding).collect();
    let tokens: usize = texts.iter().map(|text| count(text)).sum();
    let list = json!({
        "object": "list",
        "data": data,
        "model": call.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    });
    let answer = Answer { prompt_tokens: tokens, tokens: Vec::new(), finish_reason: "stop" };
    // An embedding takes as long as the first token of an answer.
    Ok(Reply::json(1, &list).costing(call.cost(&answer)))
}

/// A text, a list of texts, a text as token ids, or a list of those.
fn texts(input: &Value) -> Result<Vec<String>, Refusal> {
    let wrong = |message| Err(Refusal::invalid(Some("input"), message));
    let texts: Vec<String> = match input {
        Value::String(text) => vec![text.clone()],
        Value::Array(ids) if ids.iter().any(Value::is_number) => vec![text_of(input)],
        Value::Array(texts) if !texts.is_empty() => texts.iter().map(text_of).collect(),
        _ => return wrong("`input` must be a string or a list of strings."),
    };
    if texts.len() > MAX_TEXTS {
        return wrong("`input` may have 2048 texts at most.");
    }
    if texts.iter().any(|text| count(text) > MAX_WORDS) {
        return wrong("A text of `input` may have 8192 words at most.");
    }
    Ok(texts)
}

fn encoding(format: &Value) -> Result<fn(&[f32]) -> Value, Refusal> {
    match format {
        Value::Null => Ok(floats),
        format if format == "float" => Ok(floats),
        format if format == "base64" => Ok(|vector| {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            base64(&bytes).into()
        }),
        _ => Err(Refusal::invalid(Some("encoding_format"), "`encoding_format` must be \"float\" or \"base64\".")),
    }
}

fn floats(vector: &[f32]) -> Value {
    json!(vector)
}

fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let mut sum = vec![0.0_f32; dimensions];
    for word in text.split_whitespace() {
        let mut direction = SplitMix::new(fnv1a(word.to_lowercase().as_bytes()));
        for x in &mut sum {
            *x += direction.signed();
        }
    }
    let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        for x in &mut sum {
            *x /= length;
        }
    }
    sum
}

/// The 64-bit FNV-1a hash. The standard library's hash may change with its version, and vectors with it.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | usize::from(three.get(i).copied().unwrap_or_default()));
        for i in 0..4 {
            let sextet = bits >> (18 - 6 * i) & 63;
            let padding = i > three.len();
            text.push(if padding { '=' } else { ALPHABET[sextet].into() });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn texts_that_share_words_lie_closer() {
        let near = |a, b| -> f32 {
            let (a, b) = (vector(a, 256), vector(b, 256));
            a.iter().zip(&b).map(|(x, y)| x * y).sum()
        };
        let same = near("the river runs", "The  river runs");
        assert!((same - 1.0).abs() < 1e-5, "{same}");
        assert!(near("the river runs", "the river stands") > 0.5);
        assert!(near("the river runs", "turbines turn fast").abs() < 0.3);
        assert_eq!(vector("", 3), [0.0; 3]);
    }

    #[test]
    fn input_comes_in_four_shapes() {
        for (input, found) in [
            (json!("a b"), Some(vec!["a b"])),
            (json!(["a", "b"]), Some(vec!["a", "b"])),
            (json!([1, 2]), Some(vec!["1 2"])),
            (json!([[1, 2], [3]]), Some(vec!["1 2", "3"])),
            (json!([]), None),
            (json!(null), None),
            (json!("a ".repeat(MAX_WORDS + 1)), None),
        ] {
            let texts = texts(&input).ok();
            let texts = texts.as_ref().map(|texts| texts.iter().collect::<Vec<_>>());
            let found = found.map(|found| found.into_iter().map(String::from).collect::<Vec<_>>());
            assert_eq!(texts, found.as_ref().map(|found| found.iter().collect()));
        }
    }
}
