//! Stub engines that speak HTTP/2 with prior knowledge: one on crate `h2`, and one that writes its frames by hand, for what
//! that crate would not do.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};

use super::{Gate, begun, stop, whole};
use crate::harness::eventually;

/// How long what is queued has to be written before an end that would discard it: the crate does not tell when it was.
const ON_THE_WIRE: Duration = Duration::from_millis(20);

/// An engine. `GET /probe` is answered apart from its script and is not recorded.
pub(crate) struct Engine {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

struct State {
    script: Box<dyn Fn(&Asked) -> Reply + Send + Sync>,
    /// When the script is asked.
    reads: Reads,
    /// How many streams a connection may have at once.
    streams: u32,
    healthy: AtomicBool,
    asked: Mutex<Vec<Arc<Asked>>>,
    connections: Mutex<Vec<Connection>>,
}

/// What an engine does with a request's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// It is read whole before the answer.
    First,
    /// It is read while it is being answered.
    Meanwhile,
    /// It is not read.
    Never,
}

/// One connection from the engine's side.
struct Connection {
    task: AbortHandle,
    leaving: Arc<Notify>,
}

/// A request as the engine got it.
#[derive(Debug)]
pub(crate) struct Asked {
    /// All of its header.
    pub(crate) head: Parts,
    /// Which of the engine's connections it came on.
    pub(crate) connection: usize,
    body: Mutex<BytesMut>,
    whole: AtomicBool,
    /// Bytes of the answer's body that were taken.
    sent: AtomicUsize,
    /// When its stream was seen to end before its answer did, and the reason of the reset, if it was one.
    gone: Mutex<Option<(Instant, Option<Reason>)>>,
}

/// An answer: what is done, one step after the other.
#[derive(Clone)]
pub(crate) struct Reply(Vec<Step>);

#[derive(Clone)]
enum Step {
    Head(Response<()>),
    Data(Bytes),
    Wait(Gate),
    Pause(Duration),
    End,
    Trailers(HeaderMap),
    Reset(Reason),
    Stall,
    /// The whole connection ends.
    Break,
}

/// The client has ended the stream, or the connection.
struct Gone(Option<Reason>);

// === impl Engine ===

impl Engine {
    /// An engine that answers each request, when it has it whole, by this script.
    pub(crate) async fn new(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(script, Reads::First, 200).await
    }

    /// An engine that answers as soon as it has the header.
    pub(crate) async fn hasty(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(script, Reads::Meanwhile, 200).await
    }

    /// An engine that answers without a look at the body.
    pub(crate) async fn unreading(reply: Reply) -> Self {
        Self::start(move |_| reply.clone(), Reads::Never, 200).await
    }

    /// An engine that lets each connection have so many streams at once.
    pub(crate) async fn narrow(streams: u32, reply: Reply) -> Self {
        Self::start(move |_| reply.clone(), Reads::First, streams).await
    }

    /// An engine that gives everyone the same answer.
    pub(crate) async fn always(reply: Reply) -> Self {
        Self::new(move |_| reply.clone()).await
    }

    /// An engine whose answers are all `{"ok":true}`.
    pub(crate) async fn fine() -> Self {
        Self::always(Reply::json(200, "{\"ok\":true}")).await
    }

