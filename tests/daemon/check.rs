//! Commands that read a configuration or make one, and end.

use std::fs;
use std::path::Path;

use crate::configuration::{Configuration, SECRET, digest};
use crate::harness::{Folder, Forebay, Said, forebay, with_environment};

/// The faults of this main file and another one, without the folder's path.
fn faults(main: &str, other: &str) -> (Option<i32>, Vec<String>) {
    let folder = Folder::with(&[("main.toml", main), ("other.toml", other)]);
    let said = forebay(&["check", "-c", &folder.path("main.toml")]);
    assert_eq!(said.stdout, "", "a faulty configuration has no summary");
    let faults = said.stderr.replace(&folder.path(""), "");
    (said.code, faults.lines().map(str::to_owned).collect())
}

const FAULTY_MAIN: &str = r#"include = ["other.toml"]

[server]
lisen = ["127.0.0.1:8080"]
drain = "30"
threads = "two"

[pool.llama]
servers = ["10.0.0.11:8000", "10.0.0.11:8000"]

[model."llama-*"]
pool = "lama"

[[key]]
name = "nobody"
sha256 = "this-is-the-secret-itself"
"#;

const FAULTY_OTHER: &str = r#"[pool.llama]
servers = ["${NOT_SET_ANYWHERE}:8000"]

[pool.idle]
servers = [{ address = "10.0.0.12:8000", weight = 0 }]

[pool.idle.health]
interval = "5 parsecs"

[[key]]
name = "useless"
sha256 = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
models = ["gpt-*"]
"#;

#[test]
fn every_fault_in_two_files_is_said_in_one_go_with_its_position() {
    let (code, said) = faults(FAULTY_MAIN, FAULTY_OTHER);
    assert_eq!(code, Some(2));
    assert_eq!(
        said,
        [
            "main.toml:4:1: unknown key `lisen` in [server]; did you mean `listen`?",
            "main.toml:5:9: \"30\" has no unit; write \"30s\"",
            "main.toml:6:11: an integer was expected, found a string",
            "main.toml:9:30: the server 10.0.0.11:8000 stands twice, first at main.toml:9:12",
            "main.toml:12:8: no pool is called \"lama\"; did you mean `llama`?",
            "main.toml:16:10: not a digest; write the SHA-256 of the secret as 64 hex digits, as `forebay key new` prints it",
            "other.toml:1:7: `llama` is defined twice; the other is at main.toml:8:7",
            "other.toml:2:12: the environment has no `NOT_SET_ANYWHERE`; set it, or write `${NOT_SET_ANYWHERE:-default}`",
            "other.toml:5:11: the weights sum to zero, so no server is ever used; give one a weight",
            "other.toml:8:12: \"5 parsecs\" has a unit that is not known; known are ms, s, m, h, as in \"5s\"",
            "other.toml:11:8: the key \"useless\" can ask for nothing: no model and no route by pool admits it",
        ]
    );
}

#[test]
fn a_secret_in_a_digests_place_is_never_echoed() {
    for (key, value) in [
        ("sha256", "\"sk-secret\""),
        ("sha256", "[\"sk-secret\"]"),
        ("sha256", "{ digest = \"sk-secret\" }"),
        ("sha257", "\"sk-secret\""),
        ("sha256", "\"sk-secret"),
        ("sha256", "sk-secret"),
        ("sha256", "\"${sk-secret}\""),
        ("sha256", "\"sk-secret-${NONE}\""),
    ] {
        let (code, said) = faults(&format!("[[key]]\nname = \"k\"\n{key} = {value}\n"), "");
        assert_eq!(code, Some(2));
        let said = said.join("\n");
        assert!(!said.contains("sk-secret"), "{key} = {value}: {said}");
    }
}

#[test]
fn run_refuses_what_check_refuses_in_the_same_words() {
    let folder = Folder::with(&[("main.toml", FAULTY_MAIN), ("other.toml", FAULTY_OTHER)]);
    let file = folder.path("main.toml");
    let (check, run) = (forebay(&["check", "-c", &file]), forebay(&["run", "-c", &file]));
    assert_eq!((run.code, &run.stderr), (Some(2), &check.stderr));
    assert_eq!(run.stdout, "");
}

