//! The engines' own key: where it comes from, who gets it, and who never sees it.

use serde_json::json;

use crate::configuration::{Configuration, SECRET};
use crate::harness::{Folder, Forebay, until, with_environment};
use crate::http::chat;
use crate::stub::{Stub, field, whole};

/// The engine's secret.
const ENGINES: &str = "sk-the-engines-own-secret";

/// An engine that lets in who has this secret, and repeats the one that is wrong.
fn guarded(secret: &'static str) -> Stub {
    Stub::tcp(move |head, out| match field(head, "authorization") {
        Some(sent) if sent == format!("Bearer {secret}") => whole(out, 200, "{\"ok\":true}"),
        sent => whole(out, 401, &format!("{{\"error\":\"{sent:?} is wrong\"}}")),
    })
}

/// A pool of this engine with a key written so.
fn configuration(engine: &Stub, api_key: &str, more: &str) -> Configuration {
    Configuration::empty()
        .more(&format!(
            "[pool.p]\nservers = [\"{}\"]\napi_key = \"{api_key}\"\n{more}\n[pool.p.health]\ninterval = \"100ms\"",
            engine.address
        ))
        .more("[[route]]\nname = \"v1\"\npath = \"/v1/*\"\nby = \"model\"")
        .more("[[route]]\nname = \"raw\"\npath = \"/raw/*\"\npool = \"p\"\nauth = \"none\"")
        .model("m*", "p")
        .key("tester", SECRET, "[\"*\"]")
}

/// Fails where a text that somebody may read holds the engine's secret; never prints it.
fn tells_nothing(text: &str, place: &str) {
    let told = ["the-engines-own-secret", "the-new-secret"].iter().any(|secret| text.contains(secret));
    assert!(!told, "{place} holds the engine's secret");
}

/// That nothing which this daemon wrote or shows holds the secret.
fn keeps_its_secret(forebay: &Forebay) {
    tells_nothing(&forebay.log(), "the log");
    for path in ["/metrics", "/status", "/readyz"] {
        tells_nothing(&forebay.admin(path).text(), path);
    }
}

#[test]
fn a_key_comes_from_the_environment_a_file_or_systemd_and_goes_to_the_engine_alone() {
    let engine = guarded(ENGINES);
    let folder = || Folder::with(&[("secret", &format!("{ENGINES}\n")), ("credentials/engines", ENGINES)]);
    for form in ["${ENGINE_KEY}", "file:FOLDER/secret", "credential:engines"] {
        let folder = folder();
        let credentials = folder.path("credentials");
        let environment = [("ENGINE_KEY", ENGINES), ("CREDENTIALS_DIRECTORY", &*credentials)];
        let api_key = form.replace("FOLDER/secret", &folder.path("secret"));
        folder
            .write("forebay.toml", &configuration(&engine, &api_key, "").more("[log]\nlevel = \"trace\"").to_string());
        let file = folder.path("forebay.toml");
        let said = with_environment(&["check", "-c", &file], &environment);
        assert_eq!((said.code, &*said.stderr), (Some(0), ""), "{form}");
        tells_nothing(&said.stdout, "check");
        let before = engine.heard("POST ").len();
        let forebay = Forebay::start_with_environment(folder, "forebay.toml", &environment);
        forebay.until_ready();
        assert_eq!(forebay.server("p", 0)["why"], "probe answered", "{form}: the probes have it too");
        let mut client = forebay.client();
        assert_eq!(client.chat("m").expect("an answer").status, 200, "{form}");
        let own = ["authorization: Bearer the-clients-own", "x-api-key: the-clients-own", "api-key: the-clients-own"];
        assert_eq!(client.ask("POST", "/raw/x", &own, "").expect("an answer").status, 200, "{form}");
        for head in &engine.heard("POST ")[before..] {
            let strange = head.contains("the-clients-own") || head.contains(SECRET);
            assert!(!strange, "{form}: the engine sees a client's key");
            assert!(field(head, "x-api-key").is_none() && field(head, "api-key").is_none(), "{form}");
        }
        assert_eq!(engine.heard("POST ").len() - before, 2);
        keeps_its_secret(&forebay);
    }
}

#[test]
fn an_engine_that_refuses_its_key_is_not_the_clients_fault() {
    let engine = guarded("sk-another");
    let folder = Folder::with(&[("secret", ENGINES)]);
    let api_key = format!("file:{}", folder.path("secret"));
    for (path, envelope) in [("/v1/chat/completions", "openai"), ("/v1/messages", "anthropic"), ("/raw/x", "openai")] {
        let level = "[log]\nlevel = \"trace\"";
        let forebay = Forebay::ready(&configuration(&engine, &api_key, "").more(level));
        let key = format!("authorization: Bearer {SECRET}");
        let answer = forebay.client().ask("POST", path, &[&key], &chat("m", "x", false)).expect("an answer");
        assert_eq!(answer.status, 502, "{path}");
        tells_nothing(&answer.text(), path);
        tells_nothing(&format!("{:?}", answer.headers), path);
        let body = answer.json();
        assert_eq!(body["error"]["code"], "upstream_credentials", "{path}");
        let kind = if envelope == "anthropic" { "api_error" } else { "upstream_error" };
        assert_eq!(
            (&body["error"]["type"], body["type"] == "error"),
            (&json!(kind), envelope == "anthropic"),
            "{path}"
        );
        assert!(!answer.headers.contains_key("www-authenticate"));
        forebay.until_said("it refused the pool's `api_key`");
        assert_eq!(forebay.server("p", 0)["state"], "up", "a refused probe is one of the living");
        assert_eq!(forebay.metric("forebay_auth_failures_total{reason=\"unknown\"}"), Some(0.0));
        keeps_its_secret(&forebay);
    }
}

