//! What passes in each direction: who asks, by which way, and nothing that is meant for one connection alone.

use forebay::live::Stage;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::client::{Client, Http1, Request, VERSIONS, Version, get, post, prompt, request};
use crate::harness::{SECRET, eventually, in_front_of, key, pool, soon};
use crate::upstream::{Asked, Engine, Gate, Reply};

/// Routes around pool `q`: `/raw/*` for anyone, `/triton/*` with its prefix taken off.
const ROUTES: &str = r#"
[[route]]
name = "raw"
path = "/raw/*"
pool = "q"
auth = "none"
[[route]]
name = "triton"
path = "/triton/*"
pool = "q"
strip_prefix = "/triton"
[[route]]
name = "v1"
path = "/v1/*"
by = "model"
"#;

fn names(asked: &Asked) -> Vec<String> {
    let names = asked.head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let mut names: Vec<String> = names.map(|(name, _)| name.to_ascii_lowercase()).collect();
    names.sort();
    names
}

/// Whether any of the requests that the engine got contains this anywhere in its header.
fn mentions(asked: &Asked, secret: &str) -> bool {
    asked.head.contains(secret)
}

#[tokio::test]
async fn an_engine_sees_who_asked_and_by_which_way() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).start().await;
    for (n, (version, via)) in [(Version::H1, "1.1 forebay"), (Version::H2, "2 forebay")].into_iter().enumerate() {
        let claims = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "forwarded", "via"];
        let request = claims.iter().fold(prompt(), |request, name| request.header(name, "203.0.113.7"));
        let request = request.header("x-team", "search").header("accept", "text/event-stream");
        let answer = Client::connect(&forebay, version).await.ask(&request).await;
        assert_eq!(answer.status, 200);
        let asked = engine.asked(n).await;
        for (name, value) in [
            ("x-forwarded-for", Some("127.0.0.1")),
            ("x-forwarded-proto", Some("http")),
            ("x-forwarded-host", Some("forebay.test")),
            ("via", Some(via)),
            ("host", Some("forebay.test")),
            ("x-real-ip", None),
            ("forwarded", None),
            ("x-team", Some("search")),
            ("accept", Some("text/event-stream")),
        ] {
            assert_eq!(asked.header(name), value, "{version:?} {name}: {}", asked.head);
        }
        assert!(!mentions(&asked, "203.0.113.7"), "{}", asked.head);
        assert_eq!(forebay.record().await["client"], "127.0.0.1");
    }
}

#[tokio::test]
async fn names_reach_the_engine_in_one_spelling_however_the_client_spelled_them() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).start().await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    assert_eq!(client.ask(&prompt().header("aCCept", "*/*").header("X-TEAM", "search")).await.status, 200);
    let asked = engine.asked(0).await;
    for line in ["\r\naccept: */*\r\n", "\r\nx-team: search\r\n"] {
        assert!(asked.head.contains(line), "{}", asked.head);
    }
}

#[tokio::test]
async fn a_prompt_reaches_the_engine_in_one_piece_with_its_header() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let raw = listener.local_addr().unwrap();
    let (told, mut heard) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut piece = vec![0; 1 << 16];
            let length = stream.read(&mut piece).await.unwrap();
            if piece.starts_with(b"POST") {
                told.send(String::from_utf8_lossy(&piece[..length]).into_owned()).unwrap();
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    let engine = Engine::fine().await;
    let tables = format!("[pool.raw]\nservers = [\"{raw}\"]\n[model.n]\npool = \"raw\"");
    let forebay = in_front_of(&[&engine]).and(&tables).start().await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    let body = json!({"model": "n", "prompt": "word ".repeat(1_000)}).to_string();
    for _ in 0..10 {
        assert_eq!(client.ask(&post("/v1/completions").key(SECRET).body(body.clone())).await.status, 200);
        let piece = soon("a prompt", heard.recv()).await.unwrap();
        assert!(piece.ends_with(&body), "{piece}");
    }
}

