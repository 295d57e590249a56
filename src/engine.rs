//! The built-in stand-in engine: a small OpenAI-compatible server for demos, tests and benchmarks.
//!
//! It runs no model: an answer echoes the question, word by word at a set pace, so the same question always gets the
//! same answer. Connections go through Pingora's own HTTP loop, HTTP/1.1 and cleartext HTTP/2 on one port. That loop
//! looks for the HTTP/2 preface by reading 24 bytes, so a shorter first request would wait; no HTTP client sends one.
//!
//! A new endpoint is a file beside the others and a line in [`Engine::answer`].

mod answer;
mod call;
mod completions;
mod embeddings;
mod models;
mod reply;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use call::Call;
use http::{Version, header};
use pingora::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream;
use pingora::server::ShutdownWatch;
use pingora::{Error, ErrorType, Result};
use reply::{Body, Refusal, Reply};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The longest request body that is read.
const MAX_BODY: usize = 64 << 20;

/// How long the rest of a refused body is read and dropped: closing on it at once would reset the
/// connection before the client has read why.
const LINGER: Duration = Duration::from_secs(5);

/// The longest wait for a token; a longer one could not be added to the present time.
const FOREVER: Duration = Duration::from_secs(1 << 32);

/// How the engine presents itself, and how fast it is.
#[derive(Clone, Debug)]
pub struct Options {
    /// The models it serves; none given: any name, and `/v1/models` lists "demo".
    pub models: Vec<String>,
    /// Tokens a second of each answer; 0 is as fast as possible.
    pub tokens_per_second: f64,
    /// Time from the whole request to its first token.
    pub first_token: Duration,
    /// Shows which engine answered, in `system_fingerprint` and in the header `x-engine`.
    pub name: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { models: Vec::new(), tokens_per_second: 0.0, first_token: Duration::ZERO, name: "engine".to_owned() }
    }
}

impl Options {
    /// How long after the request so many tokens are made; none are made at once.
    fn due(&self, tokens: usize) -> Duration {
        let Some(after_first) = tokens.checked_sub(1) else {
            return Duration::ZERO;
        };
        let rest = after_first as f64 / self.tokens_per_second;
        // At no rate the division has no finite result, and there is no pace to keep.
        let rest = Duration::try_from_secs_f64(rest).unwrap_or_default();
        self.first_token.saturating_add(rest).min(FOREVER)
    }
}

