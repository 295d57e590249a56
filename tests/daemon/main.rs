//! The real `forebay` process, from outside: commands, signals, reloads, probes, and clients that behave badly.

mod cache;
mod check;
mod clients;
mod configuration;
mod credentials;
mod crowd;
mod descriptors;
mod drain;
mod failing;
mod hardening;
mod harness;
mod http;
mod leaving;
mod logs;
mod memory;
mod mixed;
mod notify;
mod probes;
mod reload;
mod signals;
mod start;
mod stub;
mod unix;
mod upgrade;