#[tokio::test]
async fn what_a_trusted_proxy_says_is_continued() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).server("trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]").start().await;
    for (n, version) in VERSIONS.into_iter().enumerate() {
        let request = prompt()
            .header("x-forwarded-for", "198.51.100.1, 203.0.113.7")
            .header("x-forwarded-for", "10.1.2.3")
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-host", "api.example.com")
            .header("via", "1.1 front");
        assert_eq!(Client::connect(&forebay, version).await.ask(&request).await.status, 200);
        let asked = engine.asked(n).await;
        assert_eq!(asked.header("x-forwarded-for"), Some("198.51.100.1, 203.0.113.7, 10.1.2.3, 127.0.0.1"));
        assert_eq!(asked.header("x-forwarded-proto"), Some("https"));
        assert_eq!(asked.header("x-forwarded-host"), Some("api.example.com"));
        assert!(asked.header("via").unwrap().starts_with("1.1 front, "), "{}", asked.head);
        assert_eq!(forebay.record().await["client"], "203.0.113.7", "{version:?}");
    }
}

#[tokio::test]
async fn a_request_has_one_id_on_both_sides_and_in_the_log() {
    let engine = Engine::always(Reply::raw("HTTP/1.1 200 OK\r\nx-request-id: mine\r\ncontent-length: 0\r\n\r\n")).await;
    let forebay = in_front_of(&[&engine]).start().await;
    let mut n = 0;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        for (sent, kept) in [(None, false), (Some("client-1.2_3"), true), (Some("not sane"), false), (Some(""), false)]
        {
            let request = sent.iter().fold(prompt(), |request, id| request.header("x-request-id", id));
            let answer = client.ask(&request).await;
            let id = answer.header("x-request-id").unwrap();
            assert_eq!(sent == Some(id), kept, "{version:?} {sent:?} {id}");
            assert!(kept || (id.len() == 36 && id.as_bytes()[14] == b'7'), "{id} is no UUIDv7");
            assert_eq!(engine.asked(n).await.header("x-request-id"), Some(id));
            assert_eq!(forebay.record().await["request_id"], id);
            n += 1;
        }
    }
}

#[tokio::test]
async fn our_own_answers_have_the_id_too() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        for request in [get("/v1/models").key(SECRET), get("/nowhere"), prompt().body("{"), get("/v1/models")] {
            let answer = client.ask(&request.header("x-request-id", "id-1")).await;
            assert_eq!(answer.header("x-request-id"), Some("id-1"), "{version:?} {answer:?}");
            assert_eq!(forebay.record().await["request_id"], "id-1");
        }
    }
}

#[tokio::test]
async fn a_clients_key_never_reaches_an_engine() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).and(&pool("q", &engine, "")).and(ROUTES).start().await;
    let bearer = format!("Bearer {SECRET}");
    let ways: [&[(&str, &str)]; 7] = [
        &[("authorization", &bearer)],
        &[("x-api-key", SECRET)],
        &[("api-key", SECRET)],
        &[("x-api-key", SECRET), ("api-key", SECRET), ("authorization", "Basic x")],
        &[("authorization", &bearer), ("x-api-key", "other")],
        &[("authorization", &bearer), ("x-api-key", SECRET), ("api-key", SECRET)],
        &[("authorization", "bearer  "), ("authorization", &bearer), ("x-api-key", SECRET)],
    ];
    let mut n = 0;
    for version in VERSIONS {
        for headers in ways {
            for request in [post("/v1/completions").body("{\"model\":\"m\"}"), post("/triton/v2/x"), post("/raw/x")] {
                let request = headers.iter().fold(request, |request, (name, value)| request.header(name, value));
                let answer = Client::connect(&forebay, version).await.ask(&request).await;
                if answer.status == 200 {
                    let asked = engine.asked(n).await;
                    assert!(!mentions(&asked, SECRET), "{version:?} {headers:?}: {}", asked.head);
                    n += 1;
                } else {
                    assert_eq!((answer.status, headers.len()), (401, 3), "{version:?} {headers:?}");
                }
            }
        }
    }
    assert_eq!(engine.requests(), n);
}