/// Serves until `shutdown` turns true or its sender is gone; then closes the listener and cuts every connection, as an
/// engine does that is killed.
pub async fn serve(listener: TcpListener, options: Options, mut shutdown: watch::Receiver<bool>) {
    let engine = Arc::new(Engine::new(options));
    let connections = shutdown.clone();
    loop {
        let accepted = tokio::select! {
            _ = shutdown.wait_for(|over| *over) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(connection(engine.clone(), stream, connections.clone()));
            }
            Err(error) => {
                log::warn!("engine: accept: {error}");
                // Out of descriptors or memory: the same error would return at once.
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(engine: Arc<Engine>, stream: TcpStream, mut shutdown: watch::Receiver<bool>) {
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("engine: TCP_NODELAY: {error}");
    }
    // Pingora's HTTP/2 loop waits for a change on its own receiver: one that has seen nothing yet.
    let unseen = shutdown.clone();
    tokio::select! {
        _ = ServerApp::process_new(&engine, Box::new(Stream::from(stream)), &unseen) => {}
        _ = shutdown.wait_for(|over| *over) => {}
    }
}

/// What all connections share.
struct Engine {
    options: Options,
    http: HttpServerOptions,
    calls: AtomicU32,
}

#[async_trait]
impl HttpServerApp for Engine {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        _shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        match session.read_request().await {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => {
                log::debug!("engine: {error}");
                session.respond_error(400).await.ok()?;
                return None;
            }
        }
        if let Err(error) = self.exchange(&mut session).await {
            log::debug!("engine: {}: {error}", session.request_summary());
            return None;
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let stream = session.finish().await.ok().flatten()?;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.http)
    }
}

impl Engine {
    fn new(options: Options) -> Self {
        let mut http = HttpServerOptions::default();
        http.h2c = true;
        Self { options, http, calls: AtomicU32::new(0) }
    }

    /// One request and its whole answer.
    async fn exchange(&self, session: &mut ServerSession) -> Result<()> {
        let Some(body) = read_body(session).await? else {
            self.play(session, Refusal::too_large(MAX_BODY).into()).await?;
            if timeout(LINGER, session.drain_request_body()).await.is_err() {
                log::debug!("engine: a refused body did not end");
            }
            return Ok(());
        };
        let head = session.req_header();
        let reply = self.answer(head.method.as_str(), head.uri.path(), &body).unwrap_or_else(Reply::from);
        self.play(session, reply).await
    }

    /// The endpoints.
    fn answer(&self, method: &str, path: &str, body: &[u8]) -> Result<Reply, Refusal> {
        match (method, path) {
            ("POST", "/v1/chat/completions") => completions::chat(&self.call(body)?),
            ("POST", "/v1/completions") => completions::text(&self.call(body)?),
            ("POST", "/v1/embeddings") => embeddings::embed(&self.call(body)?),
            ("GET", "/v1/models") => Ok(models::list(&self.options)),
            ("GET", "/health") => Ok(Reply::empty()),
            ("GET", path) if let Some(id) = path.strip_prefix("/v1/models/") => models::one(&self.options, id),
            _ => Err(Refusal::unknown_url(method, path)),
        }
    }

    fn call(&self, body: &[u8]) -> Result<Call<'_>, Refusal> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let serial = self.calls.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:016x}{serial:08x}", now.as_micros());
        Call::parse(&self.options, body, id, now.as_secs())
    }

    /// Writes a reply at its pace.
    async fn play(&self, session: &mut ServerSession, reply: Reply) -> Result<()> {
        let start = Instant::now();
        let mut header = ResponseHeader::build(reply.status, Some(6))?;
        header.insert_header("x-engine", self.options.name.as_str())?;
        if let Some(kind) = reply.content_type {
            header.insert_header(header::CONTENT_TYPE, kind)?;
        }
        match reply.body {
            Body::Whole(piece) => {
                wait(session, start + self.options.due(piece.tokens)).await?;
                header.insert_header(header::CONTENT_LENGTH, piece.bytes.len())?;
                session.write_response_header(Box::new(header)).await?;
                session.write_response_body(piece.bytes, true).await
            }
            Body::Stream(pieces) => {
                header.insert_header(header::CACHE_CONTROL, "no-cache")?;
                // Pingora drops it for HTTP/2; HTTP/1.0 knows no chunks: there the close is the end.
                if session.req_header().version == Version::HTTP_11 {
                    header.insert_header(header::TRANSFER_ENCODING, "chunked")?;
                }
                session.write_response_header(Box::new(header)).await?;
                for piece in pieces {
                    wait(session, start + self.options.due(piece.tokens)).await?;
                    session.write_response_body(piece.bytes, false).await?;
                }
                session.write_response_body(Bytes::new(), true).await
            }
        }
    }
}

/// The whole request body, or nothing if it is longer than [`MAX_BODY`].
async fn read_body(session: &mut ServerSession) -> Result<Option<Bytes>> {
    let announced = session.get_header(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MAX_BODY) {
        return Ok(None);
    }
    if session.get_header_bytes(header::EXPECT).eq_ignore_ascii_case(b"100-continue") {
        session.write_continue_response().await?;
    }
    let mut body = BytesMut::new();
    while let Some(piece) = session.read_request_body().await? {
        if body.len() + piece.len() > MAX_BODY {
            return Ok(None);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Some(body.freeze()))
}

/// Waits until then, or fails as soon as the client has gone.
async fn wait(session: &mut ServerSession, until: Instant) -> Result<()> {
    if until <= Instant::now() {
        return Ok(());
    }
    tokio::select! {
        () = sleep_until(until) => Ok(()),
        heard = session.read_body_or_idle(true) => {
            heard?;
            Error::e_explain(ErrorType::ConnectionClosed, "the client went on before its answer")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

    #[test]
    fn tokens_are_due_at_the_pace_after_the_first() {
        let first_token = Duration::from_millis(100);
        for (rate, tokens, due) in [
            (0.0, 0, 0),
            (0.0, 9, 100),
            (10.0, 0, 0),
            (10.0, 1, 100),
            (10.0, 3, 300),
            (-1.0, 3, 100),
            (1e-18, 2, 1000 << 32),
            (f64::NAN, 3, 100),
        ] {
            let options = Options { tokens_per_second: rate, first_token, ..Options::default() };
            let due = Duration::from_millis(due);
            assert_eq!(options.due(tokens), due, "{rate} {tokens}");
        }
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
            MAX_BODY + 1
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
}
