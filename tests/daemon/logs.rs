//! Where the logs go, and in which form.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::configuration::Configuration;
use crate::harness::{Engine, Folder, Forebay, forebay, until};

/// A daemon whose access log is this file of its folder, with these further lines in `[log]`.
struct Logging {
    forebay: Forebay,
    base: Configuration,
}

impl Logging {
    fn start(engine: &Engine, file: &str) -> Self {
        let base = Configuration::of(&[&engine.address]);
        let folder = Folder::new();
        let path = folder.path(file);
        folder.write("forebay.toml", &to(&base, &path, "").to_string());
        let forebay = Forebay::ready_with(folder, "forebay.toml");
        Self { forebay, base }
    }

    /// Asks once, under this id.
    fn ask(&self, id: &str) {
        let key = format!("authorization: Bearer {}", crate::configuration::SECRET);
        let headers = [&*key, &format!("x-request-id: {id}")];
        let body = crate::http::chat("m", "word", false);
        let answer = self.forebay.client().ask("POST", "/v1/chat/completions", &headers, &body);
        assert_eq!(answer.expect("an answer").status, 200);
    }

    /// The lines of a file of the folder.
    fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.forebay.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until a file's last line is about this request.
    fn until_logged(&self, name: &str, id: &str) -> String {
        until(format!("{id} in {name}"), || self.lines(name).pop().filter(|line| line.contains(id)))
    }

    fn set(&self, access: &str, more: &str) {
        self.forebay.rewrite(&to(&self.base, access, more));
    }
}

fn to(base: &Configuration, access: &str, more: &str) -> Configuration {
    base.clone().more(&format!("[log]\naccess = {access:?}\n{more}"))
}

#[test]
fn the_access_log_goes_to_its_file_and_not_to_stderr() {
    let engine = Engine::start("e", &[]);
    let logging = Logging::start(&engine, "access.log");
    logging.ask("one");
    let record: Value = serde_json::from_str(&logging.until_logged("access.log", "one")).expect("JSON");
    assert_eq!((&record["request_id"], &record["status"]), (&"one".into(), &200.into()));
    logging.ask("two");
    logging.until_logged("access.log", "two");
    assert_eq!(logging.lines("access.log").len(), 2);
    assert!(!logging.forebay.log().contains("duration_ms"), "{}", logging.forebay.log());
    assert!(logging.forebay.log().contains(" serves"), "the process log is on stderr as before");
}

#[test]
fn a_file_that_is_there_is_added_to() {
    let engine = Engine::start("e", &[]);
    let folder = Folder::with(&[("access.log", "a line from before\n")]);
    let configuration = to(&Configuration::of(&[&engine.address]), &folder.path("access.log"), "");
    let forebay = Forebay::ready(&configuration);
    assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
    let text = until("a second line", || Some(folder.read("access.log")).filter(|text| text.lines().count() == 2));
    assert!(text.starts_with("a line from before\n{"), "{text}");
}

#[test]
fn a_file_that_was_moved_away_is_made_anew_on_a_reload_and_nothing_is_lost() {
    let engine = Engine::start("e", &[]);
    let logging = Logging::start(&engine, "access.log");
    let path = logging.forebay.path("access.log");
    // With a fault in the configuration too: whoever rotates logs does not know of it.
    for (n, bad) in [(1, false), (2, true), (3, false)] {
        logging.ask(&format!("before-{n}"));
        let rotated = format!("access.log.{n}");
        fs::rename(&path, logging.forebay.path(&rotated)).expect("moved");
        logging.ask(&format!("between-{n}"));
        logging.until_logged(&rotated, &format!("between-{n}"));
        if bad {
            logging.forebay.write("forebay.toml", "[server]\nlisen = []\n");
        } else {
            logging.set(&path, "");
        }
        logging.forebay.reload();
        assert!(Path::new(&path).exists());
        logging.ask(&format!("after-{n}"));
        logging.until_logged("access.log", &format!("after-{n}"));
        assert_eq!(logging.forebay.reloads("failure"), if n > 1 { 1.0 } else { 0.0 });
    }
    let all: Vec<String> = ["access.log.1", "access.log.2", "access.log.3", "access.log"]
        .iter()
        .flat_map(|name| logging.lines(name))
        .collect();
    assert_eq!(all.len(), 9, "{all:#?}");
    assert!(all.iter().all(|line| serde_json::from_str::<Value>(line).is_ok()), "no line is torn");
}

