//! `forebay engine`: the stand-in engine.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::Failure;
use crate::config::Listen;
use crate::daemon::listen::{self, Bound};
use crate::engine::{self, Listener, Options};

/// Run a stand-in engine, for demos, tests, benchmarks and rehearsals of failure
///
/// It speaks OpenAI's chat, completions, responses, embeddings and models and Anthropic's messages, streamed or not,
/// over HTTP/1.1 and cleartext HTTP/2, and repeats what it is told. /metrics counts under vLLM's names.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  forebay engine --listen 127.0.0.1:8001 --name gpu1 --tokens-per-second 20 --jitter 10
  forebay engine --listen 127.0.0.1:8002 --name gpu2 --fail 503 --fail-share 25")]
pub(super) struct Engine {
    /// Where to listen: ip:port, where port 0 lets the system choose, or unix:/path
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    listen: Listen,
    /// Shows in the answers, to tell several engines apart
    #[arg(long, default_value = "engine", value_parser = name)]
    name: String,
    /// A model to serve; may be given again. Without one: whatever is asked for
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    #[command(flatten)]
    pace: Pace,
    #[command(flatten)]
    bad_day: BadDay,
    /// Fail only this share of the prompts, in percent, spread evenly: 25 is every fourth [default: 100]
    #[arg(
        long,
        value_name = "PERCENT",
        value_parser = percent,
        requires = "BadDay",
        conflicts_with_all = ["refuse", "unhealthy"],
        help_heading = BAD_DAY,
    )]
    fail_share: Option<f64>,
}

/// How fast it is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Pace")]
struct Pace {
    /// The rate of each answer; 0 is as fast as possible
    #[arg(long, value_name = "N", default_value_t = 0.0, value_parser = rate)]
    tokens_per_second: f64,
    /// How long the first token takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    first_token: u64,
    /// By how many percent each of these delays varies, up or down; the same way each time
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = percent)]
    jitter: f64,
}

const BAD_DAY: &str = "Rehearse a bad day (one of them; probes stay well unless it says so)";

/// How it fails.
#[derive(Debug, Args)]
#[command(next_help_heading = BAD_DAY)]
#[group(multiple = false)]
struct BadDay {
    /// Answer prompts with this error, 400 to 599; with Retry-After: 1 for 429 and 503
    #[arg(long, value_name = "STATUS", value_parser = clap::value_parser!(u16).range(400..=599))]
    fail: Option<u16>,
    /// Reset the connection (HTTP/2: the stream) instead of answering a prompt
    #[arg(long)]
    reset: bool,
    /// Read prompts and never answer
    #[arg(long)]
    stall: bool,
    /// Send N events of a stream, or half of a whole answer, and then nothing more
    #[arg(long, value_name = "N")]
    stall_after: Option<usize>,
    /// Send N events of a stream, or half of a whole answer, and then close (HTTP/2: reset the stream)
    #[arg(long, value_name = "N")]
    truncate_after: Option<usize>,
    /// Hold the address without listening: every connection is refused, probes too
    #[arg(long)]
    refuse: bool,
    /// Answer 503 to /health and /v1/models; prompts are answered
    #[arg(long)]
    unhealthy: bool,
}

// === impl Engine ===

impl Engine {
    pub(super) fn run(self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Failure::Runtime(e.to_string()))?;
        runtime.block_on(self.serve()).map_err(Failure::Runtime)
    }

    async fn serve(self) -> Result<(), String> {
        let said = |e: std::io::Error| e.to_string();
        let mut term = signal(SignalKind::terminate()).map_err(said)?;
        let mut int = signal(SignalKind::interrupt()).map_err(said)?;
        let (name, refuse) = (self.name.clone(), self.bad_day.refuse);
        let bound = bind(&self.listen, refuse)?;
        let file = bound.file.clone();
        let address = match &self.listen {
            Listen::Tcp(_) => format!("http://{}", listen::address(&bound)),
            Listen::Unix(_) => self.listen.to_string(),
        };
        let (stop, stopped) = watch::channel(false);
        let options = self.options();
        let serving = async {
            if refuse {
                // A unix socket refuses as soon as nobody listens; a TCP port is kept, lest the system give it away.
                let _held = matches!(bound.listen, Listen::Tcp(_)).then_some(bound);
                println!("engine {name} refuses connections on {address}");
                return std::future::pending().await;
            }
            let listener = listener(bound).map_err(said)?;
            println!("engine {name} listens on {address}");
            engine::serve(listener, options, stopped).await;
            Ok(())
        };
        let served = tokio::select! {
            served = serving => served,
            _ = term.recv() => Ok(()),
            _ = int.recv() => Ok(()),
        };
        drop(stop);
        if let Some(file) = file {
            file.remove();
        }
        served
    }

    fn options(self) -> Options {
        Options {
            models: self.models,
            tokens_per_second: self.pace.tokens_per_second,
            first_token: Duration::from_millis(self.pace.first_token),
            jitter: self.pace.jitter,
            name: self.name,
            failure: self.bad_day.failure(),
            fail_share: self.fail_share.unwrap_or(100.0),
        }
    }
}

// === impl BadDay ===

