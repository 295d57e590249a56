//! What forebay itself answers, and what it lets nowhere near an engine.

use serde_json::{Value, json};

use crate::client::{Client, Http1, Request, VERSIONS, Version, Whole, get, post, prompt, request};
use crate::harness::{Builder, SECRET, in_front_of, key, pool};
use crate::upstream::Engine;

/// A forebay that can refuse in every way there is.
fn strict(engine: &Engine) -> Builder {
    let routes = r#"
        [model."other"]
        pool = "p"
        [[route]]
        name = "chat"
        path = "/v1/*"
        by = "model"
        [[route]]
        name = "open"
        path = "/open/v1/*"
        by = "model"
        auth = "none"
        strip_prefix = "/open"
        [[route]]
        name = "ops"
        path = "/ops/*"
        pool = "q"
        methods = ["GET", "PUT"]
        [[route]]
        name = "grpc"
        path = "/inference.GRPCInferenceService/*"
        pool = "down"
        [[route]]
        name = "hosted"
        host = "*.example.com"
        path = "/hosted"
        pool = "q"
    "#;
    let down =
        "[pool.down]\nservers = [\"127.0.0.1:1\"]\n[pool.down.health]\npath = \"\"\n[model.down]\npool = \"down\"";
    in_front_of(&[engine])
        .server("max_body = \"1KiB\"\nbody_timeout = \"200ms\"")
        .and(&pool("q", engine, ""))
        .and(down)
        .and(routes)
        .and(&key("narrow", "narrow-secret", "models = [\"m\"]\nroutes = [\"chat\"]"))
        .and(&key("old", "old-secret", "models = [\"*\"]\nexpires = 2020-01-01T00:00:00Z"))
        .and(&key("off", "off-secret", "models = [\"*\"]\ndisabled = true"))
}

fn unkeyed() -> Request {
    post("/v1/chat/completions").body("{\"model\":\"m\"}")
}

/// Every refusal that a request alone can bring about: the request, status, type, code, param, what gRPC says, and whether
/// an HTTP/1.1 connection lives on.
fn cases() -> Vec<(Request, u16, &'static str, &'static str, Value, u8, bool)> {
    const INVALID: &str = "invalid_request_error";
    let body = |text: &str| prompt().body(text.to_owned());
    let large = format!("{{\"model\":\"m\",\"x\":\"{}\"}}", "x".repeat(2000));
    let model = || json!("model");
    let nothing = || Value::Null;
    vec![
        (unkeyed(), 401, INVALID, "invalid_api_key", nothing(), 16, true),
        (unkeyed().key("wrong"), 401, INVALID, "invalid_api_key", nothing(), 16, true),
        (unkeyed().key("old-secret"), 401, INVALID, "invalid_api_key", nothing(), 16, true),
        (unkeyed().key("off-secret"), 401, INVALID, "invalid_api_key", nothing(), 16, true),
        (unkeyed().header("authorization", "Basic eDp5"), 401, INVALID, "invalid_api_key", nothing(), 16, true),
        (unkeyed().header("x-api-key", ""), 401, INVALID, "invalid_api_key", nothing(), 16, true),
        (get("/ops/x").key("narrow-secret"), 403, "permission_error", "route_not_allowed", nothing(), 7, true),
        (
            unkeyed().body("{\"model\":\"other\"}").key("narrow-secret"),
            403,
            "permission_error",
            "model_not_allowed",
            model(),
            7,
            true,
        ),
        (body("{}").to("/nowhere"), 404, INVALID, "not_found", nothing(), 12, true),
        (get("/hosted").key(SECRET), 404, INVALID, "not_found", nothing(), 12, true),
        (get("/v1/chat/completions").key(SECRET), 405, INVALID, "method_not_allowed", nothing(), 12, true),
        (body("{}").to("/ops/x"), 405, INVALID, "method_not_allowed", nothing(), 12, true),
        (body("{\"model\":\"none\"}"), 404, INVALID, "model_not_found", model(), 5, true),
        (body("no JSON"), 400, INVALID, "invalid_json", nothing(), 3, true),
        (body("[\"model\"]"), 400, INVALID, "invalid_json", nothing(), 3, true),
        (body("{\"model\":\"m\"} "), 200, "", "", nothing(), 0, true),
        (body("{\"model\":\"m\"}x"), 400, INVALID, "invalid_json", nothing(), 3, true),
        (body("{\"messages\":[]}"), 400, INVALID, "missing_model", model(), 3, true),
        (body("{\"model\":7}"), 400, INVALID, "missing_model", model(), 3, true),
        (body("{\"model\":\"m\",\"model\":\"other\"}"), 400, INVALID, "duplicate_model", model(), 3, true),
        (body("{\"model\":\"m\",\"mod\\u0065l\":\"m\"}"), 400, INVALID, "duplicate_model", model(), 3, true),
        (prompt().header("content-encoding", "gzip"), 415, INVALID, "unsupported_encoding", nothing(), 3, true),
        (body(&large), 413, INVALID, "request_too_large", nothing(), 8, true),
        (body(&large).pieces(500), 413, INVALID, "request_too_large", nothing(), 8, true),
        (body("{\"model\":\"down\"}"), 503, "overloaded_error", "no_healthy_upstream", nothing(), 14, false),
        (prompt().header("x-long", &"x".repeat(33 * 1024)), 431, INVALID, "header_too_large", nothing(), 8, false),
        (body("{}").to(&format!("/v1/{}", "x".repeat(9000))), 431, INVALID, "header_too_large", nothing(), 8, false),
        (body("{}").to("/v1/../ops/x"), 400, INVALID, "malformed_request", nothing(), 3, false),
        (body("{}").to("/v1/%2e%2e/ops/x"), 400, INVALID, "malformed_request", nothing(), 3, false),
        (get("/v1%2Fmodels").key(SECRET), 400, INVALID, "malformed_request", nothing(), 3, false),
        (get("/ops%2fx").key(SECRET), 400, INVALID, "malformed_request", nothing(), 3, false),
    ]
}