#[test]
fn rotation_under_load_loses_no_line() {
    let engine = Engine::start("e", &[]);
    let logging = Logging::start(&engine, "access.log");
    let path = logging.forebay.path("access.log");
    let mut asked = 0;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = logging.forebay.client();
                    (0..100).filter(|_| client.chat("m").expect("an answer").status == 200).count()
                })
            })
            .collect();
        for n in 0..5 {
            fs::rename(&path, logging.forebay.path(&format!("access.log.{n}"))).expect("moved");
            logging.forebay.reload();
        }
        asked = clients.into_iter().map(|client| client.join().expect("no failure")).sum();
    });
    assert_eq!(asked, 400);
    let names = ["access.log", "access.log.0", "access.log.1", "access.log.2", "access.log.3", "access.log.4"];
    let lines = || names.iter().flat_map(|name| logging.lines(name)).collect::<Vec<String>>();
    let all = until("all lines", || Some(lines()).filter(|all| all.len() >= 400));
    assert!(all.iter().all(|line| serde_json::from_str::<Value>(line).is_ok()), "no line is torn");
    let ids: std::collections::BTreeSet<&String> = all.iter().collect();
    assert_eq!((all.len(), ids.len()), (400, 400));
}

/// Where nobody can make a file.
const NOWHERE: &str = "/proc/access.log";

#[test]
fn a_file_that_cannot_be_opened_ends_the_start_with_one_clear_line() {
    let folder = Folder::new();
    folder.write("forebay.toml", &to(&Configuration::of(&["127.0.0.1:1"]), NOWHERE, "").to_string());
    let said = forebay(&["run", "-c", &folder.path("forebay.toml")]);
    assert_eq!((said.code, &*said.stdout), (Some(1), ""));
    let why = "No such file or directory (os error 2)";
    assert_eq!(said.stderr, format!("forebay: cannot write the access log to {NOWHERE}: {why}\n"));
}

