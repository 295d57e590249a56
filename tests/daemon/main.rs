//! The real `forebay` process, from outside: commands, signals, reloads, probes, and clients that behave badly.

mod check;
mod configuration;
mod hardening;
mod harness;
mod http;
mod probes;
mod reload;
mod signals;
mod start;