fn look(answer: &Whole) -> (u16, Value, Value, Value) {
    let body = answer.json();
    let error = body["error"].as_object().unwrap();
    assert_eq!((body.as_object().unwrap().len(), error.len()), (1, 4), "{body}");
    assert!(error["message"].as_str().is_some_and(|message| message.ends_with('.')), "{body}");
    assert!(!answer.text().contains("127.0.0.1") && !answer.text().contains("secret"), "{body}");
    (answer.status, error["type"].clone(), error["code"].clone(), error["param"].clone())
}

#[tokio::test]
async fn each_refusal_looks_as_the_contract_says() {
    let engine = Engine::fine().await;
    let forebay = strict(&engine).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        for (request, status, kind, code, param, _, lives) in cases() {
            let answer = client.ask(&request).await;
            let record = forebay.record().await;
            assert_eq!(record["status"], status, "{version:?} {request:?} {record}");
            if status == 200 {
                continue;
            }
            assert_eq!(look(&answer), (status, kind.into(), code.into(), param), "{version:?} {request:?}");
            assert!(answer.complete, "{version:?} {request:?}");
            assert_eq!(answer.header("content-type"), Some("application/json"));
            let end = if status == 503 { "error" } else { "complete" };
            assert_eq!((&record["code"], &record["end"]), (&code.into(), &end.into()), "{record}");
            assert_eq!(answer.header("www-authenticate"), (status == 401).then_some("Bearer"));
            assert_eq!(answer.header("retry-after"), (status == 503).then_some("5"));
            if version == Version::H1 && !lives {
                assert_eq!(answer.header("connection"), Some("close"), "{request:?}");
                client.is_closed().await;
                client = Client::connect(&forebay, version).await;
            } else {
                assert_ne!(answer.header("connection"), Some("close"), "{request:?}");
            }
        }
        assert_eq!(client.ask(&prompt()).await.status, 200, "{version:?}");
        forebay.record().await;
    }
    assert_eq!(engine.requests(), 4);
}