impl BadDay {
    fn failure(&self) -> Option<engine::Failure> {
        let either = |on: bool, failure| on.then_some(failure);
        self.fail
            .map(engine::Failure::Status)
            .or(either(self.reset, engine::Failure::Reset))
            .or(either(self.stall, engine::Failure::Stall))
            .or(self.stall_after.map(engine::Failure::StallAfter))
            .or(self.truncate_after.map(engine::Failure::TruncateAfter))
            .or(either(self.unhealthy, engine::Failure::Unhealthy))
    }
}

/// Binds an address, and listens there unless connections are to be refused.
fn bind(listen: &Listen, refuse: bool) -> Result<Bound, String> {
    match listen {
        Listen::Tcp(address) if refuse => {
            let socket = hold(*address).map_err(|e| format!("cannot bind {listen}: {e}"))?;
            Ok(Bound::new(listen.clone(), socket))
        }
        _ => listen::bind(std::slice::from_ref(listen), vec![])?
            .pop()
            .ok_or_else(|| format!("cannot listen on {listen}")),
    }
}

/// A bound socket that does not listen: the system refuses who connects, and chooses the port for nobody else.
fn hold(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Connections of an engine that listened here a moment ago do not count.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listener(bound: Bound) -> std::io::Result<Listener> {
    Ok(match bound.listen {
        Listen::Tcp(_) => TcpListener::from_std(bound.socket.into())?.into(),
        Listen::Unix(_) => UnixListener::from_std(bound.socket.into())?.into(),
    })
}

fn name(written: &str) -> Result<String, String> {
    let good = !written.is_empty() && written.chars().all(|c| c.is_ascii_graphic());
    if good { Ok(written.to_owned()) } else { Err("a name is made of visible ASCII characters".into()) }
}

fn rate(written: &str) -> Result<f64, String> {
    let rate: f64 = written.parse().map_err(|_| "not a number".to_owned())?;
    if rate.is_finite() && rate >= 0.0 { Ok(rate) } else { Err("a rate is 0 or more".into()) }
}

fn percent(written: &str) -> Result<f64, String> {
    let percent: f64 = written.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=100.0).contains(&percent) { Ok(percent) } else { Err("percent are from 0 to 100".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use clap::error::ErrorKind;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        engine: Engine,
    }

    fn parsed(flags: &str) -> Result<Engine, ErrorKind> {
        let words = std::iter::once("engine").chain(flags.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.engine).map_err(|e| e.kind())
    }

    #[test]
    fn each_flag_for_a_bad_day_becomes_its_failure() {
        use engine::Failure;
        for (flags, failure) in [
            ("", None),
            ("--fail 503", Some(Failure::Status(503))),
            ("--reset", Some(Failure::Reset)),
            ("--stall", Some(Failure::Stall)),
            ("--stall-after 0", Some(Failure::StallAfter(0))),
            ("--truncate-after 7", Some(Failure::TruncateAfter(7))),
            ("--unhealthy", Some(Failure::Unhealthy)),
            ("--refuse", None),
        ] {
            assert_eq!(parsed(flags).expect("good flags").options().failure, failure, "{flags}");
        }
        let options = parsed("--reset --fail-share 25 --jitter 12.5 --first-token 70").expect("good flags").options();
        assert_eq!((options.fail_share, options.jitter), (25.0, 12.5));
        assert_eq!(options.first_token, Duration::from_millis(70));
        assert_eq!(parsed("--reset").expect("good flags").options().fail_share, 100.0);
    }

    #[test]
    fn flags_that_make_no_sense_together_or_alone_are_refused() {
        for (flags, kind) in [
            ("--reset --stall", ErrorKind::ArgumentConflict),
            ("--fail 500 --truncate-after 1", ErrorKind::ArgumentConflict),
            ("--refuse --unhealthy", ErrorKind::ArgumentConflict),
            ("--fail-share 50", ErrorKind::MissingRequiredArgument),
            ("--refuse --fail-share 50", ErrorKind::ArgumentConflict),
            ("--unhealthy --fail-share 50", ErrorKind::ArgumentConflict),
            ("--fail 200", ErrorKind::ValueValidation),
            ("--fail 600", ErrorKind::ValueValidation),
            ("--reset --fail-share 101", ErrorKind::ValueValidation),
            ("--jitter 100.5", ErrorKind::ValueValidation),
            ("--jitter NaN", ErrorKind::ValueValidation),
            ("--listen unix:engine.sock", ErrorKind::ValueValidation),
            ("--listen nowhere", ErrorKind::ValueValidation),
        ] {
            assert_eq!(parsed(flags).expect_err("bad flags"), kind, "{flags}");
        }
    }

    #[test]
    fn an_address_that_is_held_refuses_connections() {
        let any = "127.0.0.1:0".parse().expect("an address");
        let bound = bind(&any, true).expect("a port");
        let address: SocketAddr = listen::address(&bound).parse().expect("its address");
        let refused = std::net::TcpStream::connect(address).expect_err("a refusal");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        drop(bound);
        let bound = bind(&Listen::Tcp(address), false).expect("the port again");
        std::net::TcpStream::connect(address).expect("a connection");
        bind(&Listen::Tcp(address), true).expect_err("a port in use");
        drop(bound);
    }
}
