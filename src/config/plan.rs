//! What runs: the configuration checked as a whole and compiled.
//!
//! A [`Plan`] never changes. A request pins the one it began under; a reload puts another in its place.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use log::LevelFilter;

use super::compile::compile;
use super::{Faults, Footprint, Listen};
use crate::access::{Keys, Models, Routes, key};
use crate::observe::Format;
use crate::observe::access_log::Destination;
use crate::pool::Settings;

/// A configuration, ready to run.
#[derive(Debug)]
pub struct Plan {
    /// The files it came from, the main one first.
    pub files: Vec<PathBuf>,
    /// What it was read from, files of secrets too, and how that looked.
    pub footprint: Footprint,
    /// When it was read, in seconds since the epoch.
    pub loaded_at: u64,
    /// The traffic listeners and what every connection shares.
    pub server: Server,
    /// The admin listener.
    pub admin: Admin,
    /// What is logged.
    pub log: Log,
    /// The memory for answers that are kept or being computed.
    pub cache: Cache,
    /// Host, path, method → route.
    pub routes: Routes,
    /// Credential → key.
    pub keys: Keys,
    /// The keys' names, in the file's order.
    pub key_names: Vec<Arc<str>>,
    /// Name → model.
    pub models: Models,
    /// The pools; a [`PoolId`] is a place here.
    pub pools: Vec<Arc<Settings>>,
}

/// The traffic listeners and what every connection shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where clients connect.
    pub listen: Vec<Listen>,
    /// Worker threads, at least one.
    pub threads: usize,
    /// The largest request body, in bytes.
    pub max_body: u64,
    /// The most client connections; 0: no limit.
    pub max_connections: usize,
    /// Whose forwarding headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// In which time a request header must be there.
    pub header_timeout: Duration,
    /// The longest silence while a body arrives.
    pub body_timeout: Duration,
    /// How long an idle client connection is kept.
    pub keepalive: Duration,
    /// How long clients are still accepted once the daemon is to stop.
    pub min_drain: Duration,
    /// How long requests may take once the daemon stops.
    pub drain: Duration,
    /// How long they may take once another process has taken over.
    pub drain_upgrade: Duration,
    /// Idle connections kept to engines, in all.
    pub upstream_idle: usize,
    /// Whether the files are read again as soon as one of them has changed.
    pub watch: bool,
}

/// The admin listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where the operator's tools connect.
    pub listen: Vec<Listen>,
    /// The digest of the token for calls that change something; `None`: such calls only over a unix socket.
    pub token: Option<key::Digest>,
}

/// The memory for answers that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cache {
    /// All that they take, kept or being computed, in bytes.
    pub memory: usize,
    /// The largest body that is kept, in bytes.
    pub max_body: usize,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The least urgent level that is said.
    pub level: LevelFilter,
    /// How lines are written, those of the access log too.
    pub format: Format,
    /// Where the access log goes.
    pub access: Destination,
}

// === impl Cache ===

impl Cache {
    /// The part of the memory for answers that are being computed, in bytes: a quarter, twice the largest body at least.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.memory / 4
    }

    /// The part for answers that are kept, in bytes.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.memory - self.under_way()
    }
}

// === impl Plan ===