#[tokio::test]
async fn a_405_names_the_methods_that_are_served() {
    let engine = Engine::fine().await;
    let forebay = strict(&engine).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        for (method, path, allow) in [
            ("GET", "/v1/chat/completions", "POST"),
            ("DELETE", "/v1/models", "GET, HEAD"),
            ("POST", "/v1/models/m", "GET, HEAD"),
            ("POST", "/ops/x", "GET, PUT"),
            ("OPTIONS", "/ops/x", "GET, PUT"),
        ] {
            let answer = client.ask(&request(method, path).key(SECRET)).await;
            assert_eq!((answer.status, answer.header("allow")), (405, Some(allow)), "{version:?} {method} {path}");
        }
    }
}

#[tokio::test]
async fn anthropics_clients_get_anthropics_envelope() {
    let engine = Engine::fine().await;
    let forebay = strict(&engine).start().await;
    for version in VERSIONS {
        for (request, status, kind, code) in [
            (unkeyed(), 401, "authentication_error", "invalid_api_key"),
            (
                unkeyed().key("narrow-secret").body("{\"model\":\"other\"}"),
                403,
                "permission_error",
                "model_not_allowed",
            ),
            (prompt().body("{\"model\":\"none\"}"), 404, "not_found_error", "model_not_found"),
            (prompt().body("{"), 400, "invalid_request_error", "invalid_json"),
            (prompt().body("x".repeat(2000)), 413, "request_too_large", "request_too_large"),
            (prompt().body("{\"model\":\"down\"}"), 503, "overloaded_error", "no_healthy_upstream"),
        ] {
            let answer = Client::connect(&forebay, version).await.ask(&request.to("/v1/messages")).await;
            let body = answer.json();
            assert_eq!((answer.status, &body["type"]), (status, &json!("error")), "{version:?} {body}");
            assert_eq!((&body["error"]["type"], &body["error"]["code"]), (&json!(kind), &json!(code)), "{body}");
            assert!(body["error"]["message"].is_string());
        }
    }
}

#[tokio::test]
async fn anthropics_clients_behind_a_prefix_get_anthropics_envelope_too() {
    let engine = Engine::fine().await;
    let forebay = strict(&engine).start().await;
    let request = post("/open/v1/messages").body("{\"model\":\"none\"}");
    let answer = Client::connect(&forebay, Version::H1).await.ask(&request).await;
    assert_eq!((answer.status, &answer.json()["type"]), (404, &json!("error")), "{answer:?}");
}

#[tokio::test]
async fn grpc_clients_get_a_status_that_they_understand() {
    let engine = Engine::fine().await;
    let forebay = strict(&engine).start().await;
    let call = || post("/inference.GRPCInferenceService/ModelInfer").header("content-type", "application/grpc");
    for version in VERSIONS {
        for (request, status) in [
            (call().key(SECRET), "14"),
            (call(), "16"),
            (call().key("narrow-secret"), "7"),
            (call().key(SECRET).to("/other.Service/Call"), "12"),
        ] {
            let answer = Client::connect(&forebay, version).await.ask(&request.body(&b"\0\0\0\0\0"[..])).await;
            assert_eq!((answer.status, answer.header("grpc-status")), (200, Some(status)), "{version:?} {answer:?}");
            assert!(!answer.header("grpc-message").unwrap().is_empty());
            assert_eq!(answer.header("content-type"), Some("application/grpc"));
            assert!(answer.body.is_empty() && answer.complete);
            forebay.record().await;
        }
    }
}

#[tokio::test]
async fn a_host_is_part_of_a_route() {
    let engine = Engine::fine().await;
    let forebay = strict(&engine).start().await;
    for (host, status) in [("a.example.com", 200), ("A.Example.COM:80", 200), ("example.com", 404), ("x.test", 404)] {
        let answer =
            Client::connect(&forebay, Version::H1).await.ask(&get("/hosted").key(SECRET).header("host", host)).await;
        assert_eq!(answer.status, status, "{host}");
    }
}

#[tokio::test]
async fn two_hosts_over_http2_reach_no_engine() {
    let engine = Engine::fine().await;
    let forebay = strict(&engine).start().await;
    let mut client = Client::connect(&forebay, Version::H2).await;
    let request = get("/hosted").key(SECRET).header("host", "a.example.com"); // its authority is another
    if let Some(answer) = client.send(&request).await.answered().await {
        assert_eq!(answer.status, 400);
    }
    assert_eq!(engine.requests(), 0);
}

