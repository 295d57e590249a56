//! How many files and sockets the process may have open.
//!
//! Most systems give a process 1024 unless it asks for more, for programs that use `select`. We need two for each request.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as the system lets us, and says in the log what it is.
pub(super) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let in_words = |limit: Option<u64>| limit.map_or("any number of".to_owned(), |limit| limit.to_string());
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => log::info!("{} files and connections may be open at once", in_words(maximum)),
        Err(e) => log::warn!(
            "only {} files and connections may be open at once: the limit cannot be raised to {}: {e}",
            in_words(current),
            in_words(maximum)
        ),
    }
}