#[test]
fn what_can_be_no_log_file_is_a_fault_with_its_place() {
    let folder = Folder::with(&[("folder/x", "")]);
    let pipe = folder.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("`mkfifo` runs").success());
    let none = format!("the folder {} does not exist; make it first", folder.path("none"));
    let no_file = |path: &str| format!("{path} is not a file; write \"stderr\" to pipe the log");
    for (path, why) in [
        (folder.path("none/access.log"), none),
        (folder.path("folder"), no_file(&folder.path("folder"))),
        (pipe.clone(), no_file(&pipe)),
    ] {
        let text = to(&Configuration::of(&["127.0.0.1:1"]), &path, "").to_string();
        folder.write("forebay.toml", &text);
        let line = text.lines().position(|line| line.starts_with("access = ")).expect("a line") + 1;
        let file = folder.path("forebay.toml");
        for command in ["check", "run"] {
            let said = forebay(&[command, "-c", &file]);
            assert_eq!((said.code, &*said.stderr), (Some(2), &*format!("{file}:{line}:10: {why}\n")), "{command}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_opened_on_a_reload_is_a_fault_and_all_stays_as_it_was() {
    let engine = Engine::start("e", &[]);
    let logging = Logging::start(&engine, "access.log");
    for (bad, why) in [
        ("/no/folder/access.log", "the folder /no/folder does not"),
        (NOWHERE, "cannot write the access log to /proc/"),
    ] {
        logging.set(bad, "level = \"debug\"\nformat = \"text\"\n[model.new]\npool = \"p\"");
        logging.forebay.reload();
        assert!(logging.forebay.until_said(why).starts_with("not reloaded: "));
        let faults = logging.forebay.status()["config"]["faults"].clone();
        assert!(faults[0].as_str().is_some_and(|fault| fault.contains(why)), "{faults}");
        logging.ask(&bad.replace('/', "-"));
        let line = logging.until_logged("access.log", &bad.replace('/', "-"));
        assert!(line.starts_with('{'), "{line}");
    }
    assert_eq!(logging.forebay.metric("forebay_config_last_reload_successful"), Some(0.0));
    assert_eq!(
        logging.forebay.messages().iter().filter(|said| said.contains("serves")).count(),
        1,
        "all of it is JSON"
    );
}

#[test]
fn a_disk_that_takes_nothing_holds_up_no_request_and_is_told_of_once() {
    let engine = Engine::start("e", &[]);
    let forebay = Forebay::ready(&to(&Configuration::of(&[&engine.address]), "/dev/full", ""));
    let mut client = forebay.client();
    for _ in 0..5 {
        for _ in 0..20 {
            assert_eq!(client.chat("m").expect("an answer").status, 200);
        }
        forebay.until_said("log lines are lost: No space left on device");
    }
    let said = forebay.messages().iter().filter(|said| said.contains("lost")).count();
    assert_eq!(said, 1);
    assert!(!forebay.log().contains("duration_ms"));
}

#[test]
fn the_last_lines_are_in_the_file_when_the_daemon_has_ended() {
    let engine = Engine::start("e", &[]);
    for _ in 0..3 {
        let mut logging = Logging::start(&engine, "access.log");
        // With nothing left to say on stderr, only the file is waited for.
        logging.set(&logging.forebay.path("access.log"), "level = \"error\"");
        logging.forebay.reload();
        logging.ask("the-last");
        logging.forebay.signal("TERM");
        assert_eq!(logging.forebay.until_ended(), Some(0));
        assert!(logging.lines("access.log").iter().any(|line| line.contains("the-last")));
    }
}

#[test]
fn the_form_of_both_logs_changes_with_a_reload() {
    let engine = Engine::start("e", &[]);
    let logging = Logging::start(&engine, "access.log");
    let path = logging.forebay.path("access.log");
    logging.ask("json");
    assert!(logging.until_logged("access.log", "json").starts_with('{'));
    logging.set(&path, "format = \"text\"");
    logging.forebay.reload();
    logging.ask("text");
    let line = logging.until_logged("access.log", "text");
    assert!(
        line.contains(" 200 POST /v1/chat/completions ") && line.ends_with("client=127.0.0.1 request_id=text"),
        "{line}"
    );
    assert!(line.contains(&format!(" model=m pool=p server={} ", engine.address)), "{line}");
    let said = until("a line for people", || {
        logging.forebay.log().lines().last().filter(|line| line.contains("configuration reloaded: ")).map(str::to_owned)
    });
    assert!(said.ends_with(" INFO  configuration reloaded: changed table log"), "{said}");
    logging.set("stderr", "format = \"text\"");
    logging.forebay.reload();
    logging.ask("among-the-others");
    until("a line on stderr", || logging.forebay.log().contains("request_id=among-the-others").then_some(()));
    logging.set("off", "format = \"json\"");
    logging.forebay.reload();
    logging.ask("nowhere");
    logging.set(&path, "");
    logging.forebay.reload();
    logging.ask("back");
    assert!(logging.until_logged("access.log", "back").starts_with('{'));
    let all = format!("{}{}", logging.forebay.log(), logging.lines("access.log").join("\n"));
    assert!(!all.contains("nowhere"));
}

#[test]
fn a_daemon_may_speak_to_people_from_the_start() {
    let engine = Engine::start("e", &[]);
    let forebay = Forebay::ready(&Configuration::of(&[&engine.address]).more("[log]\nformat = \"text\""));
    assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
    let log = until("a record", || Some(forebay.log()).filter(|log| log.contains(" 200 POST ")));
    assert!(log.lines().all(|line| !line.starts_with('{')), "{log}");
}