    async fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static, reads: Reads, streams: u32) -> Self {
        let state = State {
            script: Box::new(script),
            reads,
            streams,
            healthy: AtomicBool::new(true),
            asked: Mutex::default(),
            connections: Mutex::default(),
        };
        let state = Arc::new(state);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let theirs = state.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let leaving = Arc::new(Notify::new());
                let mut connections = theirs.connections.lock();
                let task = tokio::spawn(serve(theirs.clone(), stream, connections.len(), leaving.clone()));
                connections.push(Connection { task: task.abort_handle(), leaving });
            }
        });
        Self { address, state, accepting: Mutex::new(Some(accepting)) }
    }

    /// Stops: refuses connections, and drops those it has.
    pub(crate) async fn kill(&self) {
        stop(&self.accepting).await;
        self.cut();
    }

    /// Drops the connections it has.
    pub(crate) fn cut(&self) {
        self.state.connections.lock().iter().for_each(|connection| connection.task.abort());
    }

    /// Says on its connections that it takes no further request there: GOAWAY without an error.
    pub(crate) fn go_away(&self) {
        self.state.connections.lock().iter().for_each(|connection| connection.leaving.notify_one());
    }

    /// Answers probes well, or with 503.
    pub(crate) fn be_healthy(&self, healthy: bool) {
        self.state.healthy.store(healthy, SeqCst);
    }

    /// Request number `n`, as soon as its header is there.
    pub(crate) async fn begun(&self, n: usize) -> Arc<Asked> {
        begun(&self.state.asked, n).await
    }

    /// Request number `n`, when its body is whole.
    pub(crate) async fn asked(&self, n: usize) -> Arc<Asked> {
        let asked = self.begun(n).await;
        whole(&asked.whole).await;
        asked
    }

    /// How many requests came.
    pub(crate) fn requests(&self) -> usize {
        self.state.asked.lock().len()
    }

    /// How many connections brought requests.
    pub(crate) fn connections(&self) -> usize {
        self.state.asked.lock().iter().map(|asked| asked.connection).collect::<BTreeSet<_>>().len()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.lock().take() {
            accepting.abort();
        }
        self.cut();
    }
}

// === impl Asked ===

impl Asked {
    /// The one value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.head.headers.get_all(name).iter();
        let first = all.next()?;
        assert!(all.next().is_none(), "{name} is there twice: {:?}", self.head);
        first.to_str().ok()
    }

    /// What came of the body so far.
    pub(crate) fn body(&self) -> Bytes {
        self.body.lock().clone().freeze()
    }

    /// How much of the answer's body was taken so far.
    pub(crate) fn sent(&self) -> usize {
        self.sent.load(SeqCst)
    }

    /// When its stream was seen to end early, and by which reset.
    pub(crate) async fn gone(&self) -> (Instant, Option<Reason>) {
        eventually("a stream that ends at the engine", || *self.gone.lock()).await
    }
}

// === impl Reply ===

impl Reply {
    /// Nothing yet.
    pub(crate) fn silence() -> Self {
        Self(vec![])
    }

    /// A header, with a body to come.
    pub(crate) fn head(status: u16, kind: &'static str) -> Self {
        let mut head = Response::builder().status(status).body(()).unwrap();
        head.headers_mut().insert("content-type", HeaderValue::from_static(kind));
        Self(vec![Step::Head(head)])
    }

    /// JSON with its length.
    pub(crate) fn json(status: u16, body: &'static str) -> Self {
        Self::head(status, "application/json").measured(body.len()).data(body).end()
    }

    /// The header of a stream of events.
    pub(crate) fn events() -> Self {
        Self::head(200, "text/event-stream")
    }

    /// The header says so many bytes.
    pub(crate) fn measured(mut self, length: usize) -> Self {
        if let Some(Step::Head(head)) = self.0.last_mut() {
            head.headers_mut().insert("content-length", length.into());
        }
        self
    }

    pub(crate) fn data(self, bytes: impl Into<Bytes>) -> Self {
        self.then(Step::Data(bytes.into()))
    }

    /// Then nothing, until the gate opens.
    pub(crate) fn wait(self, gate: &Gate) -> Self {
        self.then(Step::Wait(gate.clone()))
    }

    /// Then nothing for so long: where the passing of time is what is tested.
    pub(crate) fn pause(self, long: Duration) -> Self {
        self.then(Step::Pause(long))
    }

    pub(crate) fn end(self) -> Self {
        self.then(Step::End)
    }

