//! A stub engine on a raw socket: what it answers is a script, byte by byte where that matters.
//!
//! While it plays an answer it goes on reading, so it knows the instant at which its client left. `GET /probe` is answered
//! apart from the script and is not recorded.

pub(crate) mod http2;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinHandle};

use crate::harness::eventually;

/// An engine.
pub(crate) struct Engine {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

struct State {
    script: Box<dyn Fn(&Asked) -> Reply + Send + Sync>,
    /// Whether the script is asked as soon as the header is there.
    early: bool,
    healthy: AtomicBool,
    /// Whether probes are answered at all.
    probed: AtomicBool,
    asked: Mutex<Vec<Arc<Asked>>>,
    connections: AtomicUsize,
    open: Mutex<Vec<AbortHandle>>,
}

/// A request as the engine got it.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The header section as it came.
    pub(crate) head: String,
    /// Which of the engine's connections it came on.
    pub(crate) connection: usize,
    body: Mutex<BytesMut>,
    whole: AtomicBool,
    /// Bytes of the answer that were taken.
    sent: AtomicUsize,
    /// When the connection was seen to close while the request was being answered.
    gone: Mutex<Option<Instant>>,
}

/// An answer: what is done, one step after the other, and then with the connection.
#[derive(Clone)]
pub(crate) struct Reply {
    steps: Vec<Step>,
    end: End,
}

#[derive(Clone)]
enum Step {
    Write(Bytes),
    Wait(Gate),
    Pause(Duration),
}

/// What becomes of the connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    KeepAlive,
    /// It dies as soon as the next request has begun to arrive.
    UnderNext,
    Close,
    Reset,
    /// Nothing happens until the client leaves.
    Stall,
}

/// Holds an answer until a test lets it go on, once for each time.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Semaphore>);

// === impl Engine ===

impl Engine {
    /// An engine that answers each request, when it has it whole, by this script.
    pub(crate) async fn new(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(script, false).await
    }

    /// An engine that answers as soon as it has the header.
    pub(crate) async fn hasty(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(script, true).await
    }

    /// An engine that gives everyone the same answer.
    pub(crate) async fn always(reply: Reply) -> Self {
        Self::new(move |_| reply.clone()).await
    }

    /// An engine whose answers are all `{"ok":true}`.
    pub(crate) async fn fine() -> Self {
        Self::always(Reply::json(200, "{\"ok\":true}")).await
    }

    async fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static, early: bool) -> Self {
        let state = State {
            script: Box::new(script),
            early,
            healthy: AtomicBool::new(true),
            probed: AtomicBool::new(true),
            asked: Mutex::default(),
            connections: AtomicUsize::new(0),
            open: Mutex::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let engine =
            Self { address: listener.local_addr().unwrap(), state: Arc::new(state), accepting: Mutex::default() };
        engine.accept(listener);
        engine
    }

    fn accept(&self, listener: TcpListener) {
        let state = self.state.clone();
        *self.accepting.lock() = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = state.connections.fetch_add(1, SeqCst);
                let serving = tokio::spawn(serve(state.clone(), stream, number));
                state.open.lock().push(serving.abort_handle());
            }
        }));
    }

    /// Stops: refuses connections, and drops those it has.
    pub(crate) async fn kill(&self) {
        self.refuse().await;
        self.state.open.lock().drain(..).for_each(|connection| connection.abort());
    }

    /// Refuses connections, and keeps those it has.
    pub(crate) async fn refuse(&self) {
        stop(&self.accepting).await;
    }

    /// Serves again, at the same address.
    pub(crate) async fn revive(&self) {
        self.accept(TcpListener::bind(self.address).await.unwrap());
    }

    /// Answers probes well, or with 503.
    pub(crate) fn be_healthy(&self, healthy: bool) {
        self.state.healthy.store(healthy, SeqCst);
    }

    /// Leaves probes without an answer from now on.
    pub(crate) fn ignore_probes(&self) {
        self.state.probed.store(false, SeqCst);
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

    /// How many of them came whole.
    pub(crate) fn asked_whole(&self) -> usize {
        self.state.asked.lock().iter().filter(|asked| asked.whole.load(SeqCst)).count()
    }

    /// How many connections came, probes' included.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.lock().take() {
            accepting.abort();
        }
    }
}

/// Ends an accept loop.
async fn stop(accepting: &Mutex<Option<JoinHandle<()>>>) {
    let accepting = accepting.lock().take();
    if let Some(accepting) = accepting {
        accepting.abort();
        let _ = accepting.await; // its error is the abort
    }
}