#[tokio::test]
async fn what_two_servers_could_read_in_two_ways_reaches_no_engine_and_closes_the_connection() {
    let engine = Engine::fine().await;
    let forebay = strict(&engine).start().await;
    let key = format!("authorization: Bearer {SECRET}\r\n");
    let good = "POST /v1/completions HTTP/1.1\r\nhost: x\r\n";
    let body = "{\"model\":\"m\"}";
    let many: String = (0..100).map(|n| format!("x-{n}: 1\r\n")).collect();
    let long = "x".repeat(8 * 1024);
    for (name, status, request) in [
        ("a bare LF", 400, format!("POST /v1/completions HTTP/1.1\nhost: x\n{key}content-length: 13\n\n{body}")),
        ("one bare LF", 400, format!("{good}{key}x-a: 1\ncontent-length: 13\r\n\r\n{body}")),
        ("a bare CR", 400, format!("{good}{key}x-a: 1\rx-b: 2\r\ncontent-length: 13\r\n\r\n{body}")),
        ("a folded line", 400, format!("{good}{key}x-a: 1\r\n 2\r\ncontent-length: 13\r\n\r\n{body}")),
        ("a NUL", 400, format!("{good}{key}x-a: 1\0\r\ncontent-length: 13\r\n\r\n{body}")),
        ("a space before a colon", 400, format!("{good}{key}content-length : 13\r\n\r\n{body}")),
        ("a length twice in one", 400, format!("{good}{key}content-length: 13, 13\r\n\r\n{body}")),
        ("a length twice", 400, format!("{good}{key}content-length: 13\r\ncontent-length: 13\r\n\r\n{body}")),
        ("two lengths", 400, format!("{good}{key}content-length: 13\r\ncontent-length: 14\r\n\r\n{body}")),
        ("a signed length", 400, format!("{good}{key}content-length: +13\r\n\r\n{body}")),
        ("a negative length", 400, format!("{good}{key}content-length: -1\r\n\r\n{body}")),
        ("a hexadecimal length", 400, format!("{good}{key}content-length: 0xd\r\n\r\n{body}")),
        (
            "both framings",
            400,
            format!("{good}{key}content-length: 13\r\ntransfer-encoding: chunked\r\n\r\nd\r\n{body}\r\n0\r\n\r\n"),
        ),
        (
            "both the other way",
            400,
            format!("{good}{key}transfer-encoding: chunked\r\ncontent-length: 13\r\n\r\nd\r\n{body}\r\n0\r\n\r\n"),
        ),
        ("another coding", 400, format!("{good}{key}transfer-encoding: gzip\r\n\r\n{body}")),
        ("two codings", 400, format!("{good}{key}transfer-encoding: gzip, chunked\r\n\r\nd\r\n{body}\r\n0\r\n\r\n")),
        (
            "chunked twice",
            400,
            format!(
                "{good}{key}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\nd\r\n{body}\r\n0\r\n\r\n"
            ),
        ),
        (
            "a disguised coding",
            400,
            format!("{good}{key}transfer-encoding: \x0bchunked\r\n\r\nd\r\n{body}\r\n0\r\n\r\n"),
        ),
        (
            "chunks over HTTP/1.0",
            400,
            format!("POST /v1/completions HTTP/1.0\r\n{key}transfer-encoding: chunked\r\n\r\nd\r\n{body}\r\n0\r\n\r\n"),
        ),
        ("two hosts", 400, format!("{good}host: y\r\n{key}content-length: 13\r\n\r\n{body}")),
        ("no host", 400, format!("POST /v1/completions HTTP/1.1\r\n{key}content-length: 13\r\n\r\n{body}")),
        (
            "a host that is none",
            400,
            format!("POST /v1/completions HTTP/1.1\r\nhost: a b\r\n{key}content-length: 13\r\n\r\n{body}"),
        ),
        ("no version", 400, format!("POST /v1/completions\r\nhost: x\r\n{key}content-length: 13\r\n\r\n{body}")),
        (
            "another version",
            400,
            format!("POST /v1/completions HTTP/3.7\r\nhost: x\r\n{key}content-length: 13\r\n\r\n{body}"),
        ),
        (
            "a path that climbs",
            400,
            format!("POST /v1/../ops/x HTTP/1.1\r\nhost: x\r\n{key}content-length: 13\r\n\r\n{body}"),
        ),
        (
            "a path that climbs in disguise",
            400,
            format!("POST /v1/%2e%2e%2fops/x HTTP/1.1\r\nhost: x\r\n{key}content-length: 13\r\n\r\n{body}"),
        ),
        ("a backslash", 400, format!("POST /v1\\ops/x HTTP/1.1\r\nhost: x\r\n{key}content-length: 13\r\n\r\n{body}")),
        ("an encoded slash past a route", 400, format!("GET /ops%2Fx HTTP/1.1\r\nhost: x\r\n{key}\r\n")),
        ("no path", 400, format!("GET ops/x HTTP/1.1\r\nhost: x\r\n{key}\r\n")),
        ("an asterisk", 400, format!("OPTIONS * HTTP/1.1\r\nhost: x\r\n{key}\r\n")),
        (
            "a tunnel",
            405,
            format!("CONNECT 127.0.0.1:{} HTTP/1.1\r\nhost: 127.0.0.1\r\n{key}\r\n", engine.address.port()),
        ),
        ("many fields", 431, format!("{good}{key}{many}content-length: 13\r\n\r\n{body}")),
        ("a long line", 431, format!("POST /v1/{long} HTTP/1.1\r\nhost: x\r\n{key}content-length: 13\r\n\r\n{body}")),
        (
            "a large section",
            431,
            format!(
                "{good}{key}x-a: {long}\r\nx-b: {long}\r\nx-c: {long}\r\nx-d: {long}\r\ncontent-length: 13\r\n\r\n{body}"
            ),
        ),
    ] {
        let mut client = Http1::connect(forebay.address).await;
        client.write(request.as_bytes()).await;
        assert_eq!(client.refusal().await, Some(status), "{name}");
        assert_eq!(engine.requests(), 0, "{name} reached an engine");
    }
}

