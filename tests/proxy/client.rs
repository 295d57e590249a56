//! Clients: HTTP/1.1 on a raw socket, so that they can also misbehave, and HTTP/2 with prior knowledge.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;

use crate::harness::{Forebay, SECRET, soon};

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    H1,
    H2,
}

/// Both, for loops.
pub(crate) const VERSIONS: [Version; 2] = [Version::H1, Version::H2];

/// A request to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Bytes,
    /// In pieces of this size and without a length, or at once with its length.
    pieces: Option<usize>,
}

/// One client connection.
pub(crate) enum Client {
    H1(Http1),
    H2(Http2),
}

/// A connection of HTTP/1.1.
pub(crate) struct Http1 {
    stream: Option<TcpStream>,
    ahead: BytesMut,
}

/// A connection of HTTP/2.
pub(crate) struct Http2 {
    sender: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

/// A request that was sent.
pub(crate) enum Pending<'c> {
    H1(&'c mut Http1, bool),
    H2(ResponseFuture, SendStream<Bytes>, AbortHandle),
}

/// An answer whose body is still to be read.
pub(crate) struct Answer<'c> {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// The statuses before it: 1xx.
    pub(crate) informational: Vec<u16>,
    body: Body<'c>,
    text: String,
}

enum Body<'c> {
    H1(&'c mut Http1, Framing),
    H2(RecvStream, SendStream<Bytes>, AbortHandle),
}

/// How an HTTP/1.1 body ends.
#[derive(Debug)]
enum Framing {
    Length(usize),
    Chunked,
    Close,
    Over,
}

/// A whole answer, or all that came of it.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Whether it ended as an answer ends, so that a client takes it for complete.
    pub(crate) complete: bool,
}

/// How a client goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// By a reset of its stream; over HTTP/1.1 that is the connection.
    Stream,
    /// With its whole connection.
    Connection,
}

/// How clients of either protocol can go away, for loops.
pub(crate) const WAYS: [(Version, Leaving); 3] =
    [(Version::H1, Leaving::Connection), (Version::H2, Leaving::Stream), (Version::H2, Leaving::Connection)];

/// A request without a body.
pub(crate) fn request(method: &str, target: &str) -> Request {
    Request { method: method.into(), target: target.into(), headers: vec![], body: Bytes::new(), pieces: None }
}

/// A `GET`.
pub(crate) fn get(target: &str) -> Request {
    request("GET", target)
}

/// A `POST`.
pub(crate) fn post(target: &str) -> Request {
    request("POST", target)
}

/// A chat prompt to model `m` by key `team`.
pub(crate) fn prompt() -> Request {
    post("/v1/chat/completions").key(SECRET).body("{\"model\":\"m\"}")
}

// === impl Request ===

