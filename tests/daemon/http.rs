//! A plain HTTP/1.1 client that shows every byte, and an engine that answers as it is told.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::configuration::SECRET;
use crate::harness::DEADLINE;

trait ReadWrite: Read + Write + Send {}
impl<T: Read + Write + Send> ReadWrite for T {}

/// One connection.
pub(crate) struct Client(BufReader<Box<dyn ReadWrite>>);

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: u16,
    /// Its fields, the names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    /// Its body.
    pub(crate) body: Vec<u8>,
}

/// The body of a chat request.
pub(crate) fn chat(model: &str, content: &str, stream: bool) -> String {
    serde_json::json!({"model": model, "messages": [{"role": "user", "content": content}], "stream": stream})
        .to_string()
}

// === impl Client ===

impl Client {
    /// To a listener as the log names it.
    pub(crate) fn connect(address: &str) -> Self {
        Self::try_connect(address).unwrap_or_else(|e| panic!("no connection to {address}: {e}"))
    }

    pub(crate) fn try_connect(address: &str) -> io::Result<Self> {
        let stream: Box<dyn ReadWrite> = match address.strip_prefix("unix:") {
            Some(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                Box::new(stream)
            }
            None => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                Box::new(stream)
            }
        };
        Ok(Self(BufReader::new(stream)))
    }

    /// Writes these bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream = self.0.get_mut();
        stream.write_all(bytes)?;
        stream.flush()
    }

    /// Sends a request with these further header lines.
    pub(crate) fn send(&mut self, method: &str, path: &str, headers: &[&str], body: &str) -> io::Result<()> {
        let more: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        let length = body.len();
        self.write(
            format!("{method} {path} HTTP/1.1\r\nhost: forebay\r\n{more}content-length: {length}\r\n\r\n{body}")
                .as_bytes(),
        )
    }

    /// Sends a request and reads its answer.
    pub(crate) fn ask(&mut self, method: &str, path: &str, headers: &[&str], body: &str) -> io::Result<Answer> {
        self.send(method, path, headers, body)?;
        self.answer()
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.ask("GET", path, &[], "").unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// Asks a model to repeat one word, with the key of the tests.
    pub(crate) fn chat(&mut self, model: &str) -> io::Result<Answer> {
        self.chat_as(SECRET, model)
    }

    pub(crate) fn chat_as(&mut self, secret: &str, model: &str) -> io::Result<Answer> {
        let key = format!("authorization: Bearer {secret}");
        self.ask("POST", "/v1/chat/completions", &[&key], &chat(model, "word", false))
    }

    /// Begins a stream of so many tokens; reads its header and first event.
    pub(crate) fn begin_stream(&mut self, model: &str, tokens: usize) -> io::Result<Answer> {
        let key = format!("authorization: Bearer {SECRET}");
        let messages = serde_json::json!([{"role": "user", "content": "word"}]);
        let body = serde_json::json!({"model": model, "messages": messages, "stream": true, "max_tokens": tokens});
        self.send("POST", "/v1/chat/completions", &[&key], &body.to_string())?;
        let answer = self.header()?;
        self.chunk()?;
        Ok(answer)
    }

    /// Reads the header of a stream and its first event.
    pub(crate) fn begun(&mut self) -> io::Result<Answer> {
        let answer = self.header()?;
        self.chunk()?;
        Ok(answer)
    }

    /// Reads a stream to its last chunk. Whether it came with `[DONE]`.
    pub(crate) fn end_stream(&mut self) -> io::Result<bool> {
        let mut last = Vec::new();
        loop {
            match self.chunk()? {
                piece if piece.is_empty() => return Ok(last.ends_with(b"data: [DONE]\n\n")),
                piece => last.extend(piece),
            }
        }
    }

    /// Reads an answer whole.
    pub(crate) fn answer(&mut self) -> io::Result<Answer> {
        let mut answer = self.header()?;
        self.body(&mut answer)?;
        Ok(answer)
    }

    /// Reads the body of an answer whose header is read. What came before an error is in it too, if it came in chunks.
    pub(crate) fn body(&mut self, answer: &mut Answer) -> io::Result<()> {
        if let Some(length) = answer.headers.get("content-length") {
            answer.body = vec![0; length.parse().map_err(io::Error::other)?];
            self.0.read_exact(&mut answer.body)?;
        } else if answer.headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            loop {
                let piece = self.chunk()?;
                if piece.is_empty() {
                    break;
                }
                answer.body.extend(piece);
            }
        } else if answer.status != 204 {
            self.0.read_to_end(&mut answer.body)?;
        }
        Ok(())
    }

    /// Reads the header of an answer.
    pub(crate) fn header(&mut self) -> io::Result<Answer> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "no status line"))?;
        let mut headers = BTreeMap::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(Answer { status, headers, body: vec![] });
            }
            let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other("no field"))?;
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
    }

    /// The next chunk's bytes; none: it was the last.
    fn chunk(&mut self) -> io::Result<Vec<u8>> {
        let size = usize::from_str_radix(&self.line()?, 16).map_err(io::Error::other)?;
        let mut piece = vec![0; size + 2];
        self.0.read_exact(&mut piece)?;
        piece.truncate(size);
        Ok(piece)
    }

    /// The next line.
    pub(crate) fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let line = line.strip_suffix("\r\n").ok_or(ErrorKind::UnexpectedEof)?;
        Ok(line.to_owned())
    }

    /// Reads all that comes until the connection ends; a reset is an end too.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => panic!("it stays open"),
            _ => rest,
        }
    }
}

// === impl Answer ===

impl Answer {
    /// The one that begins with this header, over HTTP/2.
    pub(crate) fn of(header: &http::response::Parts) -> Self {
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = header.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
        Self { status: header.status.as_u16(), headers, body: vec![] }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Whether the connection ends with it.
    pub(crate) fn closes(&self) -> bool {
        self.headers.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// An engine that accepts, reads a request's header, and answers with these bytes; with none it is silent for ever.
/// Its address. The thread ends with the test process.
pub(crate) fn canned(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || -> io::Result<()> {
                let mut lines = BufReader::new(stream.try_clone()?);
                let mut line = String::new();
                while lines.read_line(&mut line)? > 2 {
                    line.clear();
                }
                if answer.is_empty() {
                    thread::park_timeout(Duration::from_secs(600));
                }
                stream.write_all(answer.as_bytes())
            });
        }
    });
    address
}