#[tokio::test]
async fn a_key_behind_a_strangers_credential_does_not_reach_an_open_routes_engine() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).and(&pool("q", &engine, "")).and(ROUTES).start().await;
    let bearer = format!("Bearer {SECRET}");
    let ways: [&[(&str, &str)]; 3] = [
        &[("authorization", "Bearer the-engines-own"), ("x-api-key", SECRET)],
        &[("x-api-key", "the-engines-own"), ("api-key", SECRET)],
        &[("authorization", "Bearer the-engines-own"), ("authorization", &bearer)],
    ];
    for (n, headers) in ways.into_iter().enumerate() {
        let request = headers.iter().fold(post("/raw/x"), |request, (name, value)| request.header(name, value));
        assert_eq!(Client::connect(&forebay, Version::H1).await.ask(&request).await.status, 200);
        let asked = engine.asked(n).await;
        assert!(!mentions(&asked, SECRET), "{headers:?}: {}", asked.head);
    }
}

#[tokio::test]
async fn credentials_that_are_not_ours_pass_on_an_open_route() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).and(&pool("q", &engine, "")).and(ROUTES).start().await;
    for (n, (name, value)) in
        [("authorization", "Bearer the-engines-own"), ("authorization", "Basic eDp5"), ("x-api-key", "e")]
            .into_iter()
            .enumerate()
    {
        let request = post("/raw/x").header(name, value);
        assert_eq!(Client::connect(&forebay, Version::H1).await.ask(&request).await.status, 200);
        assert_eq!(engine.asked(n).await.header(name), Some(value));
    }
}

#[tokio::test]
async fn what_is_meant_for_one_connection_stays_there() {
    let head = "HTTP/1.1 200 OK\r\nconnection: x-private, keep-alive\r\nkeep-alive: timeout=5\r\nx-private: 1\r\n\
                proxy-connection: x\r\nupgrade: h2c\r\nserver: engine\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n\
                content-length: 0\r\n\r\n";
    let engine = Engine::always(Reply::raw(head)).await;
    let forebay = in_front_of(&[&engine]).start().await;
    for (n, version) in VERSIONS.into_iter().enumerate() {
        let mut request = prompt().header("x-kept", "1").header("cookie", "c=3");
        if version == Version::H1 {
            request = request
                .header("connection", "x-private, keep-alive")
                .header("x-private", "1")
                .header("keep-alive", "5")
                .header("proxy-connection", "keep-alive")
                .header("te", "trailers")
                .header("upgrade", "websocket");
        }
        let answer = Client::connect(&forebay, version).await.ask(&request).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        for name in ["x-private", "keep-alive", "proxy-connection", "upgrade"] {
            assert_eq!(answer.header(name), None, "{version:?} {name}");
        }
        assert_eq!(answer.header("server"), Some("engine"));
        assert_eq!(answer.headers.get_all("set-cookie").iter().count(), 2);
        let asked = engine.asked(n).await;
        assert_eq!((asked.header("x-kept"), asked.header("cookie")), (Some("1"), Some("c=3")));
        for name in ["x-private", "keep-alive", "proxy-connection", "upgrade", "te"] {
            assert!(!names(&asked).contains(&name.to_owned()), "{version:?} {name}: {}", asked.head);
        }
        if let Some(connection) = asked.header("connection") {
            assert!(!connection.contains("x-private") && !connection.contains("upgrade"), "{}", asked.head);
        }
    }
}

#[tokio::test]
async fn nominating_a_field_does_not_drop_what_forebay_says() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).start().await;
    let nominated = "x-request-id, x-forwarded-for, via, authorization, x-api-key";
    let request = prompt().header("connection", nominated).header("x-request-id", "id-1");
    let answer = Client::connect(&forebay, Version::H1).await.ask(&request).await;
    if answer.status == 200 {
        let asked = engine.asked(0).await;
        assert_eq!((asked.header("x-request-id"), asked.header("x-forwarded-for")), (Some("id-1"), Some("127.0.0.1")));
        assert_eq!(asked.header("via"), Some("1.1 forebay"));
        assert!(!mentions(&asked, SECRET));
    } else {
        assert_eq!((answer.status, &*answer.code()), (400, "malformed_request"));
    }
}