#[test]
fn without_a_key_of_the_pool_an_engines_401_is_its_own() {
    let engine = guarded(ENGINES);
    let forebay = Forebay::ready(&Configuration::of(&[&engine.address]));
    let answer = forebay.client().chat("m").expect("an answer");
    assert_eq!((answer.status, &*answer.text()), (401, "{\"error\":\"None is wrong\"}"));
}

#[test]
fn a_reload_takes_a_files_new_secret_and_a_bad_one_changes_nothing() {
    let engine = guarded("sk-the-new-secret");
    let folder = Folder::with(&[("secret", ENGINES)]);
    let api_key = format!("file:{}", folder.path("secret"));
    let forebay = Forebay::ready(&configuration(&engine, &api_key, ""));
    assert_eq!(forebay.client().chat("m").expect("an answer").status, 502);
    folder.write("secret", "sk-the-new-secret\n");
    assert_eq!(forebay.client().chat("m").expect("an answer").status, 502, "nothing is read between reloads");
    forebay.reload();
    let mut client = forebay.client();
    assert_eq!(client.chat("m").expect("an answer").status, 200);
    until("the probes have it too", || (forebay.server("p", 0)["why"] == "probe answered").then_some(()));
    for bad in ["", "sk-the-new-secret\nand another line"] {
        folder.write("secret", bad);
        forebay.reload();
        forebay.until_said("not reloaded: ");
        assert_eq!(client.chat("m").expect("an answer").status, 200, "the old one is in force");
    }
    assert_eq!((forebay.reloads("success"), forebay.reloads("failure")), (1.0, 2.0));
    keeps_its_secret(&forebay);
}

#[test]
fn a_fault_of_a_key_says_where_and_never_what() {
    let engine = guarded(ENGINES);
    let folder = Folder::with(&[("two", "sk-the-engines-own-secret\nsk-the-engines-own-secret"), ("empty", " \n")]);
    let path = |name: &str| format!("file:{}", folder.path(name));
    let variables = [("TWO_LINES", "sk-the-engines-own-secret\nx"), ("CREDENTIALS_DIRECTORY", "/nonexistent")];
    for (api_key, told) in [
        (ENGINES.to_owned(), "clear text"),
        (format!("${{UNSET_KEY:-{ENGINES}}}"), "clear text"),
        (format!("Bearer {ENGINES}"), "clear text"),
        ("${TWO_LINES}".to_owned(), "one line"),
        (path("two"), "one line"),
        (path("empty"), "empty"),
        (path("missing"), "cannot be read"),
        ("file:secret".to_owned(), "absolute"),
        ("credential:engines".to_owned(), "cannot be read"),
        ("credential:../engines".to_owned(), "a credential's name"),
        ("${UNSET_KEY}".to_owned(), "UNSET_KEY"),
    ] {
        let file = folder.write("forebay.toml", &configuration(&engine, &api_key, "").to_string());
        for command in ["check", "run"] {
            let said = with_environment(&[command, "-c", &file], &variables);
            assert_eq!(said.code, Some(2), "{told}");
            tells_nothing(&format!("{}{}", said.stdout, said.stderr), told);
            let named = said.stderr.contains("forebay.toml:") && said.stderr.contains(told);
            assert!(named, "{told}: {}", said.stderr);
        }
    }
}

#[test]
fn a_pool_sets_and_removes_headers_of_requests() {
    let engine = Stub::tcp(|_, out| whole(out, 200, "{}"));
    let more = "set_headers = { \"x-team\" = \"search\", \"user-agent\" = \"forebay-tests\" }\n\
                remove_headers = [\"cookie\", \"x-forwarded-for\"]";
    let forebay = Forebay::ready(&configuration(&engine, "", more));
    let own = ["x-team: a-stranger", "x-team: twice", "cookie: a=b", "x-own: 1", "user-agent: own"];
    assert_eq!(forebay.client().ask("POST", "/raw/x", &own, "").expect("an answer").status, 200);
    let head = engine.heard("POST ").remove(0);
    let got = |name| field(&head, name);
    assert_eq!((got("x-team"), got("user-agent"), got("x-own")), (Some("search"), Some("forebay-tests"), Some("1")));
    assert_eq!((got("cookie"), got("x-forwarded-for")), (None, None));
    assert_eq!(field(&engine.heard("GET ")[0], "x-team"), Some("search"), "probes too");
}