/// Request number `n` of these, as soon as its header is there.
async fn begun<A>(asked: &Mutex<Vec<Arc<A>>>, n: usize) -> Arc<A> {
    eventually("a request at the engine", || asked.lock().get(n).cloned()).await
}

/// Waits until a request's body is whole.
async fn whole(whole: &AtomicBool) {
    eventually("a whole request at the engine", || whole.load(SeqCst).then_some(())).await;
}

// === impl Asked ===

impl Asked {
    /// The request line's second word.
    pub(crate) fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    /// The request line's first word.
    pub(crate) fn method(&self) -> &str {
        self.head.split(' ').next().unwrap()
    }

    /// All values of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    /// The one value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} is there twice: {}", self.head);
        all.first().copied()
    }

    /// What came of the body so far, without its framing.
    pub(crate) fn body(&self) -> Bytes {
        self.body.lock().clone().freeze()
    }

    /// How much of the answer was taken so far.
    pub(crate) fn sent(&self) -> usize {
        self.sent.load(SeqCst)
    }

    /// Waits until so much of the body has come.
    pub(crate) async fn has(&self, length: usize) {
        eventually("more of a body at the engine", || (self.body.lock().len() >= length).then_some(())).await;
    }

    /// When its connection was seen to close.
    pub(crate) async fn gone(&self) -> Instant {
        eventually("a closed connection at the engine", || *self.gone.lock()).await
    }
}

// === impl Reply ===

impl Reply {
    /// These bytes.
    pub(crate) fn raw(bytes: impl Into<Bytes>) -> Self {
        Self { steps: vec![Step::Write(bytes.into())], end: End::KeepAlive }
    }

    /// Never a byte.
    pub(crate) fn silence() -> Self {
        Self { steps: vec![], end: End::Stall }
    }

