//! The built-in stand-in engine: a small server for demos, tests, benchmarks and rehearsals of failure.
//!
//! It speaks OpenAI's completions, responses and embeddings and Anthropic's messages, and counts under vLLM's names. It
//! runs no model: an answer echoes the question, word by word at a set pace, so the same question always gets the
//! same answer. Connections go through Pingora's own HTTP loop, HTTP/1.1 and cleartext HTTP/2 on one port. That loop
//! looks for the HTTP/2 preface by reading 24 bytes, so a shorter first request would wait; no HTTP client sends one.
//!
//! A new endpoint is a file beside the others and a line in [`endpoint`].

mod answer;
mod call;
mod completions;
mod connection;
mod embeddings;
mod failure;
mod listener;
mod messages;
mod metrics;
mod models;
mod pace;
mod reply;
mod responses;
mod splitmix;

pub use failure::Failure;
pub use listener::Listener;

use call::Call;
use connection::Connection;
use metrics::Metrics;
use pingora::apps::HttpServerOptions;
use reply::{Refusal, Reply};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::time::sleep;

/// How the engine presents itself, how fast it is, and how it fails.
#[derive(Clone, Debug)]
pub struct Options {
    /// The models it serves; none given: any name, and `/v1/models` lists "demo".
    pub models: Vec<String>,
    /// Tokens a second of each answer; 0 is as fast as possible.
    pub tokens_per_second: f64,
    /// Time from the whole request to its first token.
    pub first_token: Duration,
    /// By how many percent, 0 to 100, each of these delays may be off, up or down.
    pub jitter: f64,
    /// Shows which engine answered, in `system_fingerprint` and in the header `x-engine`.
    pub name: String,
    /// How it fails, if it does.
    pub failure: Option<Failure>,
    /// How many percent of the prompts fail.
    pub fail_share: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            tokens_per_second: 0.0,
            first_token: Duration::ZERO,
            jitter: 0.0,
            name: "engine".to_owned(),
            failure: None,
            fail_share: 100.0,
        }
    }
}

impl Options {
    /// How the prompt with this number fails, if it does.
    fn failure(&self, serial: u64) -> Option<Failure> {
        self.failure.filter(|_| failure::strikes(self.fail_share, serial))
    }
}