#[tokio::test]
async fn a_pool_may_have_a_host_and_a_path_of_its_own() {
    let engine = Engine::fine().await;
    let table = pool("q", &engine, "host = \"engine.example\"\npath_prefix = \"/api/\"");
    let forebay = in_front_of(&[&engine])
        .pool("host = \"models.example:8443\"\npath_prefix = \"/base\"")
        .and(&table)
        .and(ROUTES)
        .start()
        .await;
    let mut n = 0;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        for (request, target, host) in [
            (prompt().to("/v1/chat/completions?a=b%20c"), "/base/v1/chat/completions?a=b%20c", "models.example:8443"),
            (post("/raw/x"), "/api/raw/x", "engine.example"),
            (get("/triton/v2/a%20b?x=/triton").key(SECRET), "/api/v2/a%20b?x=/triton", "engine.example"),
            (get("/triton/").key(SECRET), "/api/", "engine.example"),
        ] {
            assert_eq!(client.ask(&request).await.status, 200, "{request:?}");
            let asked = engine.asked(n).await;
            assert_eq!((asked.target(), asked.header("host")), (target, Some(host)), "{version:?}");
            assert_eq!(asked.header("x-forwarded-host"), Some("forebay.test"), "{version:?}");
            n += 1;
        }
    }
}

#[tokio::test]
async fn an_absolute_target_is_asked_for_by_its_path() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).start().await;
    let request = prompt().to("http://other.example/v1/completions?q=1");
    let mut client = Http1::connect(forebay.address).await;
    client.write(&request.wire()).await; // its `Host` is another
    client.is_refused_or_closed(400).await;
    let request = request.header("host", "other.example");
    assert_eq!(Client::connect(&forebay, Version::H1).await.ask(&request).await.status, 200);
    let asked = engine.asked(0).await;
    assert_eq!((asked.target(), asked.header("host")), ("/v1/completions?q=1", Some("other.example")));
}

#[tokio::test]
async fn a_pool_routes_bodies_stream_in_either_framing() {
    for (path, auth) in [("/raw/x", None), ("/triton/v2/x", Some(SECRET))] {
        for version in VERSIONS {
            for length in [None, Some(20)] {
                let engine = Engine::fine().await;
                let forebay = in_front_of(&[&engine]).and(&pool("q", &engine, "")).and(ROUTES).start().await;
                let mut request = post(path).header("content-type", "application/octet-stream");
                if let Some(secret) = auth {
                    request = request.key(secret);
                }
                let mut client = Client::connect(&forebay, version).await;
                match (&mut client, length) {
                    (Client::H1(http1), Some(length)) => {
                        let key = auth.map_or(String::new(), |secret| format!("x-api-key: {secret}\r\n"));
                        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{key}content-length: {length}\r\n\r\n");
                        http1.write(head.as_bytes()).await;
                        http1.write(b"0123456789").await;
                        engine.begun(0).await.has(10).await;
                        http1.write(b"abcdefghij").await;
                        assert_eq!(http1.answer().await.status, 200);
                    }
                    (client, length) => {
                        if let Some(length) = length {
                            request = request.header("content-length", &length.to_string());
                        }
                        let mut pending = client.begin(&request.body("").pieces(1)).await;
                        assert!(pending.pour("0123456789".into(), false).await);
                        engine.begun(0).await.has(10).await; // before the rest is sent
                        assert!(pending.pour("abcdefghij".into(), true).await);
                        assert_eq!(pending.answer().await.status, 200, "{path} {version:?}");
                    }
                }
                let asked = engine.asked(0).await;
                assert_eq!(asked.body(), "0123456789abcdefghij");
                let length = length.map(|length| length.to_string());
                assert_eq!(asked.header("content-length"), length.as_deref(), "{path} {version:?}");
                let record = forebay.record().await;
                assert_eq!((&record["bytes_in"], &record["pool"]), (&20.into(), &"q".into()), "{record}");
            }
        }
    }
}