impl Request {
    pub(crate) fn key(self, secret: &str) -> Self {
        self.header("authorization", &format!("Bearer {secret}"))
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn to(mut self, target: &str) -> Self {
        self.target = target.into();
        self
    }

    /// With its body in pieces of this size: in chunks, or over HTTP/2 without a length.
    pub(crate) fn pieces(mut self, size: usize) -> Self {
        self.pieces = Some(size);
        self
    }

    /// The header section in HTTP/1.1's form.
    fn head(&self) -> String {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self.headers.iter().any(|(name, _)| name == "host") {
            head.push_str("host: forebay.test\r\n");
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match self.pieces {
            Some(_) => head.push_str("transfer-encoding: chunked\r\n"),
            None if self.method == "POST" || !self.body.is_empty() => {
                head.push_str(&format!("content-length: {}\r\n", self.body.len()));
            }
            None => {}
        }
        head + "\r\n"
    }

    /// All of it in HTTP/1.1's form.
    pub(crate) fn wire(&self) -> Vec<u8> {
        let mut wire = self.head().into_bytes();
        match self.pieces {
            None => wire.extend_from_slice(&self.body),
            Some(size) => {
                for piece in self.body.chunks(size) {
                    wire.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                    wire.extend_from_slice(piece);
                    wire.extend_from_slice(b"\r\n");
                }
                wire.extend_from_slice(b"0\r\n\r\n");
            }
        }
        wire
    }

    /// The same for HTTP/2.
    fn h2(&self) -> http::Request<()> {
        let uri = format!("http://forebay.test{}", self.target);
        let mut request = http::Request::builder().method(&*self.method).uri(uri).version(http::Version::HTTP_2);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if self.pieces.is_none() && !self.body.is_empty() {
            request = request.header("content-length", self.body.len());
        }
        request.body(()).unwrap()
    }
}

// === impl Client ===

impl Client {
    pub(crate) async fn connect(forebay: &Forebay, version: Version) -> Self {
        Self::connect_to(forebay.address, version).await
    }

    pub(crate) async fn connect_to(address: SocketAddr, version: Version) -> Self {
        match version {
            Version::H1 => Self::H1(Http1::connect(address).await),
            Version::H2 => Self::H2(Http2::connect(address).await),
        }
    }

    /// Sends the whole request, then the answer may be read.
    pub(crate) async fn send(&mut self, request: &Request) -> Pending<'_> {
        match self {
            Self::H1(http1) => {
                http1.write(&request.wire()).await;
                Pending::H1(http1, request.method == "HEAD")
            }
            Self::H2(http2) => http2.start(request).await,
        }
    }

    /// Sends the header, with a body to come.
    pub(crate) async fn begin(&mut self, request: &Request) -> Pending<'_> {
        match self {
            Self::H1(http1) => {
                http1.write(request.head().as_bytes()).await;
                Pending::H1(http1, false)
            }
            Self::H2(http2) => http2.begin(&request.h2(), false).await,
        }
    }

    /// Sends a request and reads its whole answer.
    pub(crate) async fn ask(&mut self, request: &Request) -> Whole {
        self.send(request).await.answer().await.whole().await
    }

    /// The same for a request that may not be taken whole: sends no more when it is answered.
    pub(crate) async fn ask_while_sending(&mut self, request: &Request) -> Whole {
        match self {
            Self::H1(http1) => {
                let stream = http1.stream.as_ref().unwrap();
                let all = request.wire();
                let mut rest = &all[..];
                while !rest.is_empty() {
                    let room = soon("room or an answer", stream.ready(Interest::READABLE | Interest::WRITABLE)).await;
                    if room.unwrap().is_readable() {
                        break;
                    }
                    rest = &rest[stream.try_write(rest).unwrap_or(0)..];
                }
                http1.answer().await.whole().await
            }
            Self::H2(http2) => {
                let Pending::H2(mut response, mut body, driver) = http2.begin(&request.h2(), false).await else {
                    unreachable!("a stream of HTTP/2")
                };
                let pouring = pour(&mut body, request.body.clone(), true);
                let answered = tokio::select! {
                    answered = soon("an HTTP/2 answer", &mut response) => answered,
                    _ = pouring => soon("an HTTP/2 answer", response).await,
                };
                received(answered.unwrap(), vec![], body, driver).whole().await
            }
        }
    }

    /// Sends as much of a request as is taken before forebay takes no more for a while.
    pub(crate) async fn send_what_is_taken(&mut self, request: &Request) -> Pending<'_> {
        const A_WHILE: Duration = Duration::from_millis(300);
        match self {
            Self::H1(http1) => {
                let stream = http1.stream.as_mut().unwrap();
                let _ = timeout(A_WHILE, stream.write_all(&request.wire())).await;
                Pending::H1(http1, false)
            }
            Self::H2(http2) => {
                let mut pending = http2.begin(&request.h2(), false).await;
                if let Pending::H2(_, body, _) = &mut pending {
                    let _ = timeout(A_WHILE, pour(body, request.body.clone(), true)).await;
                }
                pending
            }
        }
    }

    /// Whether forebay has closed the connection, in time.
    pub(crate) async fn is_closed(&mut self) {
        match self {
            Self::H1(http1) => http1.is_closed().await,
            Self::H2(http2) => soon("a closed HTTP/2 connection", &mut http2.driver).await.unwrap(),
        }
    }
}

