//! Reads the main file and what it includes into one tree, in which every position is known.
//!
//! All files share one space of offsets: each begins where the one before ended, and offset 0 belongs to none, so that
//! the span of a default (`0..0`) stands nowhere.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Fault, Place};
use super::{Config, Declared, Footprint, merge, variable};

/// What was read from a configuration's files.
#[derive(Debug)]
pub struct Loaded {
    /// What could be read; only without faults is it what was written.
    pub config: Config,
    /// The files, for further faults by span.
    pub sources: Sources,
    /// The names that the files define, those of faulty entries too.
    pub declared: Declared,
    /// What is wrong so far.
    pub faults: Vec<Fault>,
    /// What was read, and how it looked.
    pub footprint: Footprint,
}

/// The files of a configuration, in the order they were read.
#[derive(Debug, Default)]
pub struct Sources {
    files: Vec<Source>,
}

/// One file.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    text: String,
    /// Where it begins among all files.
    base: usize,
}

/// The files read so far.
struct Reader<'a> {
    environment: &'a dyn Fn(&str) -> Option<String>,
    sources: Sources,
    faults: Vec<Fault>,
    /// Whether every file could be read.
    complete: bool,
    /// Every file asked for, by its canonical path, and the include that asked for it.
    seen: HashMap<PathBuf, Range<usize>>,
    footprint: Footprint,
}

/// Reads the configuration at `path` and all it includes; `environment` gives the values of `${NAME}`.
pub fn load(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Loaded {
    let mut reader = Reader {
        environment,
        sources: Sources::default(),
        faults: Vec::new(),
        complete: true,
        seen: HashMap::new(),
        footprint: Footprint::default(),
    };
    reader.open(path, &(0..0));
    let Reader { sources, mut faults, complete, footprint, .. } = reader;
    let (config, mut declared) = merge::merge(&sources, environment, &mut faults);
    declared.complete &= complete;
    Loaded { config, sources, declared, faults, footprint }
}

impl Sources {
    /// The paths of the files, the main one first.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|source| source.path.as_path())
    }

    /// A fault at what `span` covers; without a place where that is a default.
    pub fn fault(&self, span: Range<usize>, message: impl Into<String>) -> Fault {
        Fault { place: self.place(span.start), message: message.into() }
    }

    /// Where in the files `offset` is; `None` for a default.
    pub fn place(&self, offset: usize) -> Option<Place> {
        let (order, source) = self.source(offset)?;
        let end = source.text.floor_char_boundary(offset - source.base);
        let before = &source.text[..end];
        let line = before.rfind('\n').map_or(0, |newline| newline + 1);
        Some(Place {
            file: source.path.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line..].chars().count() + 1,
            order,
        })
    }

    /// What stands in the files at `span`, its variables not filled in; empty for a default.
    pub(super) fn written(&self, span: Range<usize>) -> &str {
        let Some((_, source)) = self.source(span.start) else { return "" };
        source.text.get(span.start - source.base..span.end - source.base).unwrap_or_default()
    }

    /// The line that `offset` is on.
    pub(super) fn line(&self, offset: usize) -> Option<Range<usize>> {
        let (_, source) = self.source(offset)?;
        let (before, after) = source.text.split_at(source.text.floor_char_boundary(offset - source.base));
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let length = after.find('\n').unwrap_or(after.len());
        Some(source.base + start..source.base + before.len() + length + 1)
    }

    fn source(&self, offset: usize) -> Option<(usize, &Source)> {
        let after = self.files.partition_point(|file| file.base <= offset);
        let order = after.checked_sub(1)?;
        Some((order, &self.files[order]))
    }

    /// The text of each file and where it begins.
    pub(super) fn texts(&self) -> impl Iterator<Item = (&str, usize)> {
        self.files.iter().map(|file| (file.text.as_str(), file.base))
    }

    /// Takes in a file; tells where it begins.
    fn add(&mut self, path: &Path, text: String) -> usize {
        // One more than the text, so that its end is a place of its own.
        let last = self.files.last();
        let base = last.map_or(1, |last| last.base + last.text.len() + 1);
        let path = path.to_owned();
        self.files.push(Source { path, text, base });
        base
    }
}