#[tokio::test]
async fn the_limits_themselves_are_within_them() {
    let engine = Engine::fine().await;
    let forebay = strict(&engine).start().await;
    let many = (0..95).fold(prompt(), |request, n| request.header(&format!("x-{n}"), "1"));
    let large = (0..3).fold(prompt(), |request, n| request.header(&format!("x-{n}"), &"x".repeat(10_000)));
    let long = prompt().to(&format!("/v1/{}", "x".repeat(8000)));
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        for request in [&many, &large, &long] {
            assert_eq!(client.ask(request).await.status, 200, "{version:?}");
        }
    }
}

#[tokio::test]
async fn what_follows_a_malformed_request_on_its_connection_is_not_read() {
    let engine = Engine::fine().await;
    let forebay = strict(&engine).start().await;
    let smuggled = String::from_utf8(prompt().wire()).unwrap();
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SECRET}\r\n");
    for framing in ["content-length: 0, 0\r\n", "content-length: 0\r\ntransfer-encoding: chunked\r\n", "host: y\r\n"] {
        let mut client = Http1::connect(forebay.address).await;
        client.write(format!("{head}{framing}\r\n{smuggled}").as_bytes()).await;
        assert_eq!(client.refusal().await, Some(400), "{framing}");
    }
    assert_eq!(engine.requests(), 0);
}

#[tokio::test]
async fn a_refusal_of_a_body_that_still_comes_is_seen_and_the_next_request_too() {
    let engine = Engine::fine().await;
    let forebay = strict(&engine).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        for request in [unkeyed(), unkeyed().pieces(999), prompt().to("/nowhere"), prompt().to("/nowhere").pieces(7000)]
        {
            let answer = client.ask(&request.body("x".repeat(50_000))).await;
            assert!([401, 404].contains(&answer.status) && answer.complete, "{version:?}");
            assert_ne!(answer.header("connection"), Some("close"));
        }
        let answer = client.ask(&unkeyed().body("x".repeat(3_000_000))).await; // sent whole before anything is read
        assert_eq!((answer.status, answer.complete), (401, true), "{version:?}");
    }
}
