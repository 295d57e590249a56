//! A daemon that has no file descriptor left: who comes waits until there is one, and nobody else is to blame.

use std::process::Command;

use serde_json::Value;

use crate::configuration::Configuration;
use crate::harness::{Engine, Forebay, until};
use crate::http::Client;

/// Lets forebay have so many files open and no more.
fn limit(forebay: &Forebay, files: usize) {
    let pid = forebay.status()["pid"].to_string();
    let set = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={files}:")]).status();
    assert!(set.expect("`prlimit` runs").success());
}

fn open_files(forebay: &Forebay) -> usize {
    forebay.metric("process_open_fds").expect("a count") as usize
}

/// A client that has asked, and waits.
fn asking(forebay: &Forebay) -> Client {
    let mut client = forebay.client();
    client.send("GET", "/health", &[], "").expect("it is sent to whoever accepts it");
    client
}

#[test]
fn without_descriptors_clients_wait_until_others_leave_and_no_engine_is_blamed() {
    const LEFT: usize = 20;
    let engines = [Engine::start("e", &[]), Engine::start("e", &[])];
    let addresses: Vec<&str> = engines.iter().map(|engine| &*engine.address).collect();
    let pool = "[pool.p.connections]\nidle_timeout = \"10ms\"\n[pool.p.eject]\nfailures = 1";
    let forebay = Forebay::ready(&Configuration::of(&addresses).more(pool));
    let before = open_files(&forebay);
    let mut operator = Client::connect(forebay.admin_address());
    let mut inside: Vec<Client> = (0..4).map(|_| forebay.client()).collect();
    inside.iter_mut().for_each(|client| assert_eq!(client.chat("m").expect("an answer").status, 200));
    until("the connections to the engines are closed", || (open_files(&forebay) <= before + 5).then_some(()));

    limit(&forebay, before + LEFT);
    let crowd: Vec<Client> = (0..2 * LEFT).map(|_| asking(&forebay)).collect();
    forebay.until_said("connections wait, for none can be accepted");
    // Those who are in are told that no engine can be reached, unless a probe has just ended, and no engine is taken for the cause.
    for client in &mut inside {
        let answer = client.chat("m").expect("an answer");
        assert!(matches!(answer.status, 200 | 502), "{}", answer.text());
    }
    let status = operator.get("/status").json();
    let states: Vec<&Value> = [0, 1].iter().map(|place| &status["pools"]["p"]["servers"][place]["state"]).collect();
    assert_eq!(states, ["up", "up"]);
    // Each that leaves lets the next one in, which is not said each time.
    for mut client in crowd {
        assert_eq!(client.answer().expect("an answer").status, 200);
    }
    let said = forebay.messages().into_iter().filter(|said| said.contains("connections wait")).count();
    assert_eq!(said, 1);
    until("prompts are answered", || (forebay.client().chat("m").ok()?.status == 200).then_some(()));
    assert_eq!(operator.get("/readyz").status, 200);
}