#[test]
fn a_good_configuration_is_summed_up_on_one_screen() {
    let configuration = Configuration::of(&["127.0.0.1:1", "127.0.0.1:2"])
        .pool("raw", &["localhost:3"], "path = \"\"")
        .more("[[route]]\nname = \"chat\"\npath = \"/v1/*\"\nby = \"model\"")
        .more("[[route]]\nname = \"raw\"\npath = \"/raw/*\"\npool = \"raw\"");
    let folder = Folder::with(&[("good.toml", &configuration.to_string())]);
    let Said { code, stdout, stderr } = forebay(&["check", "-c", &folder.path("good.toml")]);
    assert_eq!((code, &*stderr), (Some(0), ""), "{stdout}");
    for line in [
        "The configuration is good.".to_owned(),
        format!("  files    {}", folder.path("good.toml")),
        "  listen   127.0.0.1:0".to_owned(),
        "  pool     p: 127.0.0.1:1, 127.0.0.1:2; probed by GET /v1/models".to_owned(),
        "  pool     raw: localhost:3; probed by TCP connect".to_owned(),
        "  model    m* by pool p".to_owned(),
        "  route    chat: /v1/* by model".to_owned(),
        "  route    raw: /raw/* to pool raw".to_owned(),
        "  keys     tester".to_owned(),
    ] {
        assert!(stdout.lines().any(|said| said == line), "{line:?} in:\n{stdout}");
    }
    assert!(!stdout.contains(SECRET) && !stdout.contains(&digest(SECRET)));
    assert!(stdout.lines().count() <= 24);
}

#[test]
fn a_configuration_of_a_hundred_models_still_fits_a_screen() {
    let mut configuration = Configuration::of(&["127.0.0.1:1"]);
    for n in 0..100 {
        configuration =
            configuration.model(&format!("model-{n}"), "p").key(&format!("key-{n}"), &n.to_string(), "[\"*\"]");
    }
    let folder = Folder::with(&[("good.toml", &configuration.to_string())]);
    let said = forebay(&["check", "-c", &folder.path("good.toml")]);
    assert_eq!(said.code, Some(0));
    assert!(said.stdout.lines().count() <= 24, "{}", said.stdout);
    assert!(said.stdout.contains("\n  model    and 93 more\n"), "{}", said.stdout);
}

#[test]
fn every_shipped_configuration_is_good() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let Ok(files) = fs::read_dir(folder) else { return };
    for file in files.filter_map(|file| Some(file.ok()?.path())) {
        if file.extension().is_some_and(|extension| extension == "toml") {
            let text = fs::read_to_string(&file).expect("readable");
            let named: Vec<&str> = text.split("${").skip(1).filter_map(|rest| rest.split(['}', ':']).next()).collect();
            let values: Vec<(&str, &str)> =
                named.iter().filter(|name| std::env::var(name).is_err()).map(|name| (*name, "value")).collect();
            // What is included by another file need not be whole by itself.
            let said = with_environment(&["check", "-c", &file.display().to_string()], &values);
            assert_eq!((said.code, &*said.stderr), (Some(0), ""), "{}", file.display());
        }
    }
}

#[test]
fn the_environment_is_chosen_by_flag_or_variable_and_has_a_default() {
    let folder = Folder::with(&[
        ("main.toml", "include = [\"env/${FOREBAY_ENV:-dev}.toml\"]\n"),
        ("env/dev.toml", &Configuration::of(&["127.0.0.1:1"]).to_string()),
        ("env/prod.toml", &Configuration::of(&["127.0.0.1:2"]).to_string()),
    ]);
    let file = folder.path("main.toml");
    let prod: &[(&str, &str)] = &[("FOREBAY_ENV", "prod")];
    for (more, variables, server) in [
        (vec![], &[][..], "127.0.0.1:1;"),
        (vec!["--env", "prod"], &[], "127.0.0.1:2;"),
        (vec![], prod, "127.0.0.1:2;"),
        (vec!["--env", "dev"], prod, "127.0.0.1:1;"),
    ] {
        let said = with_environment(&[vec!["check", "-c", &file], more].concat(), variables);
        assert!(said.stdout.contains(server), "{said:?}");
        assert!(said.stdout.contains("env/"), "the included file is named: {said:?}");
    }
    let said = forebay(&["check", "-c", &file, "--env", "none"]);
    let expected = format!("{file}:1:12: {} does not exist\n", folder.path("env/none.toml"));
    assert_eq!((said.code, said.stderr), (Some(2), expected));
}

#[test]
fn a_file_that_cannot_be_read_is_one_line() {
    let folder = Folder::new();
    for command in ["check", "run"] {
        let none = folder.path("none.toml");
        let said = forebay(&[command, "-c", &none]);
        assert_eq!((said.code, &*said.stdout), (Some(2), ""));
        assert_eq!(said.stderr, format!("{none}: cannot be read: No such file or directory (os error 2)\n"));
        let said = forebay(&[command, "-c", &folder.path("")]);
        assert_eq!((said.code, said.stderr.lines().count()), (Some(2), 1), "{}", said.stderr);
    }
}

#[test]
fn an_empty_file_is_refused_for_it_would_serve_nothing() {
    let (code, said) = faults("", "");
    assert_eq!(code, Some(2));
    assert_eq!(said, ["no pool is defined, so nothing could be served; add [pool.NAME] with its servers"]);
}

