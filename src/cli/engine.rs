//! `forebay engine`: the stand-in engine.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::Failure;
use crate::engine::{Options, serve};

/// Run a stand-in engine, for demos, tests and benchmarks
///
/// It speaks OpenAI's chat, completions, embeddings and models, streamed or not, and repeats what it is told.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  forebay engine --listen 127.0.0.1:8001 --name gpu1 --tokens-per-second 20")]
pub(super) struct Engine {
    /// Where to listen; port 0 lets the system choose
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// Shows in the answers, to tell several engines apart
    #[arg(long, default_value = "engine", value_parser = name)]
    name: String,
    /// A model to serve; may be given again. Without one: whatever is asked for
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// The rate of each answer; 0 is as fast as possible
    #[arg(long, value_name = "N", default_value_t = 0.0, value_parser = rate)]
    tokens_per_second: f64,
    /// How long the first token takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    first_token: u64,
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
        let listener =
            TcpListener::bind(self.listen).await.map_err(|e| format!("cannot listen on {}: {e}", self.listen))?;
        println!("engine {} listens on http://{}", self.name, listener.local_addr().map_err(said)?);
        let options = Options {
            models: self.models,
            tokens_per_second: self.tokens_per_second,
            first_token: Duration::from_millis(self.first_token),
            name: self.name,
            ..Options::default()
        };
        let (stop, stopped) = watch::channel(false);
        tokio::select! {
            () = serve(listener, options, stopped) => {}
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        drop(stop);
        Ok(())
    }
}

fn name(written: &str) -> Result<String, String> {
    let good = !written.is_empty() && written.chars().all(|c| c.is_ascii_graphic());
    if good { Ok(written.to_owned()) } else { Err("a name is made of visible ASCII characters".into()) }
}

fn rate(written: &str) -> Result<f64, String> {
    let rate: f64 = written.parse().map_err(|_| "not a number".to_owned())?;
    if rate.is_finite() && rate >= 0.0 { Ok(rate) } else { Err("a rate is 0 or more".into()) }
}
