//! `GET /metrics`: what the engine did, under vLLM's names, so that what reads a vLLM reads this engine too.
//!
//! A prompt waits until its first token is due, and runs from then on. An engine that serves any model counts them all
//! under the one that it lists: what clients send is no label.

use super::Options;
use super::models;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, Result, TextEncoder,
};
use std::time::Duration;

/// vLLM's buckets of the time to the first token, in seconds.
const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];

/// vLLM's buckets of the time of a whole answer, in seconds.
const LATENCY: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];

/// Why a prompt ended that got no whole answer.
const ABORT: &str = "abort";

/// What one prompt and its whole answer count.
pub(super) struct Cost {
    /// The model's name as a label.
    pub(super) model: String,
    pub(super) prompt_tokens: usize,
    /// None for embeddings.
    pub(super) generation_tokens: usize,
    pub(super) finish_reason: &'static str,
}

/// Everything that is counted.
pub(super) struct Metrics {
    registry: Registry,
    running: IntGaugeVec,
    waiting: IntGaugeVec,
    prompt_tokens: IntCounterVec,
    generation_tokens: IntCounterVec,
    successes: IntCounterVec,
    first_token: HistogramVec,
    latency: HistogramVec,
}

/// A prompt that is being answered; its end takes it out of the gauges.
pub(super) struct Flight<'m> {
    metrics: &'m Metrics,
    cost: Cost,
    /// Found once: it counts at every token.
    generation: IntCounter,
    generated: usize,
    running: bool,
}

// === impl Metrics ===

impl Metrics {
    /// All metrics of an engine with these options, at nought.
    ///
    /// # Errors
    /// When two of them have one name, which a test rules out.
    pub(super) fn new(options: &Options) -> Result<Self> {
        const MODEL: &[&str] = &["model_name"];
        let gauge = |name, help| IntGaugeVec::new(Opts::new(name, help), MODEL);
        let counter = |name, help, labels| IntCounterVec::new(Opts::new(name, help), labels);
        let histogram = |name, help, buckets: &[f64]| {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), MODEL)
        };
        let metrics = Self {
            registry: Registry::new(),
            running: gauge("vllm:num_requests_running", "Prompts whose answer has begun.")?,
            waiting: gauge("vllm:num_requests_waiting", "Prompts that wait for their first token.")?,
            prompt_tokens: counter("vllm:prompt_tokens_total", "Tokens of prompts.", MODEL)?,
            generation_tokens: counter("vllm:generation_tokens_total", "Tokens of answers.", MODEL)?,
            successes: counter(
                "vllm:request_success_total",
                "Prompts that ended, by why.",
                &["model_name", "finished_reason"],
            )?,
            first_token: histogram(
                "vllm:time_to_first_token_seconds",
                "From the whole prompt to its first token.",
                &FIRST_TOKEN,
            )?,
            latency: histogram(
                "vllm:e2e_request_latency_seconds",
                "From the whole prompt to the end of its answer.",
                &LATENCY,
            )?,
        };
        for gauge in [&metrics.running, &metrics.waiting] {
            metrics.registry.register(Box::new(gauge.clone()))?;
        }
        for counter in [&metrics.prompt_tokens, &metrics.generation_tokens, &metrics.successes] {
            metrics.registry.register(Box::new(counter.clone()))?;
        }
        for histogram in [&metrics.first_token, &metrics.latency] {
            metrics.registry.register(Box::new(histogram.clone()))?;
        }
        for model in models::listed(options) {
            metrics.show(model);
        }
        Ok(metrics)
    }

    /// Lets a model's series be seen before its first prompt.
    fn show(&self, model: &str) {
        for gauge in [&self.running, &self.waiting] {
            gauge.with_label_values(&[model]);
        }
        for counter in [&self.prompt_tokens, &self.generation_tokens] {
            counter.with_label_values(&[model]);
        }
        for reason in ["stop", "length", ABORT] {
            self.successes.with_label_values(&[model, reason]);
        }
        for histogram in [&self.first_token, &self.latency] {
            histogram.with_label_values(&[model]);
        }
    }

    /// All of it in Prometheus' text format.
    pub(super) fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            log::warn!("engine: metrics: {error}");
        }
        text
    }

    /// A prompt has come.
    pub(super) fn begin(&self, cost: Cost) -> Flight<'_> {
        self.waiting.with_label_values(&[&cost.model]).inc();
        let generation = self.generation_tokens.with_label_values(&[&cost.model]);
        Flight { metrics: self, cost, generation, generated: 0, running: false }
    }
}

// === impl Flight ===