impl Reader<'_> {
    fn fault(&mut self, span: Range<usize>, message: impl Into<String>) {
        let fault = self.sources.fault(span, message);
        self.faults.push(fault);
    }

    /// Reads the file at `path` because of the include at `by`; the main file is included by nothing.
    fn open(&mut self, path: &Path, by: &Range<usize>) {
        self.footprint.note(path);
        let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        match self.seen.entry(canonical) {
            Entry::Vacant(entry) => {
                entry.insert(by.clone());
            }
            Entry::Occupied(entry) => {
                let first = match self.sources.place(entry.get().start) {
                    Some(place) => format!("the other include is at {place}"),
                    None => "it is the main file".to_owned(),
                };
                let path = path.display();
                return self.fault(by.clone(), format!("{path} is included twice; {first}"));
            }
        }
        match read_file(path) {
            Ok(bytes) => self.read(path, bytes),
            Err(error) => {
                self.complete = false;
                let path = path.display();
                self.fault(by.clone(), format!("{path}: cannot be read: {error}"));
            }
        }
    }

    /// Takes in one file, then what it includes.
    fn read(&mut self, path: &Path, bytes: Vec<u8>) {
        let (text, bad) = decode_utf8(bytes);
        let includes = includes(&text);
        let base = self.sources.add(path, text);
        if let Some(at) = bad {
            self.complete = false;
            self.fault(base + at..base + at, "not UTF-8; save the file as UTF-8");
        }
        for (span, pattern) in includes {
            let span = span.start + base..span.end + base;
            match variable::expand(pattern.into(), self.environment) {
                Ok(pattern) => self.include(path, &span, &pattern),
                // Said with all other strings, when the tree is made.
                Err(_) => self.complete = false,
            }
        }
    }

    /// Reads what `pattern` names, seen from the file `from`.
    fn include(&mut self, from: &Path, span: &Range<usize>, pattern: &str) {
        let folder = from.parent().unwrap_or(Path::new(""));
        if !pattern.contains(['*', '?', '[']) {
            let path = folder.join(pattern);
            if path.exists() {
                return self.open(&path, span);
            }
            self.footprint.note(&path); // it may come
            self.complete = false;
            let message = format!("{} does not exist", path.display());
            return self.fault(span.clone(), message);
        }
        let full = match (Path::new(pattern).is_absolute(), folder.to_str()) {
            (false, Some(folder)) if !folder.is_empty() => {
                format!("{}/{pattern}", glob::Pattern::escape(folder))
            }
            _ => pattern.to_owned(),
        };
        match self.footprint.matches(&full) {
            Ok(paths) => paths.iter().for_each(|path| self.open(path, span)),
            Err(error) => {
                self.complete = false;
                let message = format!("{pattern:?} is not a glob: {}", error.msg);
                self.fault(span.clone(), message);
            }
        }
    }
}

/// The largest file that is read, in bytes.
const LARGEST: u64 = 64 << 20;

/// The whole of a regular file: a pipe might never end, and a device never stop.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() && !metadata.is_dir() {
        return Err(io::Error::other("it is not a file"));
    }
    if metadata.len() > LARGEST {
        return Err(io::Error::other("it is larger than 64 MiB"));
    }
    fs::read(path)
}

/// The text, up to the first byte that is not UTF-8, which is told too; a byte order mark is dropped.
fn decode_utf8(bytes: Vec<u8>) -> (String, Option<usize>) {
    let (mut text, bad) = match String::from_utf8(bytes) {
        Ok(text) => (text, false),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(&error.as_bytes()[..valid]);
            (text.into_owned(), true)
        }
    };
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    let end = text.len();
    (text, bad.then_some(end))
}

