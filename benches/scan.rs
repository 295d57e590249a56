//! How fast `prompt::scan` passes over bodies, next to what `serde_json` would take for the same knowledge.
//!
//! Run it with `cargo bench --bench scan`. Medians of rounds, in megabytes (10⁶ bytes) a second. `borrowed` skips what it
//! does not keep without a look at its UTF-8 and its surrogates, so it may be faster, and lets more pass.

use std::borrow::Cow;
use std::hint::black_box;
use std::time::{Duration, Instant};

use forebay::prompt::scan::scan;
use serde::Deserialize;
use serde_json::{Value, json};

/// The members of a prompt that count, for a reader that skips the others without keeping them.
#[derive(Deserialize)]
#[expect(dead_code, reason = "the fields are read from JSON, and that is what is measured")]
struct Borrowed<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
    stream: Option<bool>,
    max_tokens: Option<u64>,
}

fn main() {
    let bodies = [
        ("1 KB prompt", small()),
        ("400 KB chat", chat()),
        ("5 MB image", image()),
        ("1 MB token ids", tokens()),
        ("1 MB members", members()),
    ];
    println!("{:16} {:>10} {:>10} {:>14} {:>12}", "body", "bytes", "scan MB/s", "borrowed MB/s", "Value MB/s");
    for (name, body) in &bodies {
        let scanned = rate(body, |body| scan(body).is_ok());
        let borrowed = rate(body, |body| serde_json::from_slice::<Borrowed<'_>>(body).is_ok());
        let value = rate(body, |body| serde_json::from_slice::<Value>(body).is_ok());
        println!("{name:16} {:>10} {scanned:>10.0} {borrowed:>14.0} {value:>12.0}", body.len());
    }
}

/// The median rate of several rounds of about 40 ms each, in megabytes a second.
fn rate(body: &[u8], read: impl Fn(&[u8]) -> bool) -> f64 {
    const ROUND: Duration = Duration::from_millis(40);
    let mut rates: Vec<f64> = (0..11)
        .map(|_| {
            let start = Instant::now();
            let mut passed = 0;
            while start.elapsed() < ROUND {
                assert!(read(black_box(body)), "every body here is a prompt");
                passed += body.len();
            }
            passed as f64 / 1e6 / start.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn print(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn small() -> Vec<u8> {
    let question = "Which of the three proposals needs the least water in a dry summer, and why? ".repeat(10);
    print(&json!({
        "model": "llama-3.1-8b",
        "messages": [
            { "role": "system", "content": "You answer in one paragraph.\nYou say \"I do not know\" when you do not." },
            { "role": "user", "content": question },
        ],
        "temperature": 0.2, "max_tokens": 256, "stream": true, "stop": ["\n\n"],
    }))
}

/// A long conversation: English, code with its line ends and quotes escaped, other scripts, nested content parts.
fn chat() -> Vec<u8> {
    let prose = "The forebay takes the river in, keeps it level, and feeds each turbine what it can take. ".repeat(12);
    let code = "fn main() {\n    let name = \"forebay\";\n    println!(\"{name}\\n\");\n}\n".repeat(12);
    let scripts =
        "Der Stausee fließt über, wenn es zu sehr regnet. 水位が下がると発電できません。Уровень воды. 🌊 ".repeat(8);
    let mut messages = Vec::new();
    let mut length = 0;
    while length < 400_000 {
        messages.push(json!({ "role": "user", "content": [
            { "type": "text", "text": prose },
            { "type": "text", "text": scripts, "cache_control": { "type": "ephemeral", "tags": [1, 2.5, null, true] } },
        ]}));
        messages.push(json!({ "role": "assistant", "content": format!("{prose}\n\n```rust\n{code}```\n{prose}") }));
        length += 3 * prose.len() + scripts.len() + code.len();
    }
    print(&json!({ "messages": messages, "max_tokens": 1024, "stream": true, "model": "llama-3.1-8b" }))
}

fn image() -> Vec<u8> {
    let data = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9".repeat(65_000);
    print(&json!({
        "model": "llava",
        "messages": [{ "role": "user", "content": [
            { "type": "text", "text": "What is in this image?" },
            { "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{data}") } },
        ]}],
    }))
}

/// Nothing but small tokens: a prompt that the client has tokenized itself.
fn tokens() -> Vec<u8> {
    let ids: Vec<u32> = (0..170_000).map(|index: u32| index.wrapping_mul(7919) % 128_000).collect();
    print(&json!({ "model": "embed", "input": ids }))
}

/// What a hostile client may send to keep us busy: as many top-level members as fit.
fn members() -> Vec<u8> {
    format!("{{\"model\":\"m\"{}}}", ",\"m\":0".repeat(170_000)).into_bytes()
}