impl Flight<'_> {
    /// So many tokens of the answer are made, so long after the prompt.
    pub(super) fn advance(&mut self, tokens: usize, after: Duration) {
        if tokens == 0 {
            return;
        }
        if !self.running {
            let (metrics, model) = (self.metrics, &[self.cost.model.as_str()]);
            self.running = true;
            metrics.waiting.with_label_values(model).dec();
            metrics.running.with_label_values(model).inc();
            metrics.prompt_tokens.with_label_values(model).inc_by(self.cost.prompt_tokens as u64);
            if self.cost.generation_tokens > 0 {
                metrics.first_token.with_label_values(model).observe(after.as_secs_f64());
            }
        }
        // An embedding is due with the first token, and generates none.
        let generated = tokens.min(self.cost.generation_tokens);
        self.generation.inc_by((generated - self.generated) as u64);
        self.generated = generated;
    }

    /// The answer is over, whole or not, so long after the prompt.
    pub(super) fn end(self, whole: bool, after: Duration) {
        let model = self.cost.model.as_str();
        let reason = if whole { self.cost.finish_reason } else { ABORT };
        self.metrics.successes.with_label_values(&[model, reason]).inc();
        if whole {
            self.metrics.latency.with_label_values(&[model]).observe(after.as_secs_f64());
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let gauge = if self.running { &self.metrics.running } else { &self.metrics.waiting };
        gauge.with_label_values(&[&self.cost.model]).dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(generation_tokens: usize) -> Cost {
        Cost { model: "demo".into(), prompt_tokens: 5, generation_tokens, finish_reason: "length" }
    }

    fn assert_has(metrics: &Metrics, lines: &[&str]) {
        let text = String::from_utf8(metrics.text()).expect("text");
        for line in lines {
            assert!(text.lines().any(|found| found == *line), "no {line} in {text}");
        }
    }

    #[test]
    fn a_prompt_waits_runs_and_is_counted() {
        let metrics = Metrics::new(&Options::default()).expect("names that differ");
        let mut flight = metrics.begin(cost(3));
        flight.advance(0, Duration::ZERO);
        assert_has(
            &metrics,
            &[
                "vllm:num_requests_waiting{model_name=\"demo\"} 1",
                "vllm:num_requests_running{model_name=\"demo\"} 0",
                "vllm:prompt_tokens_total{model_name=\"demo\"} 0",
            ],
        );
        flight.advance(1, Duration::from_millis(30));
        flight.advance(2, Duration::from_millis(40));
        assert_has(
            &metrics,
            &[
                "vllm:num_requests_waiting{model_name=\"demo\"} 0",
                "vllm:num_requests_running{model_name=\"demo\"} 1",
                "vllm:prompt_tokens_total{model_name=\"demo\"} 5",
                "vllm:generation_tokens_total{model_name=\"demo\"} 2",
                "vllm:time_to_first_token_seconds_bucket{model_name=\"demo\",le=\"0.02\"} 0",
                "vllm:time_to_first_token_seconds_bucket{model_name=\"demo\",le=\"0.04\"} 1",
                "vllm:e2e_request_latency_seconds_count{model_name=\"demo\"} 0",
            ],
        );
        flight.advance(3, Duration::from_millis(50));
        flight.end(true, Duration::from_millis(400));
        assert_has(
            &metrics,
            &[
                "vllm:num_requests_running{model_name=\"demo\"} 0",
                "vllm:generation_tokens_total{model_name=\"demo\"} 3",
                "vllm:time_to_first_token_seconds_count{model_name=\"demo\"} 1",
                "vllm:e2e_request_latency_seconds_bucket{model_name=\"demo\",le=\"0.3\"} 0",
                "vllm:e2e_request_latency_seconds_bucket{model_name=\"demo\",le=\"0.5\"} 1",
                "vllm:request_success_total{finished_reason=\"length\",model_name=\"demo\"} 1",
                "vllm:request_success_total{finished_reason=\"stop\",model_name=\"demo\"} 0",
            ],
        );
    }

    #[test]
    fn what_is_cut_short_is_an_abort_and_embeddings_generate_nothing() {
        let metrics = Metrics::new(&Options::default()).expect("names that differ");
        metrics.begin(cost(3)).end(false, Duration::from_secs(9));
        let mut embedding = metrics.begin(cost(0));
        embedding.advance(1, Duration::ZERO);
        embedding.end(true, Duration::ZERO);
        assert_has(
            &metrics,
            &[
                "vllm:num_requests_waiting{model_name=\"demo\"} 0",
                "vllm:request_success_total{finished_reason=\"abort\",model_name=\"demo\"} 1",
                "vllm:request_success_total{finished_reason=\"length\",model_name=\"demo\"} 1",
                "vllm:prompt_tokens_total{model_name=\"demo\"} 5",
                "vllm:generation_tokens_total{model_name=\"demo\"} 0",
                "vllm:time_to_first_token_seconds_count{model_name=\"demo\"} 0",
                "vllm:e2e_request_latency_seconds_count{model_name=\"demo\"} 1",
            ],
        );
    }
}