/// The files and globs that a file includes. What is no list of strings is said when it is decoded.
fn includes(text: &str) -> Vec<(Range<usize>, String)> {
    // Most files include nothing and need not be parsed for it.
    if !text.contains("include") {
        return Vec::new();
    }
    let (root, _) = DeTable::parse_recoverable(text);
    let include = root.get_ref().get("include").map(Spanned::get_ref);
    let list = include.and_then(DeValue::as_array);
    let entries = list.into_iter().flatten();
    entries.filter_map(|entry| Some((entry.span(), entry.get_ref().as_str()?.to_owned()))).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use proptest::prelude::*;

    use super::super::Faults;
    use super::*;

    /// A folder of files that goes away with the test.
    pub(crate) struct Folder(PathBuf);

    impl Folder {
        pub(crate) fn new(files: &[(&str, &str)]) -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let next = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("forebay-config-{}-{next}", std::process::id());
            let folder = Folder(std::env::temp_dir().join(name));
            for (name, text) in files {
                folder.write(name, text.as_bytes());
            }
            folder
        }

        fn write(&self, name: &str, bytes: &[u8]) {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().expect("in the folder")).expect("a folder");
            fs::write(path, bytes).expect("written");
        }

        pub(crate) fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        pub(in super::super) fn load(&self, name: &str) -> Loaded {
            let environment = |name: &str| match name {
                "HOST" => Some("gpu1:8000".to_owned()),
                "FOREBAY_ENV" => Some("prod".to_owned()),
                _ => None,
            };
            load(&self.0.join(name), &environment)
        }

        /// The faults, as if the folder were the current one.
        pub(in super::super) fn faults(&self, loaded: &Loaded) -> Vec<String> {
            let faults = Faults::from(loaded.faults.clone()).to_string();
            let folder = format!("{}/", self.0.display());
            faults.replace(&folder, "").lines().map(str::to_owned).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_configuration_comes_together_from_several_files() {
        let folder = Folder::new(&[
            (
                "main",
                "include = [\"d/*.toml\", \"e/${FOREBAY_ENV:-dev}.toml\", \"none/*\"]\n[server]\nthreads = 2\n[[key]]\nname = \"first\"\nsha256 = []",
            ),
            ("d/b.toml", "[pool.b]\nservers = [\"${HOST}\", \"$${HOST}:1\"]\n"),
            (
                "d/a.toml",
                "include = [\"deep/x\"]\n[pool.a]\nservers = [\"a:1\"]\n[[route]]\nname = \"r1\"\npath = \"/1\"",
            ),
            ("d/deep/x", "[model.m]\npool = \"b\"\n[[route]]\nname = \"r2\"\npath = \"/2\""),
            ("e/prod.toml", "[log]\nlevel = \"warn\"\n[[route]]\nname = \"r3\"\npath = \"/3\""),
        ]);
        let loaded = folder.load("main");
        assert_eq!(folder.faults(&loaded), ["main:6:10: the list is empty; at least one entry is needed"]);
        let files = loaded.sources.files().map(|file| file.strip_prefix(&folder.0));
        let files: Vec<_> = files.map(|file| file.expect("in the folder")).collect();
        let expected = ["main", "d/a.toml", "d/deep/x", "d/b.toml", "e/prod.toml"];
        assert_eq!(files, expected.map(Path::new));
        let config = &loaded.config;
        let routes = config.route.iter().map(|route| route.get_ref().name.get_ref().as_str());
        assert_eq!(routes.collect::<Vec<_>>(), ["r1", "r2", "r3"]);
        let servers = config.pool["b"].servers.get_ref();
        let addresses = servers.iter().map(|server| server.get_ref().address.to_string());
        assert_eq!(addresses.collect::<Vec<_>>(), ["gpu1:8000", "${HOST}:1"]);
        assert!(config.key.is_empty());
        let pool = config.model["m"].pool.span();
        assert_eq!(
            loaded.sources.fault(pool, "here").to_string(),
            format!("{}/d/deep/x:2:8: here", folder.0.display())
        );
        let declared = loaded.declared;
        assert!(declared.complete);
        assert_eq!(declared.routes.len(), 3);
    }

    #[test]
    fn what_cannot_be_included_is_said_where_it_was_asked_for() {
        let folder = Folder::new(&[
            ("main", "include = [\n\"none\",\n\"a\",\n\"./a\",\n\"main\",\n\"[\",\n\"${NONE}\",\n7,\n\"d\"]"),
            ("a", "include = [\"main\"]"),
            ("d/x", ""),
        ]);
        let loaded = folder.load("main");
        assert_eq!(
            folder.faults(&loaded),
            [
                "main:2:1: none does not exist",
                "main:4:1: ./a is included twice; the other include is at main:3:1",
                "main:5:1: main is included twice; it is the main file",
                "main:6:1: \"[\" is not a glob: invalid range pattern",
                "main:7:1: the environment has no `NONE`; set it, or write `${NONE:-default}`",
                "main:8:1: a string was expected, found an integer",
                "main:9:1: d: cannot be read: Is a directory (os error 21)",
                "a:1:12: main is included twice; it is the main file",
            ]
        );
        assert!(!loaded.declared.complete);
        let loaded = folder.load("none");
        assert_eq!(folder.faults(&loaded), ["none: cannot be read: No such file or directory (os error 2)"]);
    }

    #[test]
    fn six_faults_in_two_files_are_said_in_one_go() {
        let folder = Folder::new(&[
            ("main", "include = [\"more\"]\n[server]\nlisen = []\ndrain = \"30\"\n[pool.a]\nservers = [\"${GPU}\"]\n"),
            ("more", "[pool.a]\nservers = [\"a:1\"]\n[server]\n[model.m]\nowned_by = \"x\"\n"),
        ]);
        assert_eq!(
            folder.faults(&folder.load("main")),
            [
                "main:3:1: unknown key `lisen` in [server]; did you mean `listen`?",
                "main:4:9: \"30\" has no unit; write \"30s\"",
                "main:6:12: the environment has no `GPU`; set it, or write `${GPU:-default}`",
                "more:1:7: `a` is defined twice; the other is at main:5:7",
                "more:3:2: `server` is defined twice; the other is at main:2:2",
                "more:4:1: `pool` is missing in [model.m]",
            ]
        );
    }

    #[test]
    fn a_file_that_is_not_utf8_is_a_fault_at_the_first_bad_byte() {
        let folder = Folder::new(&[]);
        folder.write("main", b"\xef\xbb\xbf# \xc3\xa9\n[log]\n\xff\n[log");
        let loaded = folder.load("main");
        assert_eq!(folder.faults(&loaded), ["main:3:1: not UTF-8; save the file as UTF-8"]);
        assert!(!loaded.declared.complete);
    }

    #[test]
    fn a_thousand_faults_come_to_an_end() {
        let text: String = (0..1000).map(|n| format!("[model.m{n}]\nx = 1\n")).collect();
        let folder = Folder::new(&[("main", &text)]);
        let faults = folder.faults(&folder.load("main"));
        assert!(faults.len() > 100, "{}", faults.len());
    }

    const SAMPLE: &str = "[server]\nlisten = [\"127.0.0.1:80\"]\ndrain = \"5s\"\n\
        [pool.a]\nservers = [\"é:1\", { address = \"b:2\", weight = 1 }]\n[pool.a.health]\nrise = 1\n\
        [model.\"m\"]\npool = 'a'\n[[route]]\nname = \"\"\"r\"\"\"\npath = \"/${X:-y}\"\nmethods = [\n \"GET\",\n]\n\
        [[key]]\nname = \"k\"\nsha256 = [\"ab\"]\nexpires = 2027-01-01T00:00:00Z\n";

    fn check(bytes: &[u8]) {
        let folder = Folder::new(&[]);
        folder.write("main", bytes);
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<&str> = text.split('\n').collect();
        let loaded = folder.load("main");
        for place in loaded.faults.iter().filter_map(|fault| fault.place.as_ref()) {
            let line = lines.get(place.line - 1).expect("a line of the file");
            assert!(place.column <= line.chars().count() + 1, "{place}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_faults_within_the_file(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            check(&bytes);
        }

        #[test]
        fn random_toml_like_text_gives_faults_within_the_file(
            words in prop::collection::vec(prop::sample::select(vec![
                "[", "]", "[[", "]]", "{", "}", "=", ".", ",", "\"", "'", "\n", "\n", "#", " ", "é",
                "pool", "key", "model", "a", "name", "1", "${", "$${", "true", "1.5", "2027-01-01",
                "\"\"\"", "\\u00e9", "include", "server", "\r\n",
            ]), 0..40)
        ) {
            check(words.concat().as_bytes());
        }

        #[test]
        fn a_mutated_configuration_gives_faults_within_the_file(
            changes in prop::collection::vec((0..SAMPLE.len(), any::<u8>(), 0..3u8), 1..6)
        ) {
            let mut bytes = SAMPLE.as_bytes().to_vec();
            for (at, byte, change) in changes {
                let at = at.min(bytes.len() - 1);
                match change {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ => drop(bytes.drain(at..(at + usize::from(byte % 8)).min(bytes.len() - 1))),
                }
            }
            check(&bytes);
        }
    }
}
