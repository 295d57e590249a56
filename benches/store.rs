//! The prompt cache's store under ten million distinct prompts: what it holds, what the process takes, and how fast it
//! finds, on one core.
//!
//! Run it with `cargo bench --bench store`, on a machine that does nothing else. The process's memory is its RSS less
//! what it was before the first answer.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay::cache::canonical::PromptKey as Key;
use forebay::cache::store::{Label, Store};

/// The daemon's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MAX_BODY: usize = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

/// The argument with which this program calls itself for three threads and so many MiB: each has a process of its own.
const THREE: &str = "three-threads=";

/// What is filled in: its name, how many, how large each, and whether half of it is asked for again.
type Phase = (&'static str, u64, fn(u64) -> usize, bool);

fn main() {
    if let Some(memory) = std::env::args().find_map(|argument| argument.strip_prefix(THREE)?.parse::<usize>().ok()) {
        return churn(memory << 20, 3, 3_000_000);
    }
    churn(64 << 20, 1, 10_000_000);
    let program = std::env::current_exe().expect("Linux tells it");
    for memory in [64, 256] {
        let argument = format!("{THREE}{memory}");
        let ended = std::process::Command::new(&program).arg(argument).status().expect("it runs again");
        assert!(ended.success());
    }
    look_up();
}

/// Distinct answers in a store of `memory` bytes, and how the sizes change: what it holds and what the process takes.
fn churn(memory: usize, threads: u64, first: u64) {
    let before = rss();
    let store = Arc::new(Store::new(memory, MAX_BODY));
    println!("\n{} MiB, {threads} thread(s):", memory >> 20);
    println!(
        "  {:42} {:>10} {:>8} {:>9} {:>8} {:>9} {:>8}",
        "answers", "a second", "entries", "charged", "x memory", "RSS grown", "x memory"
    );
    let phases: [Phase; 6] = [
        ("of 1 KB", first, |_| 1024, false),
        ("of 0.4 to 64 KB, half asked again", 500_000, mixed, true),
        ("of 100 to 800 bytes, half again", 3_000_000, |index| 100 + mixed(index) % 700, true),
        ("of 13 to 64 KB, half again", 100_000, |index| 13_000 + mixed(index) * 4 / 5, true),
        ("of 13 to 600 KB, half again", 20_000, |index| 13_000 + mixed(index) * 9, true),
        ("of 0.4 to 64 KB, half again", 500_000, mixed, true),
    ];
    let barrier = Barrier::new(threads as usize);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (store, barrier, phases) = (&store, &barrier, &phases);
            scope.spawn(move || {
                for (turn, (name, count, size, again)) in phases.iter().enumerate() {
                    let start = Instant::now();
                    let keys = ((turn as u64 * threads + thread) << 32, count / threads);
                    let (charged, grown) = fill(store, before, keys, size, *again);
                    barrier.wait();
                    if thread == 0 {
                        let name = format!("{count} {name}");
                        let rate = *count as f64 / start.elapsed().as_secs_f64();
                        let part = |bytes: usize| bytes as f64 / memory as f64;
                        println!(
                            "  {name:42} {rate:>10.0} {:>8} {:>9} {:>8.3} {:>9} {:>8.3}",
                            store.figures().entries,
                            megabytes(charged),
                            part(charged),
                            megabytes(grown),
                            part(grown)
                        );
                    }
                    barrier.wait();
                }
            });
        }
    });
    store.purge(None);
    assert_eq!((store.figures().entries, store.figures().bytes), (0, 0));
}

/// Fills in distinct answers, as many as `keys` says, in pieces of 256 bytes, as a stream comes; every eighth one
/// is not kept. The most that was charged, and by how much the process grew.
fn fill(
    store: &Arc<Store>,
    before: usize,
    keys: (u64, u64),
    size: impl Fn(u64) -> usize,
    again: bool,
) -> (usize, usize) {
    const EVENT: &[u8] = &[b'x'; 256];
    let header = [b'h'; 150];
    let now = Instant::now();
    let (mut charged, mut grown) = (0, 0);
    for index in 0..keys.1 {
        let key = key(keys.0 + index);
        assert!(store.find(&key, now).is_none(), "every prompt is new");
        let body = size(index);
        let piece = |start| Bytes::from_static(&EVENT[..EVENT.len().min(body - start)]);
        let pieces: Vec<Bytes> = (0..body).step_by(EVENT.len()).map(piece).collect();
        let fill = store.fill(Label { key, model: "llama", ttl: HOUR }, &header, &pieces, now);
        charged = charged.max(store.figures().bytes);
        match fill {
            Ok(fill) if index % 8 > 0 => fill.finish(),
            _ => continue,
        }
        if again && index % 2 == 0 {
            black_box(store.find(&key, now));
        }
        if index % (keys.1 / 1000) == 1 {
            grown = grown.max(rss().saturating_sub(before));
        }
    }
    (charged, grown)
}

/// Hits and misses a second, medians of rounds.
fn look_up() {
    let store = Arc::new(Store::new(64 << 20, MAX_BODY));
    let now = Instant::now();
    const HEADER: &[u8] = b"content-type:application/json\nserver:uvicorn\ndate:Sat, 26 Sep 2026 12:00:00 GMT\n";
    const COUNT: u64 = 20_000;
    for index in 0..COUNT {
        let label = Label { key: key(index), model: "llama", ttl: HOUR };
        store.fill(label, HEADER, &[vec![b'x'; 874].into()], now).expect("room").finish();
    }
    assert_eq!(store.figures().entries as u64, COUNT);
    let hits = rate(|turn| store.find(&key(mix(turn) % COUNT), now).is_some());
    let bodies = rate(|turn| {
        store
            .find(&key(mix(turn) % COUNT), now)
            .is_some_and(|answer| answer.piece(0).is_some_and(|piece| black_box(piece).len() == 874))
    });
    let misses = rate(|turn| store.find(&key(COUNT + turn), now).is_none());
    println!("\nlook-ups a second among {COUNT} answers of 1 KB:");
    for (name, rate) in [("hit", hits), ("hit, and its body", bodies), ("miss", misses)] {
        println!("  {name:42} {rate:>11.0}");
    }
}

/// The median rate of several rounds, in look-ups a second.
fn rate(find: impl Fn(u64) -> bool) -> f64 {
    const ROUND: u64 = 200_000;
    let mut rates: Vec<f64> = (0..11)
        .map(|round| {
            let start = Instant::now();
            for turn in 0..ROUND {
                assert!(find(black_box(round * ROUND + turn)));
            }
            ROUND as f64 / start.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// A size between 400 bytes and 64 KB, most of them small.
fn mixed(index: u64) -> usize {
    let share = (mix(index) >> 11) as f64 / (1_u64 << 53) as f64;
    (400.0 * 160_f64.powf(share * share)) as usize
}

/// As good as a digest.
fn key(index: u64) -> Key {
    let mut digest = [0; 32];
    for (part, word) in digest.chunks_exact_mut(8).zip(0..) {
        part.copy_from_slice(&mix(index.wrapping_mul(4) + word).to_le_bytes());
    }
    Key(digest)
}

fn mix(index: u64) -> u64 {
    let mut word = index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// The memory that this process has in use, in bytes.
fn rss() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells it");
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kilobytes << 10
}

fn megabytes(bytes: usize) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