#[tokio::test]
async fn a_pool_route_passes_any_method_and_any_content() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).and(&pool("q", &engine, "")).and(ROUTES).start().await;
    let mut n = 0;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        for method in ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "POST"] {
            let mut sent = request(method, "/raw/x?y=z").header("content-encoding", "gzip");
            if !["GET", "HEAD"].contains(&method) {
                sent = sent.body(&b"\x1f\x8b no JSON"[..]);
            }
            let answer = client.ask(&sent).await;
            assert_eq!(answer.status, 200, "{version:?} {method} {answer:?}");
            let asked = engine.asked(n).await;
            assert_eq!((asked.method(), asked.target()), (method, "/raw/x?y=z"));
            assert_eq!(asked.header("content-encoding"), Some("gzip"));
            if !["GET", "HEAD"].contains(&method) {
                assert_eq!(asked.body(), &b"\x1f\x8b no JSON"[..], "{version:?} {method}");
            }
            n += 1;
            if method == "HEAD" {
                // The stub sends a body after all, as no engine would: on with a connection of its own.
                client = Client::connect(&forebay, version).await;
            }
        }
    }
}

#[tokio::test]
async fn a_pool_route_answers_while_the_body_still_comes() {
    let engine =
        Engine::hasty(|_| Reply::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").chunk("early").stall())
            .await;
    let forebay = in_front_of(&[&engine]).and(&pool("q", &engine, "")).and(ROUTES).start().await;
    let mut client = Client::connect(&forebay, Version::H2).await;
    let mut pending = client.begin(&post("/raw/x").body("").pieces(1)).await;
    assert!(pending.pour("a first piece".into(), false).await);
    let mut answer = pending.answer().await;
    assert_eq!(answer.piece().await, Ok(Some("early".into())));
}

#[tokio::test]
async fn the_models_of_a_key_are_listed_from_memory() {
    let engine = Engine::fine().await;
    let more = "[model.\"org/llama\"]\npool = \"p\"\nowned_by = \"meta\"\n[model.\"family-*\"]\npool = \"p\"";
    let narrow = key("narrow", "narrow-secret", "models = [\"org/*\", \"family-a\"]");
    let forebay = in_front_of(&[&engine]).and(more).and(&narrow).start().await;
    let ids = |answer: &crate::client::Whole| -> Vec<String> {
        let list = answer.json();
        assert_eq!(list["object"], "list");
        let mut ids: Vec<String> =
            list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().into()).collect();
        ids.sort();
        ids
    };
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        for path in ["/v1/models", "/v1/models/", "/v1/models?limit=1"] {
            assert_eq!(ids(&client.ask(&get(path).key(SECRET)).await), ["m", "org/llama"], "{path}");
            assert_eq!(ids(&client.ask(&get(path).key("narrow-secret")).await), ["org/llama"], "{path}");
        }
        for path in ["/v1/models/org/llama", "/v1/models/org%2Fllama"] {
            let model = client.ask(&get(path).header("x-api-key", "narrow-secret")).await.json();
            let created = model["created"].as_u64().unwrap();
            let expected = json!({"id": "org/llama", "object": "model", "created": created, "owned_by": "meta"});
            assert_eq!(model, expected, "{path}");
        }
        let head = client.ask(&request("HEAD", "/v1/models").key(SECRET)).await;
        assert_eq!((head.status, head.text()), (200, ""));
        assert_eq!(client.ask(&get("/v1/models/family-a").key("narrow-secret")).await.json()["id"], "family-a");
        for (path, secret, status, code) in [
            ("/v1/models/none", SECRET, 404, "model_not_found"),
            ("/v1/models/m", "narrow-secret", 403, "model_not_allowed"),
            ("/v1/models/family-b", "narrow-secret", 403, "model_not_allowed"),
            ("/v1/models", "wrong", 401, "invalid_api_key"),
        ] {
            let answer = client.ask(&get(path).key(secret)).await;
            assert_eq!((answer.status, &*answer.code()), (status, code), "{path}");
        }
    }
    assert_eq!(engine.requests(), 0);
}

#[tokio::test]
async fn health_is_told_without_a_key_and_without_detail() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).health("interval = \"20ms\"").start().await;
    for (healthy, status, body) in [(true, 200, "{\"status\":\"ok\"}"), (false, 503, "{\"status\":\"unavailable\"}")] {
        engine.be_healthy(healthy);
        eventually("its probes count", || (forebay.server(0).is_up() == healthy).then_some(())).await;
        for version in VERSIONS {
            let mut client = Client::connect(&forebay, version).await;
            let answer = client.ask(&get("/health")).await;
            assert_eq!((answer.status, answer.text()), (status, body), "{version:?}");
            let answer = client.ask(&request("HEAD", "/health?x")).await;
            assert_eq!((answer.status, answer.text()), (status, ""), "{version:?}");
            assert_eq!(client.ask(&post("/health")).await.status, 404);
        }
    }
    assert_eq!(engine.requests(), 0);
}