// === impl Http1 ===

impl Http1 {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: Some(stream), ahead: BytesMut::new() }
    }

    /// Writes; a connection that forebay has closed takes no more, which reading will show.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let _ = soon("room to write", self.stream.as_mut().unwrap().write_all(bytes)).await;
    }

    pub(crate) async fn chunk(&mut self, content: &[u8]) {
        let chunk = [format!("{:x}\r\n", content.len()).as_bytes(), content, b"\r\n"].concat();
        self.write(&chunk).await;
    }

    /// The answer to what was written.
    pub(crate) async fn answer(&mut self) -> Answer<'_> {
        Pending::H1(self, false).answer().await
    }

    /// The status of an answer before the answer.
    pub(crate) async fn interim(&mut self) -> u16 {
        self.head().await.0
    }

    /// The status of the one answer after which forebay has closed the connection.
    pub(crate) async fn refusal(&mut self) -> Option<u16> {
        while self.fill().await {}
        let said = String::from_utf8_lossy(&self.ahead);
        assert_eq!(said.matches("HTTP/1.1 ").count(), usize::from(!said.is_empty()), "{said}");
        said.split(' ').nth(1)?.parse().ok()
    }

    /// Forebay has closed the connection, if it said anything then with this status.
    pub(crate) async fn is_refused_or_closed(&mut self, status: u16) {
        while self.fill().await {}
        let said = String::from_utf8_lossy(&self.ahead);
        assert!(said.is_empty() || said.starts_with(&format!("HTTP/1.1 {status} ")), "{said}");
    }

    /// Forebay has closed the connection, or answers once more, with this status.
    pub(crate) async fn is_answered_or_closed(&mut self, status: u16) {
        if !self.ahead.is_empty() || self.fill().await {
            let answer = self.answer().await;
            assert_eq!(answer.status, status);
            assert!(answer.whole().await.complete);
        }
    }

    pub(crate) async fn is_closed(&mut self) {
        assert_eq!(self.ahead, "", "something came that nobody asked for");
        assert!(!self.fill().await, "something came that nobody asked for: {:?}", self.ahead);
    }

    /// Reads the next header section.
    async fn head(&mut self) -> (u16, HeaderMap) {
        let end = loop {
            if let Some(end) = self.ahead.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            assert!(self.fill().await, "closed before an answer: {:?}", self.ahead);
        };
        let head = String::from_utf8(self.ahead.split_to(end).to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = HeaderMap::new();
        for line in head.lines().skip(1).filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap();
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
        }
        (status, headers)
    }

    /// Reads more. Whether the connection was still open.
    async fn fill(&mut self) -> bool {
        self.ahead.reserve(64 * 1024);
        let read = self.stream.as_mut().unwrap().read_buf(&mut self.ahead);
        soon("more from forebay", read).await.is_ok_and(|length| length > 0)
    }

    /// The next piece of a body; `Err`: the connection ended before the body did.
    async fn piece(&mut self, framing: &mut Framing) -> Result<Option<Bytes>, ()> {
        match framing {
            Framing::Over | Framing::Length(0) => Ok(None),
            Framing::Length(left) => {
                if self.ahead.is_empty() && !self.fill().await {
                    return Err(());
                }
                let piece = self.ahead.split_to(self.ahead.len().min(*left)).freeze();
                *left -= piece.len();
                Ok(Some(piece))
            }
            Framing::Close => {
                if self.ahead.is_empty() && !self.fill().await {
                    return Ok(None);
                }
                Ok(Some(self.ahead.split().freeze()))
            }
            Framing::Chunked => {
                let end = loop {
                    if let Some(end) = self.ahead.windows(2).position(|window| window == b"\r\n") {
                        break end;
                    }
                    if !self.fill().await {
                        return Err(());
                    }
                };
                let size = std::str::from_utf8(&self.ahead[..end]).unwrap();
                let size = usize::from_str_radix(size, 16).unwrap();
                while self.ahead.len() < end + 2 + size + 2 {
                    if !self.fill().await {
                        return Err(());
                    }
                }
                self.ahead.advance(end + 2);
                let piece = self.ahead.split_to(size).freeze();
                self.ahead.advance(2);
                if size == 0 {
                    *framing = Framing::Over;
                }
                Ok((size > 0).then_some(piece))
            }
        }
    }
}