    /// It ends with these fields.
    pub(crate) fn trailers(self, fields: &[(&'static str, &'static str)]) -> Self {
        let mut all = HeaderMap::new();
        for (name, value) in fields {
            all.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        self.then(Step::Trailers(all))
    }

    /// The stream is reset.
    pub(crate) fn reset(self, reason: Reason) -> Self {
        self.then(Step::Reset(reason))
    }

    /// In the end there is silence.
    pub(crate) fn stall(self) -> Self {
        self.then(Step::Stall)
    }

    /// The connection ends.
    pub(crate) fn breaks(self) -> Self {
        self.then(Step::Break)
    }

    fn then(mut self, step: Step) -> Self {
        self.0.push(step);
        self
    }
}

// === one connection ===

async fn serve(state: Arc<State>, stream: TcpStream, number: usize, leaving: Arc<Notify>) {
    stream.set_nodelay(true).unwrap();
    let Ok(mut connection) =
        h2::server::Builder::new().max_concurrent_streams(state.streams).handshake::<_, Bytes>(stream).await
    else {
        return;
    };
    let broken = Arc::new(Notify::new());
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { return };
                let (head, body) = request.into_parts();
                if head.uri.path() == "/probe" {
                    let status = if state.healthy.load(SeqCst) { 200 } else { 503 };
                    let (asked, reply) = (Arc::new(Asked::new(head, number)), Reply::head(status, "text/plain").end());
                    tokio::spawn(play(asked, respond, reply.0, broken.clone()));
                    continue;
                }
                let asked = Arc::new(Asked::new(head, number));
                state.asked.lock().push(asked.clone());
                tokio::spawn(answer(state.clone(), asked, body, respond, broken.clone()));
            }
            () = leaving.notified() => connection.graceful_shutdown(),
            () = broken.notified() => return,
        }
    }
}

impl Asked {
    fn new(head: Parts, connection: usize) -> Self {
        Self {
            head,
            connection,
            body: Mutex::default(),
            whole: AtomicBool::new(false),
            sent: AtomicUsize::new(0),
            gone: Mutex::default(),
        }
    }
}

async fn answer(
    state: Arc<State>,
    asked: Arc<Asked>,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    broken: Arc<Notify>,
) {
    match state.reads {
        Reads::First => {
            if !read(&asked, body).await {
                return;
            }
        }
        Reads::Meanwhile => {
            let asked = asked.clone();
            tokio::spawn(async move { read(&asked, body).await });
        }
        // A dropped body resets the stream, without an error, once it is answered (RFC 9113 §8.1).
        Reads::Never => drop(body),
    }
    let steps = (state.script)(&asked).0;
    play(asked, respond, steps, broken).await;
}

/// Reads the body. Whether it came whole.
async fn read(asked: &Asked, mut body: RecvStream) -> bool {
    while let Some(piece) = body.data().await {
        let Ok(piece) = piece else {
            *asked.gone.lock() = Some((Instant::now(), piece.err().and_then(|e| e.reason())));
            return false;
        };
        let _ = body.flow_control().release_capacity(piece.len()); // a stream that is gone needs none
        asked.body.lock().extend_from_slice(&piece);
    }
    asked.whole.store(true, SeqCst);
    true
}

async fn play(asked: Arc<Asked>, mut respond: SendResponse<Bytes>, steps: Vec<Step>, broken: Arc<Notify>) {
    let mut out = None;
    for step in steps {
        let done = match step {
            Step::Head(head) => respond.send_response(head, false).map(|stream| out = Some(stream)).map_err(gone),
            Step::Data(bytes) => pour(out.as_mut().unwrap(), bytes, &asked).await,
            Step::Wait(gate) => tokio::select! {
                gone = ended(&mut respond, out.as_mut()) => Err(gone),
                () = gate.pass() => Ok(()),
            },
            Step::Pause(long) => tokio::select! {
                gone = ended(&mut respond, out.as_mut()) => Err(gone),
                () = tokio::time::sleep(long) => Ok(()),
            },
            Step::End => out.as_mut().unwrap().send_data(Bytes::new(), true).map_err(gone),
            Step::Trailers(fields) => out.as_mut().unwrap().send_trailers(fields).map_err(gone),
            Step::Reset(reason) => {
                tokio::time::sleep(ON_THE_WIRE).await;
                match &mut out {
                    Some(out) => out.send_reset(reason),
                    None => respond.send_reset(reason),
                }
                return;
            }
            Step::Stall => Err(ended(&mut respond, out.as_mut()).await),
            Step::Break => {
                tokio::time::sleep(ON_THE_WIRE).await;
                broken.notify_one();
                std::future::pending().await
            }
        };
        if let Err(Gone(reason)) = done {
            *asked.gone.lock() = Some((Instant::now(), reason));
            return;
        }
    }
}

