//! What an idle connection and an open stream take of memory. `benches/connections.py` says how much of it they take in earnest.

use std::time::{Duration, Instant};

use crate::configuration::Configuration;
use crate::harness::{Engine, Forebay, until};
use crate::http::Client;

const IDLE: usize = 500;
const STREAMS: usize = 100;

/// The kilobytes that forebay holds.
fn held(forebay: &Forebay) -> f64 {
    forebay.metric("process_resident_memory_bytes").expect("bytes") / 1e3
}

fn idle(forebay: &Forebay) -> Client {
    let mut client = forebay.client();
    assert_eq!(client.chat("m").expect("an answer").status, 200);
    client
}

fn stream(forebay: &Forebay) -> Client {
    let mut client = forebay.client();
    assert_eq!(client.begin_stream("slow", 1000).expect("a stream").status, 200);
    client
}

/// How long the status takes, the quickest of a few times.
fn quickest_status(forebay: &Forebay) -> Duration {
    let took = (0..5).map(|_| {
        let began = Instant::now();
        forebay.status();
        began.elapsed()
    });
    took.min().expect("some")
}

#[test]
fn idle_connections_and_open_streams_take_little_memory_and_do_not_hold_up_the_status() {
    let (fast, slow) = (Engine::start("e", &[]), Engine::start("e", &["--tokens-per-second", "2"]));
    let configuration = Configuration::of(&[&fast.address]).pool("q", &[&slow.address], "").model("slow", "q");
    let forebay = Forebay::ready(&configuration);
    // What it takes once for all is not counted.
    drop((0..50).map(|_| (idle(&forebay), stream(&forebay))).collect::<Vec<_>>());
    until("all have left", || (forebay.metric("forebay_client_connections") == Some(0.0)).then_some(()));
    let before = held(&forebay);
    let _idle: Vec<Client> = (0..IDLE).map(|_| idle(&forebay)).collect();
    let with_idle = held(&forebay);
    let _streams: Vec<Client> = (0..STREAMS).map(|_| stream(&forebay)).collect();
    let with_streams = held(&forebay);
    let (idle, stream) = ((with_idle - before) / IDLE as f64, (with_streams - with_idle) / STREAMS as f64);
    let took = quickest_status(&forebay);
    println!("{idle:.1} kB for an idle connection, {stream:.1} kB for a stream, {took:?} for the status");
    assert!(idle < 30.0, "{idle} kB");
    assert!(stream < 80.0, "{stream} kB");
    assert!(took < Duration::from_millis(500), "{took:?}");
}