    /// JSON with its length.
    pub(crate) fn json(status: u16, body: &str) -> Self {
        Self::raw(format!(
            "HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    /// The header of a stream of events in chunks.
    pub(crate) fn events() -> Self {
        Self::raw("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    }

    /// Then these bytes.
    pub(crate) fn bytes(mut self, bytes: impl Into<Bytes>) -> Self {
        self.steps.push(Step::Write(bytes.into()));
        self
    }

    /// Then one chunk.
    pub(crate) fn chunk(self, content: &str) -> Self {
        self.bytes(format!("{:x}\r\n{content}\r\n", content.len()))
    }

    /// Then the last chunk.
    pub(crate) fn last(self) -> Self {
        self.bytes("0\r\n\r\n")
    }

    /// Then nothing, until the gate opens.
    pub(crate) fn wait(mut self, gate: &Gate) -> Self {
        self.steps.push(Step::Wait(gate.clone()));
        self
    }

    /// Then nothing for so long: where the passing of time is what is tested.
    pub(crate) fn pause(mut self, long: Duration) -> Self {
        self.steps.push(Step::Pause(long));
        self
    }

    /// In the end the connection is closed.
    pub(crate) fn close(mut self) -> Self {
        self.end = End::Close;
        self
    }

    /// In the end the connection is reset.
    pub(crate) fn reset(mut self) -> Self {
        self.end = End::Reset;
        self
    }

    /// In the end there is silence.
    pub(crate) fn stall(mut self) -> Self {
        self.end = End::Stall;
        self
    }

    /// The connection is kept, but dies when the next request comes.
    pub(crate) fn dies_under_the_next(mut self) -> Self {
        self.end = End::UnderNext;
        self
    }
}

// === impl Gate ===

impl Gate {
    /// A closed gate.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets one wait pass.
    pub(crate) fn open(&self) {
        self.0.add_permits(1);
    }

    async fn pass(&self) {
        self.0.acquire().await.unwrap().forget();
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

// === one connection ===

async fn serve(state: Arc<State>, mut stream: TcpStream, connection: usize) {
    stream.set_nodelay(true).unwrap();
    let mut ahead = BytesMut::new();
    while let Some(head) = head(&mut stream, &mut ahead).await {
        if head.starts_with("GET /probe ") {
            if !state.probed.load(SeqCst) {
                return until_closed(&mut stream.split().0, &mut ahead).await;
            }
            let status = if state.healthy.load(SeqCst) { 200 } else { 503 };
            let answer = format!("HTTP/1.1 {status} Status\r\ncontent-length: 0\r\n\r\n");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            continue;
        }
        let asked = Arc::new(Asked {
            head,
            connection,
            body: Mutex::default(),
            whole: AtomicBool::new(false),
            sent: AtomicUsize::new(0),
            gone: Mutex::default(),
        });
        state.asked.lock().push(asked.clone());
        if !state.early && body(&mut stream, &mut ahead, &asked).await.is_none() {
            *asked.gone.lock() = Some(Instant::now());
            return;
        }
        asked.whole.store(true, SeqCst);
        let Reply { steps, end } = (state.script)(&asked);
        let (mut reader, mut writer) = stream.split();
        tokio::select! {
            biased;
            () = until_closed(&mut reader, &mut ahead) => {
                *asked.gone.lock() = Some(Instant::now());
                return;
            }
            written = play(&mut writer, steps, &asked) => if !written { return },
        }
        match end {
            End::KeepAlive => {}
            End::UnderNext => {
                let _ = stream.read_buf(&mut ahead).await; // whatever comes, it dies
                return;
            }
            End::Close => return,
            End::Reset => return SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap(),
            End::Stall => {
                until_closed(&mut stream.split().0, &mut ahead).await;
                *asked.gone.lock() = Some(Instant::now());
                return;
            }
        }
    }
}

async fn head(stream: &mut TcpStream, ahead: &mut BytesMut) -> Option<String> {
    loop {
        if let Some(end) = ahead.windows(4).position(|window| window == b"\r\n\r\n") {
            return Some(String::from_utf8_lossy(&ahead.split_to(end + 4)).into_owned());
        }
        fill(stream, ahead).await?;
    }
}

/// Reads the body by its framing. `None`: the connection ended before it.
async fn body(stream: &mut TcpStream, ahead: &mut BytesMut, asked: &Asked) -> Option<()> {
    if asked.header("transfer-encoding").is_none() {
        let length = asked.header("content-length").map_or(0, |length| length.parse().unwrap());
        return exactly(stream, ahead, asked, length).await;
    }
    loop {
        let end = loop {
            if let Some(end) = ahead.windows(2).position(|window| window == b"\r\n") {
                break end;
            }
            fill(stream, ahead).await?;
        };
        let line = ahead.split_to(end + 2);
        let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
        exactly(stream, ahead, asked, size).await?;
        while ahead.len() < 2 {
            fill(stream, ahead).await?;
        }
        ahead.advance(2);
        if size == 0 {
            return Some(());
        }
    }
}

async fn exactly(stream: &mut TcpStream, ahead: &mut BytesMut, asked: &Asked, mut length: usize) -> Option<()> {
    while length > 0 {
        if ahead.is_empty() {
            fill(stream, ahead).await?;
        }
        let piece = ahead.split_to(ahead.len().min(length));
        length -= piece.len();
        asked.body.lock().extend_from_slice(&piece);
    }
    Some(())
}

async fn fill(stream: &mut TcpStream, ahead: &mut BytesMut) -> Option<()> {
    ahead.reserve(64 * 1024);
    (stream.read_buf(ahead).await.ok()? > 0).then_some(())
}

async fn until_closed(reader: &mut ReadHalf<'_>, ahead: &mut BytesMut) {
    while reader.read_buf(ahead).await.is_ok_and(|length| length > 0) {}
}

async fn play(writer: &mut WriteHalf<'_>, steps: Vec<Step>, asked: &Asked) -> bool {
    for step in steps {
        match step {
            Step::Write(mut bytes) => {
                while !bytes.is_empty() {
                    let Ok(taken) = writer.write_buf(&mut bytes).await else { return false };
                    asked.sent.fetch_add(taken, SeqCst);
                }
            }
            Step::Wait(gate) => gate.pass().await,
            Step::Pause(long) => tokio::time::sleep(long).await,
        }
    }
    true
}

/// An engine that accepts connections and never reads from them.
pub(crate) struct Deaf {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

// === impl Deaf ===

impl Deaf {
    pub(crate) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        Self { address, accepting }
    }

    /// The tables of pool and model `deaf`, with these time-outs, and of a route `/deaf/*` to it.
    pub(crate) fn pool(&self, timeouts: &str) -> String {
        format!(
            "[pool.deaf]\nservers = [\"{}\"]\n[pool.deaf.health]\npath = \"\"\n[pool.deaf.timeouts]\n{timeouts}\n\
             [model.deaf]\npool = \"deaf\"\n\
             [[route]]\nname = \"deaf\"\npath = \"/deaf/*\"\npool = \"deaf\"\nauth = \"none\"\n\
             [[route]]\nname = \"v1\"\npath = \"/v1/*\"\nby = \"model\"\n",
            self.address
        )
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// An engine that takes no further connection: its queue is full.
pub(crate) struct Full {
    pub(crate) address: SocketAddr,
    _held: (TcpListener, Vec<TcpStream>),
}

impl Full {
    pub(crate) async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut held = Vec::new();
        while let Ok(stream) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            held.push(stream.unwrap());
        }
        Self { address, _held: (listener, held) }
    }
}
