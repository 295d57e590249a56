//! Starts the real processes on ports that the system picks, and ends each by its own handle.

use std::fmt::Display;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::configuration::Configuration;
use crate::http::{Answer, Client};

/// How long anything that happens at last may take on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A folder that goes away with the test.
pub(crate) struct Folder(PathBuf);

/// What a command said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    /// Its exit code.
    pub(crate) code: Option<i32>,
    /// What it wrote for its user.
    pub(crate) stdout: String,
    /// What it complained of.
    pub(crate) stderr: String,
}

/// A running `forebay run`.
pub(crate) struct Forebay {
    process: Process,
    folder: Folder,
    /// The addresses that it listens on, traffic first.
    listens: Vec<String>,
    /// The processes that took over, one after the other. They are no children of ours.
    successors: Vec<u32>,
}

/// Ends what goes on until it is over, however a scope is left: else its threads would be waited for without end.
pub(crate) struct Over<'l>(pub(crate) &'l AtomicBool);

/// How a daemon is started, but for its arguments.
#[derive(Default)]
pub(crate) struct Manner<'m> {
    /// The program, if it is not the one under test at its own place.
    pub(crate) program: Option<&'m str>,
    /// Variables.
    pub(crate) environment: &'m [(&'m str, &'m str)],
    /// Listening sockets that are passed to it.
    pub(crate) sockets: Vec<OwnedFd>,
}

/// A running `forebay engine`, or the address at which one ran.
pub(crate) struct Engine {
    process: Option<Process>,
    /// The address while nobody listens there, lest the system give it to somebody else.
    held: Option<Socket>,
    name: String,
    flags: Vec<String>,
    /// Where it listens.
    pub(crate) address: String,
}

/// A child whose output is read as it comes.
struct Process {
    child: Child,
    said: Arc<Mutex<String>>,
}

/// Asks again until the answer is there, and fails when the time is over.
pub(crate) fn until<T>(what: impl Display, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(5)); // between two looks
    }
}

/// Runs a command to its end.
pub(crate) fn forebay(arguments: &[&str]) -> Said {
    with_environment(arguments, &[])
}

/// Runs a command to its end, with these variables.
pub(crate) fn with_environment(arguments: &[&str], environment: &[(&str, &str)]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(arguments).envs(environment.iter().copied());
    run(command)
}