fn gone(e: h2::Error) -> Gone {
    Gone(e.reason())
}

/// Waits for the client to end the stream.
async fn ended(respond: &mut SendResponse<Bytes>, out: Option<&mut SendStream<Bytes>>) -> Gone {
    let reset = match out {
        Some(out) => poll_fn(|cx| out.poll_reset(cx)).await,
        None => poll_fn(|cx| respond.poll_reset(cx)).await,
    };
    Gone(reset.ok())
}

async fn pour(out: &mut SendStream<Bytes>, mut bytes: Bytes, asked: &Asked) -> Result<(), Gone> {
    while !bytes.is_empty() {
        out.reserve_capacity(bytes.len());
        let Some(Ok(room)) = poll_fn(|cx| out.poll_capacity(cx)).await else {
            return Err(Gone(poll_fn(|cx| out.poll_reset(cx)).await.ok()));
        };
        let piece = bytes.split_to(room.min(bytes.len()));
        asked.sent.fetch_add(piece.len(), SeqCst);
        out.send_data(piece, false).map_err(gone)?;
    }
    Ok(())
}

// === frames by hand ===

/// An engine that answers request number `n` of all with these frames, whatever it is; then the connection ends if it says so.
pub(crate) struct Frames {
    pub(crate) address: SocketAddr,
    requests: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

/// Frames to be written, and whether the connection ends after them.
pub(crate) struct Written(pub(crate) Vec<u8>, pub(crate) bool);

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `:status: 200`, with or without the end of the stream.
pub(crate) fn ok(stream: u32, ends: bool) -> Vec<u8> {
    frame(1, 4 | u8::from(ends), stream, &[0x88])
}

/// GOAWAY: streams up to `last` are answered.
pub(crate) fn go_away(last: u32, reason: Reason) -> Vec<u8> {
    frame(7, 0, 0, &[last.to_be_bytes(), u32::from(reason).to_be_bytes()].concat())
}

impl Frames {
    pub(crate) async fn new(script: impl Fn(usize, u32) -> Written + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, script) = (Arc::new(AtomicUsize::new(0)), Arc::new(script));
        let counted = requests.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(by_hand(stream, counted.clone(), script.clone()));
            }
        });
        Self { address, requests, accepting }
    }

    /// How many requests came.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Reads frames; a stream that the client ends is a request. `None`: the connection ended.
async fn by_hand(
    mut stream: TcpStream,
    requests: Arc<AtomicUsize>,
    script: Arc<impl Fn(usize, u32) -> Written>,
) -> Option<()> {
    const PREFACE: usize = 24;
    const SETTINGS: u8 = 4;
    stream.read_exact(&mut [0; PREFACE]).await.ok()?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.ok()?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, id @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).await.ok()?;
        if kind == SETTINGS && flags & 1 == 0 {
            stream.write_all(&frame(SETTINGS, 1, 0, &[])).await.ok()?;
        }
        if matches!(kind, 0 | 1) && flags & 1 == 1 {
            let Written(frames, ends) = script(requests.fetch_add(1, SeqCst), u32::from_be_bytes(id));
            stream.write_all(&frames).await.ok()?;
            if ends {
                return None;
            }
        }
    }
}