impl Plan {
    /// Reads the file and all it includes, and checks it whole.
    ///
    /// # Errors
    /// Every fault there is.
    pub fn load(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, Faults> {
        let (plan, faults) = Self::read(path, environment);
        if faults.is_empty() { Ok(plan) } else { Err(faults) }
    }

    /// The same, with what the files gave even so; with faults it is no plan to run.
    #[must_use]
    pub fn read(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> (Self, Faults) {
        let (plan, faults) = compile(super::load(path, environment), environment);
        (plan, Faults::from(faults))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::source::tests::Folder;

    const A: &str = "0011223344556677001122334455667700112233445566770011223344556677";
    const B: &str = "8899aabbccddeeff8899aabbccddeeff8899aabbccddeeff8899aabbccddeeff";
    /// A pool `p` and a model `m` on it, beside which the cases stand.
    const REST: &str = "\n[pool.p]\nservers = [\"a:1\"]\n[model.m]\npool = \"p\"\n";

    /// What is wrong with these files, `main` and `more`, one line a fault.
    fn faults_of(main: &str, more: &str) -> Vec<String> {
        let folder = Folder::new(&[("main", main), ("more", more)]);
        let (plan, faults) = compile(folder.load("main"), &|_| None);
        let folder = plan.files[0].parent().expect("a folder").display().to_string();
        Faults::from(faults).to_string().replace(&format!("{folder}/"), "").lines().map(str::to_owned).collect()
    }

    fn faults(text: &str) -> Vec<String> {
        faults_of(&format!("{text}{REST}"), "")
    }

    fn key(lines: &str) -> String {
        format!("[[key]]\nname = \"k\"\nsha256 = \"{A}\"\n{lines}")
    }

    #[test]
    fn what_is_in_itself_right_and_together_wrong_is_said_where_it_stands() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            // listeners
            (
                "[server]\nlisten = [\"127.0.0.1:1\", \"127.0.0.1:1\"]",
                &["main:2:26: the listener 127.0.0.1:1 stands twice, first at main:2:11"],
            ),
            (
                "[server]\nlisten = [\"unix:/a\"]\n[admin]\nlisten = \"unix:/a\"",
                &["main:4:10: the listener unix:/a stands twice, first at main:2:11"],
            ),
            (
                "[server]\nlisten = [\"127.0.0.1:9180\"]",
                &["main:2:11: the listener 127.0.0.1:9180 stands twice; the other is a default"],
            ),
            ("[server]\nlisten = [\"127.0.0.1:0\", \"127.0.0.1:0\"]", &[]),
            // pools
            (
                "[pool.x]\nservers = [\"a:1\", \"b:1\", { address = \"a:1\" }]",
                &["main:2:38: the server a:1 stands twice, first at main:2:12"],
            ),
            (
                "[pool.x]\nservers = [{ address = \"a:1\", name = \"g\" }, { address = \"b:1\", name = \"g\" }]",
                &["main:2:71: the server name g stands twice, first at main:2:38"],
            ),
            (
                "[pool.x]\nservers = [{ address = \"a:1\", name = \"b:1\" }, \"b:1\"]",
                &["main:2:38: the server name b:1 is another server's address"],
            ),
            ("[pool.x]\nservers = [{ address = \"a:1\", name = \"a:1\" }, \"b:1\"]", &[]),
            (
                "[pool.x]\nservers = [{ address = \"a:1\", name = \"\" }]",
                &["main:2:38: a server's name is empty; leave it out to name the server by its address"],
            ),
            (
                "[pool.x]\nservers = [{ address = \"a:1\", weight = 0 }, { address = \"b:1\", weight = 0 }]",
                &["main:2:11: the weights sum to zero, so no server is ever used; give one a weight"],
            ),
            ("[pool.x]\nservers = [{ address = \"a:1\", weight = 0 }, { address = \"b:1\", backup = true }]", &[]),
            (
                "[pool.x]\nservers = [{ address = \"a:1\", weight = 10001 }]\n[pool.x.queue]\nsize = 9",
                &[
                    "main:2:24: a server's weight is at most 10000",
                    "main:3:1: no server of this pool has a limit, so nothing ever waits; give the pool a `max_in_flight`",
                ],
            ),
            ("[pool.x]\nservers = [{ address = \"a:1\", max_in_flight = 1 }]\n[pool.x.queue]", &[]),
            (
                "[cache]\nmemory = \"7MiB\"",
                &["main:2:10: `memory` is less than 8 times `max_body`; write more, or a smaller `max_body`"],
            ),
            (
                "[pool.x]\nservers = [\"a:1\"]\nhost = \"a b\"\npath_prefix = \"api\"\nhealth.path = \"/a?b\"",
                &[
                    "main:3:8: `host` is not a host; write such as \"api.example.com\"",
                    "main:4:15: `path_prefix` must begin with a slash; write \"/api\"",
                    "main:5:15: `path` is not a path: white space, `?`, `#` and what is not ASCII cannot be in it",
                ],
            ),
            ("[pool.x]\nservers = [\"a:1\"]\nhost = \"\"\npath_prefix = \"/\"\nhealth.path = \"\"", &[]),
            (
                "[pool.\"x\\u001b\"]\nservers = [{ address = \"a:1\", name = \"g\\n\" }]\n[model.\"y\\t\"]\npool = \"p\"",
                &[
                    "main:1:7: the pool's name has a control character in it",
                    "main:2:38: the server's name has a control character in it",
                    "main:3:8: the model's name has a control character in it",
                ],
            ),
            (
                "[pool.x]\nservers = [\"a:1\"]\nhost = \"u@a\"\npath_prefix = \"/é\"\nset_headers = { X-A = \"é\", x-b = \"1\", X-B = \"2\" }\nremove_headers = [\"x-a\"]",
                &[
                    "main:3:8: `host` is not a host; write such as \"api.example.com\"",
                    "main:4:15: `path_prefix` is not a path: white space, `?`, `#` and what is not ASCII cannot be in it",
                    "main:5:23: a header's value is one line of visible ASCII characters",
                    "main:5:28: the header x-b stands twice, first at main:5:39",
                    "main:6:19: the header x-a stands twice, first at main:5:17",
                ],
            ),
            (
                "[pool.x]\nservers = [\"unix:/a\", \"b:1\"]\nhealth.port = 80",
                &["main:3:15: the probes of unix:/a cannot go to another port; write 0"],
            ),
            (
                "[pool.x]\nservers = [\"a:1\"]\napi_key = \"fb-clear\"\nset_headers = { host = \"a\", te = \"b\", \"x y\" = \"c\", x = \"\\u0000\" }\nremove_headers = [\"x-a\", \"Upgrade\"]",
                &[
                    "main:3:11: `api_key`: a secret cannot stand here in clear text; write \"${NAME}\" for a variable of the environment, \"file:/path\", or \"credential:NAME\" for one of systemd's",
                    "main:4:17: what engines get as `host` is the pool's `host`",
                    "main:4:29: \"te\" is about the connection, and forebay's own to write",
                    "main:4:39: \"x y\" is not a header's name",
                    "main:4:56: a header's value is one line of visible ASCII characters",
                    "main:5:26: \"Upgrade\" is about the connection, and forebay's own to write",
                ],
            ),
            (
                "[pool.x]\nservers = [\"a:1\"]\napi_key = \"${HOST}\"\nset_headers = { Authorization = \"Basic x\" }",
                &["main:4:17: the pool has an `api_key`, which is sent as `authorization`; write one of them"],
            ),
            // models
            ("[model.x]\npool = \"pp\"", &["main:2:8: no pool is called \"pp\"; did you mean `p`?"]),
            ("[model.x]\npool = \"zebra\"", &["main:2:8: no pool is called \"zebra\"; write `p`"]),
            (
                "[model.\"a*b\"]\npool = \"p\"\n[model.\"\"]\npool = \"p\"",
                &[
                    "main:1:8: a model's name must not be empty and may have a `*` at its end only",
                    "main:3:8: a model's name must not be empty and may have a `*` at its end only",
                ],
            ),
            ("[model.\"*\"]\npool = \"p\"", &[]),
            // routes
            (
                "[[route]]\nname = \"r\"\npath = \"/*\"",
                &["main:1:1: the route has neither `by` nor `pool`; write `by = \"model\"` or `pool = \"NAME\"`"],
            ),
            (
                "[[route]]\nname = \"r\"\npath = \"/*\"\nby = \"model\"\npool = \"p\"",
                &["main:1:1: the route has both `by` and `pool`; write `by = \"model\"` or `pool = \"NAME\"`"],
            ),
            (
                "[[route]]\nname = \"r\"\npath = \"x\"\npool = \"q\"",
                &[
                    "main:3:8: `path` must begin with a slash; write \"/x\"",
                    "main:4:8: no pool is called \"q\"; write `p`",
                ],
            ),
            (
                "[[route]]\nname = \"r\"\npath = \"/*/x\"\npool = \"p\"",
                &["main:3:8: `path` may have one `*`, at its end"],
            ),
            (
                "[[route]]\nname = \"r\"\npath = \"/a/*\"\npool = \"p\"\nstrip_prefix = \"/b\"",
                &["main:5:16: `strip_prefix` must be the first segments of the route's path, which is \"/a/*\""],
            ),
            (
                "[[route]]\nname = \"r\"\npath = \"/abc/*\"\npool = \"p\"\nstrip_prefix = \"/a\"",
                &["main:5:16: `strip_prefix` must be the first segments of the route's path, which is \"/abc/*\""],
            ),
            ("[[route]]\nname = \"r\"\npath = \"/a/*\"\npool = \"p\"\nstrip_prefix = \"/a/\"", &[]),
            (
                "[[route]]\nname = \"r\"\npath = \"/a\"\npool = \"p\"\nhost = \"a.example:80\"",
                &["main:5:8: `host` is not a host; write \"api.example.com\" or \"*.example.com\", without a port"],
            ),
            (
                "[[route]]\nname = \"r\"\npath = \"/a\"\npool = \"p\"\nhost = \"[::1]\"\nmethods = [\"get\", \"FETCH\"]",
                &[
                    "main:6:12: \"get\" is not a method; did you mean `GET`?",
                    "main:6:19: \"FETCH\" is not a method; did you mean `PATCH`?",
                ],
            ),
            (
                "[[route]]\nname = \"r\"\npath = \"/a\"\npool = \"p\"\n[[route]]\nname = \"r\"\npath = \"/b\"\nby = \"model\"",
                &["main:6:8: the route r stands twice, first at main:2:8"],
            ),
            (
                "[[route]]\nname = \"\"\npath = \"/a\"\npool = \"p\"\nmethods = []",
                &[
                    "main:1:1: `methods` is empty, so nothing would be served; leave it out to serve any",
                    "main:2:8: the route's name is empty; logs and metrics call it so",
                ],
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(faults(text), *expected, "{text}");
        }
    }

    #[test]
    fn what_no_machine_gives_and_no_one_could_ask_for_is_said() {
        for (text, expected) in [
            ("[server]\nthreads = 100000", "main:2:11: `threads` is more than any machine gives; write 1024 at most"),
            (
                "[server]\nupstream_idle = 9000000000000",
                "main:2:17: `upstream_idle` is more than any machine gives; write 1000000 at most",
            ),
            (
                "[model.\"a*b\"]\npool = \"p\"",
                "main:1:8: a model's name must not be empty and may have a `*` at its end only",
            ),
        ] {
            assert_eq!(faults(text), [expected], "{text}");
        }
        assert!(faults("[model.\"modèlé\"]\npool = \"p\"\n[model.\"é*\"]\npool = \"p\"").is_empty());
    }

    #[test]
    fn a_key_that_leads_nowhere_is_said() {
        let nothing = "main:2:8: the key \"k\" can ask for nothing: no model and no route by pool admits it";
        let route = |lines: &str| format!("\n[[route]]\nname = \"chat\"\npath = \"/v1/*\"\n{lines}");
        let cases = [
            (key("models = [\"*\"]"), vec![]),
            (key(""), vec![nothing]),
            (key("models = [\"n\"]"), vec![nothing]),
            (key("models = [\"*\"]\nroutes = []"), vec![nothing]),
            (key("models = [\"n\"]\ndisabled = true"), vec![nothing]),
            (key("") + &route("pool = \"p\""), vec![]),
            (key("models = [\"*\"]\nroutes = [\"chat\"]") + &route("by = \"model\""), vec![]),
            // The route that is there without any.
            (key("models = [\"*\"]\nroutes = [\"default\"]"), vec![]),
            (
                key("models = [\"*\"]\nroutes = [\"default\"]") + &route("by = \"model\""),
                vec!["main:5:11: no route is called \"default\"; write `chat`"],
            ),
            // What is wrong with the key itself is said alone.
            (key("models = [\"[\"]"), vec!["main:4:11: \"[\" is not a glob: invalid range pattern"]),
            (
                key("models = [\"*\"]\nroutes = [\"chta\"]") + &route("by = \"model\""),
                vec!["main:5:11: no route is called \"chta\"; did you mean `chat`?"],
            ),
            (
                format!("[[key]]\nname = \"\"\nsha256 = \"{B}\"\nmodels = [\"m\"]"),
                vec!["main:2:8: the key's name is empty; logs and metrics call it so"],
            ),
            (
                format!("{}\n{}", key("models = [\"*\"]"), key("models = [\"m\"]").replace(A, B)),
                vec!["main:6:8: the key k stands twice, first at main:2:8"],
            ),
            (
                format!("{}\n{}", key("models = [\"*\"]"), key("models = [\"m\"]").replace("\"k\"", "\"l\"")),
                vec!["main:7:10: the key \"k\" has the same secret"],
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(faults(&text), expected, "{text}");
        }
    }

    #[test]
    fn names_are_known_over_all_files_and_doubles_too() {
        let main = format!("include = [\"more\"]\n{}{REST}", key("models = [\"*\"]\nroutes = [\"r\"]"));
        let more = format!(
            "[[route]]\nname = \"r\"\npath = \"/*\"\npool = \"q\"\n[pool.q]\nservers = [\"a:1\"]\n[model.n]\npool = \"p\"\n{}",
            key("models = [\"n\"]")
        );
        assert_eq!(
            faults_of(&main, &more),
            ["more:10:8: the key k stands twice, first at main:3:8", "more:11:10: the key \"k\" has the same secret",]
        );
    }

    #[test]
    fn what_refers_to_something_faulty_is_not_a_fault_of_its_own() {
        let text =
            "[pool.x]\nservers = []\n[model.y]\npool = \"x\"\n[[route]]\nname = \"r\"\npath = \"/*\"\npool = \"x\"";
        assert_eq!(faults(text), ["main:2:11: the list is empty; at least one entry is needed"]);
        let hidden =
            format!("include = [\"none\"]\n[model.y]\npool = \"elsewhere\"\n{}{REST}", key("routes = [\"elsewhere\"]"));
        assert_eq!(faults_of(&hidden, ""), ["main:1:12: none does not exist"]);
    }

    #[test]
    fn a_file_without_a_pool_serves_nothing() {
        let said = "no pool is defined, so nothing could be served; add [pool.NAME] with its servers";
        assert_eq!(faults_of("", ""), [said]);
        assert_eq!(faults_of("[log]\nlevel = \"debug\"", ""), [said]);
    }
}
