//! The prompt cache of the real process: what an operator and a reload do to it.

use std::io;
use std::sync::{Mutex, mpsc};
use std::thread;

use crate::configuration::{Configuration, SECRET};
use crate::harness::{Engine, Folder, Forebay, until};
use crate::http::{Answer, Client, chat};
use crate::stub::{Stub, whole};

/// A model `m` with a cache, of this version.
fn configuration(folder: &Folder, engine: &Engine, version: &str) -> Configuration {
    configuration_of(folder, &engine.address, version)
}

fn configuration_of(folder: &Folder, engine: &str, version: &str) -> Configuration {
    Configuration::empty()
        .admin_listen(&format!("unix:{}", folder.path("admin.sock")))
        .pool("p", &[engine], "")
        .more(&format!("[model.m]\npool = \"p\"\nversion = {version:?}\n[model.m.cache]"))
        .key("tester", SECRET, "[\"*\"]")
}

/// What the cache did with the prompt that is always the same.
fn ask(forebay: &Forebay) -> String {
    did(forebay, r#"{"model":"m","temperature":0,"messages":[{"role":"user","content":"hello"}]}"#)
}

/// What it did with this one.
fn did(forebay: &Forebay, body: &str) -> String {
    let key = format!("authorization: Bearer {SECRET}");
    let answer = forebay.client().ask("POST", "/v1/chat/completions", &[&key], body).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.headers["x-forebay-cache"].clone()
}

fn purge(forebay: &Forebay, method: &str, body: &str) -> Answer {
    Client::connect(forebay.admin_address()).ask(method, "/cache/purge", &[], body).expect("an answer")
}

#[test]
fn an_operator_throws_answers_out_and_a_reload_keeps_them_but_for_another_version() {
    let engine = Engine::start("e", &[]);
    let folder = Folder::new();
    let (first, second) = (configuration(&folder, &engine, "1"), configuration(&folder, &engine, "2"));
    let forebay = Forebay::start_in(folder, &first);
    forebay.until_ready();
    assert_eq!([ask(&forebay), ask(&forebay)], ["MISS", "HIT"]);
    let entries = || forebay.status()["cache"]["entries"].as_u64();
    assert_eq!((entries(), forebay.metric("forebay_cache_entries")), (Some(1), Some(1.0)));
    for (method, body, status, text) in [
        ("GET", "", 405, "not served with this method"),
        ("POST", "", 400, "send {\"model\": \"NAME\"}, or {} for all models"),
        ("POST", "{\"models\": \"m\"}", 400, "unknown field `models`"),
        ("POST", "{\"model\": \"n\"}", 404, "there is m"),
    ] {
        let answer = purge(&forebay, method, body);
        let said = answer.json()["error"].as_str().expect("a message").to_owned();
        assert!(answer.status == status && said.contains(text), "{method} {body}: {} {said}", answer.status);
    }
    assert_eq!((ask(&forebay), entries()), ("HIT".into(), Some(1)));
    for body in ["{\"model\": \"m\"}", "{}"] {
        assert_eq!(purge(&forebay, "POST", body).json()["purged"], 1);
        assert_eq!((entries(), ask(&forebay)), (Some(0), "MISS".into()));
    }
    forebay.reload();
    assert_eq!(ask(&forebay), "HIT");
    forebay.rewrite(&second);
    forebay.reload();
    assert_eq!(ask(&forebay), "MISS");
    forebay.rewrite(&first);
    forebay.reload();
    assert_eq!(ask(&forebay), "HIT");
}

#[test]
fn a_purge_means_what_an_engine_is_still_computing() {
    let (open, opened) = mpsc::channel::<()>();
    let opened = Mutex::new(opened);
    let stub = Stub::tcp(move |head, out| {
        if head.starts_with("POST") {
            opened.lock().expect("not poisoned").recv().map_err(io::Error::other)?;
        }
        whole(out, 200, "{}")
    });
    let folder = Folder::new();
    let configuration = configuration_of(&folder, &stub.address, "1");
    let forebay = Forebay::start_in(folder, &configuration);
    forebay.until_ready();
    thread::scope(|scope| {
        let asks = scope.spawn(|| ask(&forebay));
        until("the engine is asked", || (stub.heard("POST").len() == 1).then_some(()));
        assert_eq!(purge(&forebay, "POST", "{\"model\": \"m\"}").status, 200);
        open.send(()).expect("the engine waits");
        assert_eq!(asks.join().expect("an answer"), "MISS");
    });
    open.send(()).expect("the engine listens");
    assert_eq!([ask(&forebay), ask(&forebay)], ["MISS", "HIT"]);
}

#[test]
fn the_log_says_on_demand_why_a_prompt_is_not_for_the_cache() {
    let engine = Engine::start("e", &[]);
    let folder = Folder::new();
    let configuration = configuration(&folder, &engine, "1").more("[log]\nlevel = \"debug\"");
    let forebay = Forebay::start_in(folder, &configuration);
    forebay.until_ready();
    assert_eq!(did(&forebay, &chat("m", "word", false)), "BYPASS");
    forebay.until_said("not for the cache, because its temperature is not 0 and it has no seed");
}