// === impl Http2 ===

impl Http2 {
    async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        // As real clients have it: the connection's window is wider than a stream's, so that one that is not read leaves room.
        let wide = h2::client::Builder::new().initial_connection_window_size(1 << 20).handshake(stream);
        let (sender, connection) = soon("an HTTP/2 handshake", wide).await.unwrap();
        let driver = tokio::spawn(async move {
            let _ = connection.await; // its streams tell what went wrong
        });
        Self { sender, driver }
    }

    /// Sends a whole request, on a stream of its own.
    pub(crate) async fn start<'c>(&mut self, request: &Request) -> Pending<'c> {
        let mut pending = self.begin(&request.h2(), request.body.is_empty()).await;
        let size = request.pieces.unwrap_or(usize::MAX);
        let mut rest = request.body.clone();
        while !rest.is_empty() {
            let piece = rest.split_to(size.min(rest.len()));
            if !pending.pour(piece, rest.is_empty()).await {
                break; // refused: its answer says why
            }
        }
        pending
    }

    async fn begin<'c>(&mut self, request: &http::Request<()>, ends: bool) -> Pending<'c> {
        let ready = soon("room for a stream", self.sender.clone().ready()).await;
        let (response, body) = ready.unwrap().send_request(request.clone(), ends).unwrap();
        Pending::H2(response, body, self.driver.abort_handle())
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

// === impl Pending ===

impl<'c> Pending<'c> {
    /// Sends a piece of a body that was begun. Whether it was taken.
    pub(crate) async fn pour(&mut self, piece: Bytes, ends: bool) -> bool {
        match self {
            Self::H1(http1, _) => {
                http1.chunk(&piece).await;
                if ends {
                    http1.write(b"0\r\n\r\n").await;
                }
                true
            }
            Self::H2(_, body, _) => soon("room in an HTTP/2 stream", pour(body, piece, ends)).await,
        }
    }

    /// Waits for the header of the answer.
    pub(crate) async fn answer(self) -> Answer<'c> {
        self.answered().await.expect("an answer")
    }

    /// The same; `None` if there is none.
    pub(crate) async fn answered(self) -> Option<Answer<'c>> {
        let mut informational = Vec::new();
        match self {
            Self::H1(http1, head) => {
                let (status, headers) = loop {
                    let (status, headers) = http1.head().await;
                    if status >= 200 {
                        break (status, headers);
                    }
                    informational.push(status);
                };
                let framing = if head || status == 204 || status == 304 {
                    Framing::Over
                } else if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
                    assert!(!headers.contains_key("content-length"), "two framings: {headers:?}");
                    Framing::Chunked
                } else if let Some(length) = headers.get("content-length") {
                    Framing::Length(length.to_str().unwrap().parse().unwrap())
                } else {
                    Framing::Close
                };
                Some(Answer { status, headers, informational, body: Body::H1(http1, framing), text: String::new() })
            }
            Self::H2(mut response, body, driver) => {
                let informed = poll_fn(|cx| response.poll_informational(cx));
                if let Some(Ok(response)) = soon("an HTTP/2 answer", informed).await {
                    informational.push(response.status().as_u16());
                }
                let answered = soon("an HTTP/2 answer", response).await.ok()?;
                Some(received(answered, informational, body, driver))
            }
        }
    }

    /// Goes away instead.
    pub(crate) fn leave(self, how: Leaving) {
        match self {
            Self::H1(http1, _) => drop(http1.stream.take()),
            Self::H2(_, mut body, driver) => leave(&mut body, &driver, how),
        }
    }
}

