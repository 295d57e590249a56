//! An engine in this process, over TCP or a unix socket, that keeps what it heard and answers as a test has it.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

/// What the engine does about a request, whose header section is given.
type Script = dyn Fn(&str, &mut dyn Write) -> io::Result<()> + Send + Sync;

/// The engine. It goes on for as long as the test process.
pub(crate) struct Stub {
    /// As the configuration writes it.
    pub(crate) address: String,
    heard: Arc<Mutex<Vec<String>>>,
}

/// The one value of a header in a header section.
pub(crate) fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let mut all = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
    let value = all.next().map(|(_, value)| value.trim());
    assert!(all.next().is_none(), "{name} is there twice");
    value
}

/// A whole answer.
pub(crate) fn whole(out: &mut dyn Write, status: u16, body: &str) -> io::Result<()> {
    let length = body.len();
    write!(out, "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")?;
    out.flush()
}

// === impl Stub ===

impl Stub {
    /// Over TCP.
    pub(crate) fn tcp(script: impl Fn(&str, &mut dyn Write) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        Self::serving(address, move || Ok(listener.accept()?.0), script)
    }

    /// Over a unix socket at this path, whatever is there.
    pub(crate) fn unix(
        path: &str,
        script: impl Fn(&str, &mut dyn Write) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        if Path::new(path).exists() {
            fs::remove_file(path).expect("removed");
        }
        let listener = UnixListener::bind(path).expect("a socket");
        Self::serving(format!("unix:{path}"), move || Ok(listener.accept()?.0), script)
    }

    fn serving<S: Send + 'static>(
        address: String,
        mut accept: impl FnMut() -> io::Result<S> + Send + 'static,
        script: impl Fn(&str, &mut dyn Write) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self
    where
        for<'s> &'s S: Read + Write,
    {
        let stub = Self { address, heard: Arc::default() };
        let (heard, script) = (stub.heard.clone(), Arc::new(script));
        thread::spawn(move || {
            loop {
                let Ok(stream) = accept() else { continue };
                let (heard, script) = (heard.clone(), script.clone());
                thread::spawn(move || serve(&stream, &stream, &heard, &*script));
            }
        });
        stub
    }

    /// The header sections of all requests so far whose first line begins so.
    pub(crate) fn heard(&self, beginning: &str) -> Vec<String> {
        let heard = self.heard.lock().expect("not poisoned");
        heard.iter().filter(|head| head.starts_with(beginning)).cloned().collect()
    }
}

fn serve(reader: impl Read, mut writer: impl Write, heard: &Mutex<Vec<String>>, script: &Script) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let length = field(&head, "content-length").map_or(Ok(0), str::parse).map_err(io::Error::other)?;
        reader.read_exact(&mut vec![0; length])?;
        heard.lock().expect("not poisoned").push(head.clone());
        script(&head, &mut writer)?;
    }
}
