//! The proxy in this process, between real sockets: stub engines behind it, HTTP/1.1 and HTTP/2 clients before it.

#![expect(clippy::unwrap_used, reason = "what fails here fails a test")]

mod balance;
mod bodies;
mod broken;
mod cache;
mod cancel;
mod client;
mod eject;
mod fate;
mod forwarding;
mod harness;
mod http2;
mod queue;
mod refusals;
mod selectors;
mod stall;
mod streaming;
mod upstream;