/// Serves until `shutdown` turns true or its sender is gone; then closes the listener and cuts every connection, as an
/// engine does that is killed.
pub async fn serve(listener: impl Into<Listener>, options: Options, mut shutdown: watch::Receiver<bool>) {
    let listener = listener.into();
    let resettable = options.failure == Some(Failure::Reset);
    let engine = Arc::new(Engine::new(options));
    let connections = shutdown.clone();
    loop {
        let accepted = tokio::select! {
            _ = shutdown.wait_for(|over| *over) => return,
            accepted = listener.accept(resettable) => accepted,
        };
        match accepted {
            Ok((stream, socket)) => {
                tokio::spawn(Connection::serve(engine.clone(), stream, socket, connections.clone()));
            }
            Err(error) => {
                log::warn!("engine: accept: {error}");
                // Out of descriptors or memory: the same error would return at once.
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// What all connections share.
struct Engine {
    options: Options,
    http: HttpServerOptions,
    metrics: Metrics,
    prompts: AtomicU64,
}

/// What answers a prompt.
type Endpoint = fn(&Call<'_>) -> Result<Reply, Refusal>;

/// The endpoint for a prompt, if this is one.
fn endpoint(method: &str, path: &str) -> Option<Endpoint> {
    match (method, path) {
        ("POST", "/v1/chat/completions") => Some(completions::chat),
        ("POST", "/v1/completions") => Some(completions::text),
        ("POST", "/v1/embeddings") => Some(embeddings::embed),
        ("POST", "/v1/messages") => Some(messages::messages),
        ("POST", "/v1/responses") => Some(responses::respond),
        _ => None,
    }
}

impl Engine {
    fn new(options: Options) -> Self {
        let mut http = HttpServerOptions::default();
        http.h2c = true;
        let metrics = Metrics::new(&options).expect("the names of the metrics differ");
        Self { options, http, metrics, prompts: AtomicU64::new(0) }
    }

    /// The number of the next prompt.
    fn serial(&self) -> u64 {
        self.prompts.fetch_add(1, Ordering::Relaxed)
    }

    /// The answer to a prompt.
    fn answer(&self, endpoint: Endpoint, body: &[u8], serial: u64) -> Result<Reply, Refusal> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = format!("{:016x}{serial:08x}", now.as_micros());
        endpoint(&Call::parse(&self.options, body, id, now.as_secs())?)
    }

    /// What is no prompt.
    fn look_up(&self, method: &str, path: &str) -> Result<Reply, Refusal> {
        if method != "GET" {
            return Err(Refusal::unknown_url(method, path));
        }
        let model = path.strip_prefix("/v1/models/");
        let well = self.options.failure != Some(Failure::Unhealthy);
        match (path, model) {
            ("/metrics", _) => Ok(Reply::metrics(self.metrics.text())),
            ("/health" | "/v1/models", _) if !well => Err(Refusal::rehearsed(503)),
            ("/health", _) => Ok(Reply::empty()),
            ("/v1/models", _) => Ok(models::list(&self.options)),
            (_, Some(id)) => models::one(&self.options, id),
            _ => Err(Refusal::unknown_url(method, path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use serde_json::{Value, json};
    use std::net::SocketAddr;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// A running engine, which ends with this value.
    struct Running {
        address: SocketAddr,
        _shutdown: watch::Sender<bool>,
    }

    async fn engine(options: Options) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (sender, shutdown) = watch::channel(false);
        tokio::spawn(serve(listener, options, shutdown));
        Running { address, _shutdown: sender }
    }

    impl Running {
        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.expect("a connection")
        }

        /// Header and body of the answer to one request on its own connection.
        async fn ask(&self, method: &str, path: &str, body: &str) -> (String, String) {
            let mut stream = self.connect().await;
            let request = request(method, path, "connection: close\r\n", body);
            stream.write_all(request.as_bytes()).await.expect("sent");
            rest(&mut stream).await
        }

        /// Waits until the metrics have a line.
        async fn comes_to(&self, line: &str) {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                let (_, metrics) = self.ask("GET", "/metrics", "").await;
                if metrics.lines().any(|found| found == line) {
                    return;
                }
                assert!(Instant::now() < deadline, "no {line} in {metrics}");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }

    fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        format!("{method} {path} HTTP/1.1\r\nhost: engine\r\n{headers}content-length: {length}\r\n\r\n{body}")
    }

    async fn rest(stream: &mut TcpStream) -> (String, String) {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("an answer");
        let (head, body) = text.split_once("\r\n\r\n").expect("a header");
        (head.to_lowercase(), body.to_owned())
    }

    /// Reads one answer that has a length, and leaves the connection open.
    async fn one(stream: &mut TcpStream) -> (String, String) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a header"));
        }
        let head = String::from_utf8(head).expect("text").to_lowercase();
        let length = head.split("content-length: ").nth(1).expect("a length");
        let length = length.split("\r\n").next().and_then(|text| text.parse().ok());
        let mut body = vec![0; length.expect("a number")];
        stream.read_exact(&mut body).await.expect("a body");
        (head, String::from_utf8(body).expect("text"))
    }

    fn hello(more: Value) -> String {
        let mut body = json!({"model": "demo", "messages": [{"role": "user", "content": "hello"}]});
        for (name, value) in more.as_object().expect("an object") {
            body[name] = value.clone();
        }
        body.to_string()
    }

    fn parsed(body: &str) -> Value {
        serde_json::from_str(body).expect("JSON")
    }

    #[tokio::test]
    async fn a_question_is_answered_and_counted() {
        let name = "one".to_owned();
        let engine = engine(Options { name, ..Options::default() }).await;
        let body = hello(json!({"max_tokens": 3}));
        let (head, body) = engine.ask("POST", "/v1/chat/completions", &body).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(head.contains("\r\nx-engine: one\r\n"), "{head}");
        assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{head}");
        let answer = parsed(&body);
        let message = &answer["choices"][0]["message"];
        assert_eq!(message["content"], "You said: hello");
        assert_eq!(answer["usage"]["total_tokens"], 4);
        assert_eq!(answer["system_fingerprint"], "one");
    }

    #[tokio::test]
    async fn a_stream_comes_as_one_chunk_an_event_up_to_done() {
        let engine = engine(Options::default()).await;
        let body = hello(json!({"max_tokens": 2, "stream": true, "stream_options": {"include_usage": true}}));
        let (head, body) = engine.ask("POST", "/v1/chat/completions", &body).await;
        assert!(head.contains("\r\ncontent-type: text/event-stream"), "{head}");
        // Size, data line, empty line, end of chunk: four lines, of which the second starts with "data: ".
        let chunks: Vec<&str> = body.split("\n\n\r\n").collect();
        let data: Vec<&str> =
            chunks.iter().filter_map(|chunk| chunk.split_once("\r\ndata: ")).map(|(_, data)| data).collect();
        assert_eq!(data.len(), 6, "{body}");
        assert_eq!(parsed(data[0])["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(parsed(data[1])["choices"][0]["delta"]["content"], "You");
        assert_eq!(parsed(data[2])["choices"][0]["delta"]["content"], " said:");
        assert_eq!(parsed(data[3])["choices"][0]["finish_reason"], "length");
        assert_eq!(parsed(data[4])["usage"]["completion_tokens"], 2);
        assert_eq!(data[5], "[DONE]");
        assert_eq!(chunks.last(), Some(&"0\r\n\r\n"));
    }

    #[tokio::test]
    async fn embeddings_are_the_same_floats_in_both_encodings() {
        let engine = engine(Options::default()).await;
        let mut both = Vec::new();
        for format in ["float", "base64"] {
            let body = json!({"model": "demo", "input": ["", "hi"], "dimensions": 3, "encoding_format": format});
            let (_, body) = engine.ask("POST", "/v1/embeddings", &body.to_string()).await;
            both.push(parsed(&body));
        }
        assert_eq!(both[0]["data"][0]["embedding"], json!([0.0, 0.0, 0.0]));
        assert_eq!(both[1]["data"][0]["embedding"], "A".repeat(16));
        assert_eq!(both[0]["data"][1]["embedding"].as_array().map(Vec::len), Some(3));
        assert_eq!(both[1]["usage"], json!({"prompt_tokens": 1, "total_tokens": 1}));
    }

    #[tokio::test]
    async fn what_is_not_served_is_refused_in_the_envelope() {
        let models = vec!["demo".to_owned()];
        let engine = engine(Options { models, ..Options::default() }).await;
        let big = hello(json!({"model": "big"}));
        for (method, path, body, status, code) in [
            ("GET", "/v1/nothing", "", 404, json!("unknown_url")),
            ("PUT", "/v1/models", "", 404, json!("unknown_url")),
            ("GET", "/v1/models/big", "", 404, json!("model_not_found")),
            ("POST", "/v1/chat/completions", &big, 404, json!("model_not_found")),
            ("POST", "/v1/chat/completions", "{", 400, Value::Null),
        ] {
            let (head, body) = engine.ask(method, path, body).await;
            assert!(head.starts_with(&format!("http/1.1 {status}")), "{path}: {head}");
            let error = &parsed(&body)["error"];
            let members: Vec<&String> = error.as_object().expect("an object").keys().collect();
            assert_eq!(members, ["message", "type", "param", "code"]);
            assert_eq!(error["code"], code, "{path}");
        }
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_refused_before_it_is_sent() {
        let engine = engine(Options::default()).await;
        let mut stream = engine.connect().await;
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: engine\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            connection::MAX_BODY + 1
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        let (head, body) = one(&mut stream).await;
        assert!(head.starts_with("http/1.1 413"), "{head}");
        assert_eq!(parsed(&body)["error"]["code"], "request_too_large");
    }

    #[tokio::test]
    async fn one_connection_carries_many_requests() {
        let engine = engine(Options::default()).await;
        let mut stream = engine.connect().await;
        for (method, path, headers, body, start) in [
            ("GET", "/health", "", String::new(), ""),
            ("POST", "/v1/chat/completions", "", hello(json!({})), "{\"id\":\"chatcmpl-"),
            ("POST", "/v1/chat/completions", "", "nonsense".into(), "{\"error\""),
            ("GET", "/v1/models", "", String::new(), "{\"object\":\"list\""),
        ] {
            let request = request(method, path, headers, &body);
            stream.write_all(request.as_bytes()).await.expect("sent");
            let (head, body) = one(&mut stream).await;
            assert!(head.contains("\r\nconnection: keep-alive\r\n"), "{path}: {head}");
            assert!(body.starts_with(start), "{path}: {body}");
        }
    }

    #[tokio::test]
    async fn a_client_that_waits_for_leave_to_send_its_body_gets_it() {
        let engine = engine(Options::default()).await;
        let mut stream = engine.connect().await;
        let headers = "connection: close\r\nexpect: 100-continue\r\n";
        let request = request("POST", "/v1/chat/completions", headers, &hello(json!({})));
        let (head, body) = request.split_once("\r\n\r\n").expect("a header");
        stream.write_all(format!("{head}\r\n\r\n").as_bytes()).await.expect("sent");
        let mut leave = [0; 25];
        stream.read_exact(&mut leave).await.expect("leave");
        assert_eq!(&leave, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(body.as_bytes()).await.expect("sent");
        let (head, _) = rest(&mut stream).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
    }

    #[tokio::test]
    async fn a_client_that_goes_ends_its_stream() {
        let first_token = Duration::from_secs(3600);
        let engine = engine(Options { first_token, ..Options::default() }).await;
        let mut stream = engine.connect().await;
        let body = hello(json!({"stream": true}));
        let request = request("POST", "/v1/chat/completions", "", &body);
        stream.write_all(request.as_bytes()).await.expect("sent");
        stream.shutdown().await.expect("gone");
        let (head, body) = rest(&mut stream).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert_eq!(body, "", "the end comes an hour before the first token");
    }

    #[tokio::test]
    async fn a_shutdown_closes_the_port_and_cuts_every_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (sender, shutdown) = watch::channel(false);
        let serving = tokio::spawn(serve(listener, Options::default(), shutdown));
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let request = request("GET", "/health", "", "");
        stream.write_all(request.as_bytes()).await.expect("sent");
        one(&mut stream).await;
        sender.send(true).expect("a listener");
        serving.await.expect("an end");
        assert_eq!(stream.read(&mut [0]).await.expect("an end"), 0);
        TcpStream::connect(address).await.expect_err("a closed port");
    }

    /// How the reading of an answer ended, and what came before that.
    async fn broken(stream: &mut (impl AsyncReadExt + Unpin)) -> (std::io::Result<usize>, String) {
        let mut bytes = Vec::new();
        let end = stream.read_to_end(&mut bytes).await;
        (end, String::from_utf8(bytes).expect("text"))
    }

    fn failing(failure: Failure) -> Options {
        Options { failure: Some(failure), ..Options::default() }
    }

    fn streamed() -> String {
        hello(json!({"stream": true}))
    }

    #[tokio::test]
    async fn a_message_streams_in_anthropics_form_and_is_refused_in_its_envelope() {
        let models = vec!["demo".to_owned()];
        let engine = engine(Options { models, ..Options::default() }).await;
        let (head, body) = engine.ask("POST", "/v1/messages", &hello(json!({"max_tokens": 2, "stream": true}))).await;
        assert!(head.contains("\r\ncontent-type: text/event-stream"), "{head}");
        assert!(body.contains("\r\nevent: message_start\ndata: {\"type\":\"message_start\","), "{body}");
        assert!(body.ends_with("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n\r\n0\r\n\r\n"), "{body}");
        for (path, more, status, kind) in [
            ("/v1/messages", json!({}), 400, "invalid_request_error"),
            ("/v1/messages", json!({"model": "big"}), 404, "not_found_error"),
            ("/v1/messages/batches", json!({}), 404, "not_found_error"),
        ] {
            let (head, body) = engine.ask("POST", path, &hello(more)).await;
            assert!(head.starts_with(&format!("http/1.1 {status}")), "{path}: {head}");
            let body = parsed(&body);
            assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!(kind)));
            assert!(body["error"]["message"].is_string());
        }
    }

    #[tokio::test]
    async fn a_response_streams_in_named_events() {
        let engine = engine(Options::default()).await;
        let body = json!({"model": "demo", "input": "hello", "stream": true});
        let (head, body) = engine.ask("POST", "/v1/responses", &body.to_string()).await;
        assert!(head.contains("\r\ncontent-type: text/event-stream"), "{head}");
        let named = |name: &str| body.matches(&format!("\nevent: {name}\ndata: {{\"type\":\"{name}\",")).count();
        assert_eq!(named("response.created"), 1, "{body}");
        assert_eq!(named("response.output_text.delta"), 24);
        assert_eq!(named("response.completed"), 1);
    }

    #[tokio::test]
    async fn metrics_count_what_is_asked_and_what_waits() {
        let models = vec!["demo".to_owned()];
        let fast = engine(Options { models: models.clone(), ..Options::default() }).await;
        fast.ask("POST", "/v1/chat/completions", &hello(json!({"max_tokens": 3}))).await;
        fast.ask("POST", "/v1/chat/completions", &hello(json!({"model": "big"}))).await;
        fast.ask("POST", "/v1/embeddings", &json!({"model": "demo", "input": "a b"}).to_string()).await;
        let (head, body) = fast.ask("GET", "/metrics", "").await;
        assert!(head.contains("\r\ncontent-type: text/plain; version=0.0.4"), "{head}");
        for line in [
            "vllm:prompt_tokens_total{model_name=\"demo\"} 3",
            "vllm:generation_tokens_total{model_name=\"demo\"} 3",
            "vllm:request_success_total{finished_reason=\"length\",model_name=\"demo\"} 1",
            "vllm:request_success_total{finished_reason=\"stop\",model_name=\"demo\"} 1",
            "vllm:time_to_first_token_seconds_count{model_name=\"demo\"} 1",
            "vllm:e2e_request_latency_seconds_count{model_name=\"demo\"} 2",
        ] {
            assert!(body.lines().any(|found| found == line), "no {line} in {body}");
        }
        let slow = engine(Options { models, tokens_per_second: 0.001, ..Options::default() }).await;
        let mut stream = slow.connect().await;
        stream.write_all(request("POST", "/v1/chat/completions", "", &streamed()).as_bytes()).await.expect("sent");
        slow.comes_to("vllm:num_requests_running{model_name=\"demo\"} 1").await;
        drop(stream);
        slow.comes_to("vllm:num_requests_running{model_name=\"demo\"} 0").await;
        slow.comes_to("vllm:request_success_total{finished_reason=\"abort\",model_name=\"demo\"} 1").await;
    }

    #[tokio::test]
    async fn a_status_to_fail_with_comes_in_the_form_of_the_endpoint() {
        for (status, path, kind, again) in [
            (503, "/v1/chat/completions", "overloaded_error", true),
            (429, "/v1/responses", "rate_limit_error", true),
            (500, "/v1/embeddings", "server_error", false),
            (401, "/v1/completions", "invalid_request_error", false),
            (503, "/v1/messages", "overloaded_error", true),
            (529, "/v1/messages", "overloaded_error", false),
            (500, "/v1/messages", "api_error", false),
        ] {
            let engine = engine(failing(Failure::Status(status))).await;
            let (head, body) = engine.ask("POST", path, &hello(json!({}))).await;
            assert!(head.starts_with(&format!("http/1.1 {status}")), "{path}: {head}");
            assert_eq!(head.contains("\r\nretry-after: 1\r\n"), again, "{head}");
            assert_eq!(parsed(&body)["error"]["type"], kind, "{path}");
            assert_eq!(body.starts_with("{\"type\":\"error\","), path == "/v1/messages", "{body}");
            let (head, _) = engine.ask("GET", "/health", "").await;
            assert!(head.starts_with("http/1.1 200"), "{head}");
        }
    }

    #[tokio::test]
    async fn of_a_share_the_prompts_between_are_answered() {
        let engine = engine(Options { fail_share: 50.0, ..failing(Failure::Status(500)) }).await;
        for status in [200, 500, 200, 500] {
            let (head, _) = engine.ask("POST", "/v1/chat/completions", &hello(json!({}))).await;
            assert!(head.starts_with(&format!("http/1.1 {status}")), "{head}");
            engine.ask("GET", "/v1/models", "").await;
        }
    }

    #[tokio::test]
    async fn an_unhealthy_engine_says_so_and_answers_prompts() {
        let engine = engine(failing(Failure::Unhealthy)).await;
        for (method, path, status) in [
            ("GET", "/health", 503),
            ("GET", "/v1/models", 503),
            ("POST", "/v1/chat/completions", 200),
            ("GET", "/metrics", 200),
        ] {
            let (head, _) = engine.ask(method, path, &hello(json!({}))).await;
            assert!(head.starts_with(&format!("http/1.1 {status}")), "{path}: {head}");
        }
    }

    #[tokio::test]
    async fn a_reset_takes_the_connection_and_leaves_the_probes() {
        let engine = engine(failing(Failure::Reset)).await;
        let mut stream = engine.connect().await;
        stream.write_all(request("GET", "/health", "", "").as_bytes()).await.expect("sent");
        one(&mut stream).await;
        stream.write_all(request("POST", "/v1/chat/completions", "", &streamed()).as_bytes()).await.expect("sent");
        let (end, text) = broken(&mut stream).await;
        assert_eq!((end.expect_err("a reset").kind(), text.as_str()), (std::io::ErrorKind::ConnectionReset, ""));
    }

    #[tokio::test]
    async fn a_stalled_prompt_waits_until_its_client_goes() {
        let engine = engine(failing(Failure::Stall)).await;
        let mut stream = engine.connect().await;
        stream.write_all(request("POST", "/v1/chat/completions", "", &streamed()).as_bytes()).await.expect("sent");
        engine.comes_to("vllm:num_requests_waiting{model_name=\"demo\"} 1").await;
        stream.shutdown().await.expect("gone");
        let (end, text) = broken(&mut stream).await;
        assert_eq!((end.expect("an end"), text.as_str()), (0, ""));
        engine.comes_to("vllm:num_requests_waiting{model_name=\"demo\"} 0").await;
    }

    #[tokio::test]
    async fn an_answer_that_stalls_or_is_truncated_has_its_first_events_or_half_and_no_end() {
        for (failure, stalls) in [(Failure::StallAfter(3), true), (Failure::TruncateAfter(3), false)] {
            let engine = engine(failing(failure)).await;
            let mut stream = engine.connect().await;
            stream.write_all(request("POST", "/v1/chat/completions", "", &streamed()).as_bytes()).await.expect("sent");
            let mut text = String::new();
            while text.matches("\ndata: ").count() < 3 || !text.ends_with("\n\n\r\n") {
                text.push(stream.read_u8().await.expect("a byte").into());
            }
            if stalls {
                stream.shutdown().await.expect("gone");
            }
            let (end, more) = broken(&mut stream).await;
            assert_eq!((end.expect("an end"), more.as_str()), (0, ""), "{failure:?}");

            let mut stream = engine.connect().await;
            let request = request("POST", "/v1/chat/completions", "", &hello(json!({})));
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a byte").into());
            }
            let length = head.to_lowercase().split("content-length: ").nth(1).map(|rest| rest.to_owned());
            let length: usize = length.and_then(|rest| rest.split("\r\n").next()?.parse().ok()).expect("a length");
            let mut half = vec![0; length / 2];
            stream.read_exact(&mut half).await.expect("half an answer");
            assert!(half.starts_with(b"{\"id\":"));
            if stalls {
                stream.shutdown().await.expect("gone");
            }
            let (end, more) = broken(&mut stream).await;
            assert_eq!((end.expect("an end"), more.as_str()), (0, ""), "{failure:?}");
        }
    }

    #[tokio::test]
    async fn a_stream_with_fewer_events_than_its_failure_allows_is_whole() {
        let engine = engine(failing(Failure::TruncateAfter(1000))).await;
        let (_, body) = engine.ask("POST", "/v1/chat/completions", &streamed()).await;
        assert!(body.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"), "{body}");
    }

    /// What comes over HTTP/2: the status, the body, and why it was reset, if it was.
    async fn ask_h2(engine: &Running, path: &str, body: String) -> (Option<u16>, String, Option<h2::Reason>) {
        let (client, connection) = h2::client::handshake(engine.connect().await).await.expect("HTTP/2");
        tokio::spawn(connection);
        let mut client = client.ready().await.expect("a stream");
        let method = if body.is_empty() { "GET" } else { "POST" };
        let request = http::Request::builder().method(method).uri(format!("http://engine{path}")).body(());
        let (answer, mut sender) = client.send_request(request.expect("a request"), false).expect("sent");
        sender.send_data(body.into(), true).expect("sent");
        let (head, mut body) = match answer.await {
            Ok(answer) => answer.into_parts(),
            Err(error) => return (None, String::new(), error.reason()),
        };
        let mut text = String::new();
        while let Some(piece) = body.data().await {
            match piece {
                Ok(piece) => text.push_str(std::str::from_utf8(&piece).expect("text")),
                Err(error) => return (Some(head.status.as_u16()), text, error.reason()),
            }
            body.flow_control().release_capacity(0).expect("room");
        }
        (Some(head.status.as_u16()), text, None)
    }

    #[tokio::test]
    async fn the_endpoints_and_the_failures_are_the_same_over_http2() {
        let well = engine(Options::default()).await;
        for (path, body, end) in [
            ("/health", String::new(), ""),
            ("/metrics", String::new(), "\n"),
            ("/v1/chat/completions", streamed(), "data: [DONE]\n\n"),
            ("/v1/messages", hello(json!({"max_tokens": 1, "stream": true})), "{\"type\":\"message_stop\"}\n\n"),
            ("/v1/responses", json!({"model": "demo", "input": "a", "stream": true}).to_string(), "}\n\n"),
        ] {
            let (status, text, reset) = ask_h2(&well, path, body).await;
            assert_eq!((status, reset), (Some(200), None), "{path}");
            assert!(text.ends_with(end), "{path}: {text}");
        }
        let gone = Some(h2::Reason::INTERNAL_ERROR);
        for (failure, body, status, events, reset) in [
            (Failure::Status(503), streamed(), Some(503), 0, None),
            (Failure::Reset, streamed(), None, 0, gone),
            (Failure::TruncateAfter(3), streamed(), Some(200), 3, gone),
            (Failure::TruncateAfter(3), hello(json!({})), Some(200), 0, gone),
        ] {
            let engine = engine(failing(failure)).await;
            let (found, text, why) = ask_h2(&engine, "/v1/chat/completions", body).await;
            assert_eq!((found, why), (status, reset), "{failure:?}");
            assert_eq!(text.matches("data: ").count(), events, "{failure:?}: {text}");
            assert!(!text.ends_with("}}") || failure == Failure::Status(503), "half of it: {text}");
            let (status, ..) = ask_h2(&engine, "/health", String::new()).await;
            assert_eq!(status, Some(200));
        }
    }

    #[tokio::test]
    async fn a_prompt_that_stalls_over_http2_holds_up_no_other() {
        let engine = engine(failing(Failure::StallAfter(2))).await;
        let (client, connection) = h2::client::handshake(engine.connect().await).await.expect("HTTP/2");
        tokio::spawn(connection);
        let mut client = client.ready().await.expect("a stream");
        let post = http::Request::post("http://engine/v1/chat/completions").body(()).expect("a request");
        let (answer, mut sender) = client.send_request(post, false).expect("sent");
        sender.send_data(streamed().into(), true).expect("sent");
        let mut body = answer.await.expect("an answer").into_body();
        let mut text = Vec::new();
        while text.windows(2).filter(|two| two == b"\n\n").count() < 2 {
            text.extend_from_slice(&body.data().await.expect("no end").expect("an event"));
        }
        let get = http::Request::get("http://engine/health").body(()).expect("a request");
        let (answer, _) = client.send_request(get, true).expect("sent");
        assert_eq!(answer.await.expect("an answer").status(), 200);
        assert!(body.data().now_or_never().is_none(), "nothing more, and no end");
        sender.send_reset(h2::Reason::CANCEL);
        engine.comes_to("vllm:request_success_total{finished_reason=\"abort\",model_name=\"demo\"} 1").await;
    }

    #[tokio::test]
    async fn an_engine_listens_on_a_unix_socket_as_well() {
        let directory = std::env::temp_dir().join(format!("forebay-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&directory).expect("a directory");
        let path = directory.join("engine.sock");
        let (_sender, shutdown) = watch::channel(false);
        for failure in [None, Some(Failure::Reset)] {
            let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
            let serving = tokio::spawn(serve(listener, Options { failure, ..Options::default() }, shutdown.clone()));
            let mut stream = tokio::net::UnixStream::connect(&path).await.expect("a connection");
            let request = request("POST", "/v1/chat/completions", "connection: close\r\n", &hello(json!({})));
            stream.write_all(request.as_bytes()).await.expect("sent");
            let (_, text) = broken(&mut stream).await;
            assert_eq!(text.starts_with("HTTP/1.1 200"), failure.is_none(), "{text}");
            assert_eq!(text.is_empty(), failure.is_some(), "{text}");
            serving.abort();
            std::fs::remove_file(&path).expect("a file");
        }
        std::fs::remove_dir(&directory).expect("an empty directory");
    }
}