#[tokio::test]
async fn a_daemon_that_stops_says_so_on_each_connection() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).start().await;
    for request in [prompt(), get("/nowhere"), get("/v1/models").key(SECRET)] {
        let mut client = Client::connect(&forebay, Version::H1).await;
        forebay.current.enter(Stage::Closing);
        let answer = client.ask(&request).await;
        assert!([200, 404].contains(&answer.status));
        assert_eq!(answer.header("connection"), Some("close"), "{request:?}");
        client.is_closed().await;
    }
    let health = Client::connect(&forebay, Version::H1).await.ask(&get("/health")).await;
    assert_eq!(health.status, 503);
}

#[tokio::test]
async fn requests_written_in_one_go_are_each_answered() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).start().await;
    let mut client = Http1::connect(forebay.address).await;
    let one: &Request = &prompt();
    client.write(&[one.wire(), get("/v1/models").key(SECRET).wire()].concat()).await;
    assert_eq!(client.answer().await.whole().await.text(), "{\"ok\":true}");
    // Pingora 0.9.1 does not pipeline: the second is answered, or the connection closed, but never half of either.
    client.is_answered_or_closed(200).await;
}

#[tokio::test]
async fn what_a_client_sends_too_early_does_not_cost_it_its_answer() {
    for early in [&b"\r\n"[..], &get("/v1/models").key(SECRET).wire()] {
        let gate = Gate::new();
        let engine = Engine::always(Reply::events().wait(&gate).chunk("data: [DONE]\n\n").last()).await;
        let forebay = in_front_of(&[&engine]).start().await;
        let mut client = Http1::connect(forebay.address).await;
        client.write(&prompt().wire()).await;
        engine.asked(0).await;
        client.write(early).await;
        gate.open();
        let answer = client.answer().await.whole().await;
        assert_eq!((answer.status, answer.text(), answer.complete), (200, "data: [DONE]\n\n", true));
        // As early as it came, it was dropped with the connection, or it was not.
        client.write(&get("/v1/models").key(SECRET).wire()).await;
        client.is_answered_or_closed(200).await;
        assert_eq!(forebay.record().await["end"], "complete");
    }
}

#[tokio::test]
async fn the_list_of_models_is_read_from_memory_however_its_path_is_spelled() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        for target in ["/v1/model%73", "//v1/models", "/v1//models/"] {
            let answer = client.ask(&get(target).key(SECRET).body("{\"model\":\"m\"}")).await;
            assert_eq!((answer.status, &answer.json()["object"]), (200, &"list".into()), "{target}");
        }
    }
    assert_eq!(engine.requests(), 0);
}

#[tokio::test]
async fn a_body_that_streams_is_held_to_the_limits_too() {
    for version in VERSIONS {
        let engine = Engine::fine().await;
        let limits = "max_body = \"64KiB\"\nbody_timeout = \"200ms\"";
        let forebay = in_front_of(&[&engine]).server(limits).and(&pool("q", &engine, "")).and(ROUTES).start().await;
        let large = post("/raw/x").body("x".repeat(300_000));
        for request in [large.clone(), large.pieces(10_000)] {
            let answer = Client::connect(&forebay, version).await.ask(&request).await;
            assert_eq!((answer.status, &*answer.code()), (413, "request_too_large"), "{version:?}");
        }
        let mut client = Client::connect(&forebay, version).await;
        let mut pending = client.begin(&post("/raw/x").pieces(1)).await;
        assert!(pending.pour("half".into(), false).await);
        let answer = pending.answer().await.whole().await;
        assert_eq!((answer.status, &*answer.code()), (408, "request_timeout"), "{version:?}");
        assert_eq!((forebay.server(0).errors(), engine.asked_whole()), (0, 0));
        forebay.idle().await;
    }
}