#[test]
fn wrong_usage_exits_with_2_and_says_how_to_use_it() {
    for arguments in [
        &[][..],
        &["serve"],
        &["run", "--config"],
        &["run", "extra"],
        &["check", "--verbose"],
        &["key"],
        &["key", "new"],
        &["key", "new", ""],
        &["key", "new", "a", "--model", "[a"],
        &["engine", "--listen", "nowhere"],
        &["engine", "--tokens-per-second", "-1"],
    ] {
        let said = forebay(arguments);
        assert_eq!(said.code, Some(2), "{arguments:?}: {said:?}");
        assert_eq!(said.stdout, "", "{arguments:?}");
        assert!(!said.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn version_says_the_version_and_the_revision() {
    let said = forebay(&["--version"]);
    let words: Vec<&str> = said.stdout.split_whitespace().collect();
    assert_eq!((said.code, words.len()), (Some(0), 3), "{said:?}");
    assert_eq!(words[..2], ["forebay", env!("CARGO_PKG_VERSION")]);
    assert!(words[2].starts_with('(') && words[2].ends_with(')') && words[2].len() > 2);
}

#[test]
fn help_of_each_command_has_an_example() {
    for command in [&["run"][..], &["check"], &["key", "new"], &["engine"]] {
        let said = forebay(&[command, &["--help"]].concat());
        assert_eq!(said.code, Some(0));
        assert!(said.stdout.contains("Example:\n  forebay "), "{}", said.stdout);
    }
}

/// The secret that `key new` printed.
fn secret(said: &Said) -> String {
    assert_eq!((said.code, &*said.stderr), (Some(0), ""), "{said:?}");
    let secret = said.stdout.lines().find_map(|line| line.strip_prefix("# fb-"));
    format!("fb-{}", secret.expect("a secret"))
}

#[test]
fn a_new_key_printed_or_appended_works_and_its_secret_is_shown_once() {
    let engine = crate::harness::Engine::start("e", &[]);
    let base = Configuration::empty().pool("p", &[&engine.address], "").model("m", "p").to_string();
    let folder = Folder::with(&[("forebay.toml", &base)]);
    let printed = forebay(&["key", "new", "printed \"one\"", "--model", "m", "--model", "x*"]);
    let first = secret(&printed);
    assert_eq!(printed.stdout.matches(&first).count(), 1);
    assert!(printed.stdout.contains(&digest(&first)));
    assert!(printed.stdout.contains("models = [\"m\", \"x*\"]"));
    let file = folder.write("forebay.toml", &format!("{base}{}", printed.stdout));
    let appended = forebay(&["key", "new", "appended", "--append", &file]);
    let second = secret(&appended);
    let text = folder.read("forebay.toml");
    assert!(!text.contains(&second) && text.contains(&digest(&second)));
    let said = forebay(&["check", "-c", &file]);
    assert_eq!((said.code, &*said.stderr), (Some(0), ""));
    assert!(said.stdout.contains("  keys     printed \"one\", appended\n"), "{}", said.stdout);
    let forebay = Forebay::ready_with(folder, "forebay.toml");
    for secret in [&first, &second] {
        assert_eq!(forebay.client().chat_as(secret, "m").expect("an answer").status, 200);
    }
    assert_eq!(forebay.client().chat_as("fb-other", "m").expect("an answer").status, 401);
    assert!(!forebay.log().contains(&first) && !forebay.log().contains(&second));
}

#[test]
fn a_key_for_a_file_that_cannot_be_written_shows_no_secret() {
    let folder = Folder::new();
    let said = forebay(&["key", "new", "k", "--append", &folder.path("none/keys.toml")]);
    assert_eq!((said.code, &*said.stdout), (Some(1), ""));
    assert!(said.stderr.starts_with("forebay: cannot append to "), "{}", said.stderr);
    assert_eq!(said.stderr.lines().count(), 1);
    for (text, why) in [("[[key]]\nname = \"k\"\n", "has a key \"k\" already"), ("[[key]]\nname =", "is not TOML")] {
        folder.write("odd.toml", text);
        let said = forebay(&["key", "new", "k", "--append", &folder.path("odd.toml")]);
        assert_eq!(
            (said.code, said.stdout.is_empty(), said.stderr.contains(why)),
            (Some(2), true, true),
            "{}",
            said.stderr
        );
        assert_eq!(std::fs::read_to_string(folder.path("odd.toml")).expect("it is there"), text);
    }
    let said = forebay(&["key", "new", "k", "--append", "/dev/full"]);
    assert_eq!((said.code, said.stdout.is_empty()), (Some(2), true), "{}", said.stderr);
}

#[test]
fn what_is_no_regular_file_is_not_read() {
    let folder = Folder::new();
    folder.write("forebay.toml", "include = [\"/dev/zero\"]\n");
    let said = forebay(&["check", "-c", &folder.path("forebay.toml")]);
    assert_eq!(said.code, Some(2));
    assert!(said.stderr.contains("forebay.toml:1:12: /dev/zero: cannot be read: it is not a file"), "{}", said.stderr);
}