/// Runs a command to its end, as a user to whom the system grants nothing beyond what files allow their owner.
pub(crate) fn powerless(arguments: &[&str]) -> Said {
    let forebay = env!("CARGO_BIN_EXE_forebay");
    let mut command = if is_root() { Command::new("setpriv") } else { Command::new(forebay) };
    if is_root() {
        command.args(["--bounding-set=-all", "--inh-caps=-all", forebay]);
    }
    command.args(arguments);
    run(command)
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn run(mut command: Command) -> Said {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the command runs");
    let mut process = Process { child, said: Arc::default() };
    let (mut stdout, mut stderr) = (process.child.stdout.take(), process.child.stderr.take());
    let status = until(format!("{command:?} ends"), || process.child.try_wait().expect("a child")); // says little: a pipe holds it
    let text = |out: &mut dyn Read| {
        let mut text = String::new();
        out.read_to_string(&mut text).expect("UTF-8");
        text
    };
    let (stdout, stderr) = (text(stdout.as_mut().expect("piped")), text(stderr.as_mut().expect("piped")));
    Said { code: status.code(), stdout, stderr }
}

// === impl Folder ===

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("forebay-daemon-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    /// A folder with these files.
    pub(crate) fn with(files: &[(&str, &str)]) -> Self {
        let folder = Self::new();
        files.iter().for_each(|(name, text)| drop(folder.write(name, text)));
        folder
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::create_dir_all(Path::new(&path).parent().expect("a folder")).expect("a folder");
        fs::write(&path, text).expect("written");
        path
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("a file")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

// === impl Over ===

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

// === impl Process ===

impl Process {
    fn start(arguments: &[&str], manner: Manner, from_stdout: bool) -> Self {
        let mut command = Command::new(manner.program.unwrap_or(env!("CARGO_BIN_EXE_forebay")));
        if !manner.sockets.is_empty() {
            command.env("LISTEN_FDS", manner.sockets.len().to_string());
            let passed = manner.sockets.into_iter().zip(3..);
            let mappings = passed.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
            command.fd_mappings(mappings).expect("each at its place");
        }
        command
            .args(arguments)
            .env_remove("INVOCATION_ID")
            .envs(manner.environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let out: Box<dyn Read + Send> = match from_stdout {
            true => Box::new(child.stdout.take().expect("piped")),
            false => Box::new(child.stderr.take().expect("piped")),
        };
        let said = Arc::new(Mutex::new(String::new()));
        let heard = said.clone();
        thread::spawn(move || {
            let mut out = BufReader::new(out);
            let mut line = Vec::new();
            while out.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                heard.lock().expect("not poisoned").push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        Self { child, said }
    }

    fn said(&self) -> String {
        self.said.lock().expect("not poisoned").clone()
    }

    fn signal(&self, name: &str) {
        assert!(signal(self.child.id(), name), "the process is there");
    }
}

/// Sends a signal, by name; `0` only looks. Whether the process is there.
pub(crate) fn signal(pid: u32, name: &str) -> bool {
    let mut command = Command::new("kill");
    let sent = command.args(["-s", name, &pid.to_string()]).stderr(Stdio::null()).status();
    sent.expect("`kill` runs").success()
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Forebay ===

impl Forebay {
    /// A daemon that serves.
    pub(crate) fn start(configuration: &Configuration) -> Self {
        Self::start_in(Folder::new(), configuration)
    }

    /// A daemon that serves, with its configuration in this folder.
    pub(crate) fn start_in(folder: Folder, configuration: &Configuration) -> Self {
        folder.write("forebay.toml", &configuration.to_string());
        Self::start_with(folder, "forebay.toml")
    }

    /// A daemon that serves by this file of the folder.
    pub(crate) fn start_with(folder: Folder, name: &str) -> Self {
        Self::start_with_environment(folder, name, &[])
    }

    /// The same with these variables.
    pub(crate) fn start_with_environment(folder: Folder, name: &str, environment: &[(&str, &str)]) -> Self {
        Self::start_so(folder, name, Manner { environment, ..Manner::default() })
    }

    /// The same in any manner.
    pub(crate) fn start_so(folder: Folder, name: &str, manner: Manner) -> Self {
        let process = Process::start(&["run", "-c", &folder.path(name)], manner, false);
        let mut forebay = Self { process, folder, listens: vec![], successors: vec![] };
        until("forebay serves", || {
            let said = forebay.log();
            assert!(forebay.process.child.try_wait().expect("a child").is_none(), "it ended: {said}");
            said.lines().any(|line| line.trim_end_matches(['"', '}']).ends_with(" serves")).then_some(())
        });
        let said = forebay.log();
        let listens = said.lines().filter_map(|line| Some(line.split_once("listening on ")?.1));
        forebay.listens = listens.map(|address| address.trim_end_matches(['"', '}']).to_owned()).collect();
        forebay
    }

    /// A daemon whose servers have all been probed, one of them up at least.
    pub(crate) fn ready(configuration: &Configuration) -> Self {
        let forebay = Self::start(configuration);
        forebay.until_ready();
        forebay
    }

    /// The same by this file of the folder.
    pub(crate) fn ready_with(folder: Folder, name: &str) -> Self {
        let forebay = Self::start_with(folder, name);
        forebay.until_ready();
        forebay
    }

    pub(crate) fn until_ready(&self) {
        until("forebay is ready", || (self.admin("/readyz").status == 200).then_some(()));
    }

    /// Where clients connect.
    pub(crate) fn traffic(&self) -> &str {
        &self.listens[0]
    }

    /// Where operators connect.
    pub(crate) fn admin_address(&self) -> &str {
        self.listens.last().expect("it listens")
    }

    /// A client of its own.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.traffic())
    }

    /// An answer of the admin listener.
    pub(crate) fn admin(&self, path: &str) -> Answer {
        Client::connect(self.admin_address()).get(path)
    }

    /// The admin listener's status.
    pub(crate) fn status(&self) -> Value {
        self.admin("/status").json()
    }

    /// One server of `/status`, by its place.
    pub(crate) fn server(&self, pool: &str, place: usize) -> Value {
        self.status()["pools"][pool]["servers"][place].clone()
    }

    /// The value of a metric whose line begins so.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        let text = self.admin("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|value| value.parse().expect("a number"))
    }

    /// To the process that serves.
    pub(crate) fn signal(&self, name: &str) {
        assert!(signal(self.pid(), name), "the process is there");
    }

    /// The process that serves, as far as we know.
    pub(crate) fn pid(&self) -> u32 {
        self.successors.last().copied().unwrap_or(self.process.child.id())
    }

    /// The memory that the process which serves holds, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let pages = fs::read_to_string(format!("/proc/{}/statm", self.pid())).expect("it runs");
        pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("pages") * 4096
    }

    /// Has it hand over to a successor, and waits until that one serves.
    pub(crate) fn upgrade(&mut self) -> u32 {
        self.signal("USR2");
        self.until_upgraded()
    }

    /// Waits for one more successor.
    pub(crate) fn until_upgraded(&mut self) -> u32 {
        let known = self.successors.len();
        let pid = until("a successor serves", || {
            let said = self.messages();
            let mut pids = said.iter().filter_map(|said| said.strip_prefix("upgraded: process ")?.split(' ').next());
            Some(pids.nth(known)?.parse().expect("a process id"))
        });
        self.successors.push(pid);
        pid
    }

    /// All that it wrote to stderr so far.
    pub(crate) fn log(&self) -> String {
        self.process.said()
    }

    /// The messages of its log so far.
    pub(crate) fn messages(&self) -> Vec<String> {
        let said = self.log();
        let lines =
            said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}")));
        lines.filter_map(|line| line["message"].as_str().map(str::to_owned)).collect()
    }

    /// Waits for a message that holds this.
    pub(crate) fn until_said(&self, text: &str) -> String {
        until(format!("{text:?} in the log"), || self.messages().into_iter().find(|said| said.contains(text)))
    }

    /// Puts another configuration in the file.
    pub(crate) fn rewrite(&self, configuration: &Configuration) {
        self.folder.write("forebay.toml", &configuration.to_string());
    }

    /// Puts any text in a file of its folder.
    pub(crate) fn write(&self, name: &str, text: &str) {
        self.folder.write(name, text);
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path(name)
    }

    /// How many reloads went so.
    pub(crate) fn reloads(&self, result: &str) -> f64 {
        self.metric(&format!("forebay_config_reloads_total{{result=\"{result}\"}}")).unwrap_or(0.0)
    }

    /// Reloads and waits until it is done, well or not.
    pub(crate) fn reload(&self) {
        let count = || self.reloads("success") + self.reloads("failure");
        let before = count();
        self.signal("HUP");
        until("the reload is over", || (count() > before).then_some(()));
    }

    /// The processes that run by a file of its folder: successors too that nobody has seen.
    fn running(&self) -> Vec<u32> {
        let folder = self.path("");
        let ours = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default(); // none of one that has ended
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.contains(&&b"run"[..]) && words.iter().any(|word| word.starts_with(folder.as_bytes()))
        };
        let all = fs::read_dir("/proc").expect("a folder").filter_map(Result::ok);
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(ours).collect()
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.child.try_wait().expect("a child")
    }

    /// Waits for its end, and returns its exit code.
    pub(crate) fn until_ended(&mut self) -> Option<i32> {
        until("forebay ends", || self.ended()).code()
    }
}

impl Drop for Forebay {
    fn drop(&mut self) {
        let _ = self.process.child.kill(); // first, so that it starts no other one
        let _ = self.process.child.wait();
        for pid in self.running() {
            signal(pid, "KILL"); // it may have ended
        }
    }
}

// === impl Engine ===

impl Engine {
    /// A stand-in engine with these flags.
    pub(crate) fn start(name: &str, flags: &[&str]) -> Self {
        let address = "127.0.0.1:0".to_owned();
        let mut engine = Self { process: None, held: None, name: name.to_owned(), flags: vec![], address };
        engine.restart_with(flags);
        engine
    }

    /// Ends it at once. Who connects to its address is refused.
    pub(crate) fn kill(&mut self) {
        if self.process.take().is_some() {
            self.held = Some(hold(&self.address));
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        self.process.as_ref().expect("it runs").signal(name);
    }

    /// Starts it again at its address.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let mut arguments = vec!["engine", "--listen", &self.address, "--name", &self.name];
        arguments.extend(self.flags.iter().map(String::as_str));
        let mut process = Process::start(&arguments, Manner::default(), true);
        let address = until("the engine listens", || {
            assert!(process.child.try_wait().expect("a child").is_none(), "the engine ended");
            process.said().trim_end().rsplit_once("http://").map(|(_, address)| address.to_owned())
        });
        self.address = address;
        self.process = Some(process);
        self.held = None;
    }

    /// The same with these flags from now on.
    pub(crate) fn restart_with(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        self.restart();
    }
}

/// A bound socket that does not listen. With both sides ready to share it, an engine can listen at its address all the same.
fn hold(address: &str) -> Socket {
    let address: SocketAddr = address.parse().expect("an address");
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    socket.bind(&address.into()).expect("its address is free");
    socket
}

#[test]
fn successors_that_nobody_has_seen_end_with_their_test() {
    let forebay = Forebay::start(&Configuration::of(&["127.0.0.1:1"]));
    forebay.signal("USR2");
    forebay.until_said("upgraded: process ");
    let (folder, first) = (forebay.path(""), forebay.pid());
    let successors: Vec<u32> = forebay.running().into_iter().filter(|pid| *pid != first).collect();
    assert_eq!(successors.len(), 1);
    drop(forebay);
    until("it has ended", || {
        let line = fs::read_to_string(format!("/proc/{}/cmdline", successors[0])).unwrap_or_default();
        (!line.contains(&folder)).then_some(())
    });
}