// === impl Answer ===

impl Answer<'_> {
    /// The next piece of the body; `None`: it is over; `Err`: it broke off.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, ()> {
        match &mut self.body {
            Body::H1(http1, framing) => http1.piece(framing).await,
            Body::H2(received, ..) => match soon("HTTP/2 data", received.data()).await {
                None => Ok(None),
                Some(Ok(piece)) => {
                    received.flow_control().release_capacity(piece.len()).unwrap();
                    Ok(Some(piece))
                }
                Some(Err(_)) => Err(()),
            },
        }
    }

    /// The next event of a stream, with the empty line that ends it; `None`: there is none.
    pub(crate) async fn event(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let rest = self.text.split_off(end + 2);
                return Some(std::mem::replace(&mut self.text, rest));
            }
            let piece = self.piece().await.ok()??;
            self.text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }

    /// Sends more of its request while it is being answered.
    pub(crate) async fn pour(&mut self, piece: Bytes, ends: bool) {
        let Body::H2(_, body, _) = &mut self.body else { panic!("HTTP/1.1 clients send first") };
        assert!(soon("room in an HTTP/2 stream", pour(body, piece, ends)).await);
    }

    /// Reads all the rest, and the fields after it.
    pub(crate) async fn with_trailers(mut self) -> (Whole, HeaderMap) {
        let whole = self.rest().await;
        let trailers = match &mut self.body {
            Body::H2(received, ..) => received.trailers().await.ok().flatten(),
            Body::H1(..) => None,
        };
        (whole, trailers.unwrap_or_default())
    }

    /// Reads all the rest.
    pub(crate) async fn whole(mut self) -> Whole {
        self.rest().await
    }

    async fn rest(&mut self) -> Whole {
        let mut all = BytesMut::from(self.text.as_bytes());
        let complete = loop {
            match self.piece().await {
                Ok(Some(piece)) => all.extend_from_slice(&piece),
                Ok(None) => break true,
                Err(()) => break false,
            }
        };
        Whole { status: self.status, headers: self.headers.clone(), body: all.freeze(), complete }
    }

    /// Goes away in the middle of it.
    pub(crate) fn leave(self, how: Leaving) {
        match self.body {
            Body::H1(http1, _) => drop(http1.stream.take()),
            Body::H2(_, mut body, driver) => leave(&mut body, &driver, how),
        }
    }
}

fn received<'c>(
    answered: http::Response<RecvStream>,
    informational: Vec<u16>,
    body: SendStream<Bytes>,
    driver: AbortHandle,
) -> Answer<'c> {
    let (head, received) = answered.into_parts();
    let body = Body::H2(received, body, driver);
    Answer { status: head.status.as_u16(), headers: head.headers, informational, body, text: String::new() }
}

/// Sends this as there is room for it. Whether it was taken.
async fn pour(body: &mut SendStream<Bytes>, mut piece: Bytes, ends: bool) -> bool {
    if piece.is_empty() {
        return body.send_data(piece, ends).is_ok(); // there is always room for nothing
    }
    loop {
        body.reserve_capacity(piece.len());
        let Some(Ok(room)) = poll_fn(|cx| body.poll_capacity(cx)).await else { return false };
        let now = piece.split_to(room.min(piece.len()));
        let last = piece.is_empty();
        if body.send_data(now, last && ends).is_err() {
            return false;
        }
        if last {
            return true;
        }
    }
}

fn leave(body: &mut SendStream<Bytes>, driver: &AbortHandle, how: Leaving) {
    match how {
        Leaving::Stream => body.send_reset(Reason::CANCEL),
        Leaving::Connection => driver.abort(),
    }
}

// === impl Whole ===

impl Whole {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The one value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.get_all(name).iter();
        let first = all.next()?;
        assert!(all.next().is_none(), "{name} is there twice: {self:?}");
        Some(first.to_str().unwrap())
    }

    /// The code of a refusal.
    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}
