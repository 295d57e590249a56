//! What the demo prints: everything that is needed to use it, and lines to paste as they are.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::Engine;

/// What there is to say.
pub(super) struct Welcome {
    /// Where the proxy listens.
    pub(super) traffic: String,
    /// Where its admin listens.
    pub(super) admin: String,
    /// The demo's key. That it is shown is its purpose; it is kept nowhere.
    pub(super) secret: String,
    /// The file that the proxy runs by.
    pub(super) file: PathBuf,
    /// How this program was called.
    pub(super) program: String,
    /// Who answers.
    pub(super) engines: Vec<Engine>,
}

impl fmt::Display for Welcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (url, key) = (format!("http://{}/v1", reachable(&self.traffic)), &self.secret);
        writeln!(f, "forebay demo: a proxy, and stand-in engines that repeat what they are told.\n")?;
        writeln!(f, "  base URL  {url}\n  API key   {key}\n  model     demo")?;
        for engine in &self.engines {
            writeln!(f, "  {:<9} {}", engine.name, self.said(engine))?;
        }
        writeln!(f, "  runs by   {}\n", self.file.display())?;
        writeln!(
            f,
            "To paste into another terminal. A question; `system_fingerprint` in the answer\nis the engine that gave it:\n"
        )?;
        writeln!(f, "{}; echo\n", ask(&url, key, "-s", ""))?;
        writeln!(f, "The same as a stream, event by event:\n")?;
        writeln!(f, "{}\n", ask(&url, key, "-sN", ", \"stream\": true"))?;
        writeln!(
            f,
            "A question whose answer is kept, for it has a seed: once more, and it is there at once\n(`x-forebay-cache: HIT`); from two terminals at once, and it is computed once:\n"
        )?;
        writeln!(f, "{}; echo\n", ask(&url, key, "-si", ", \"seed\": 1"))?;
        writeln!(f, "The models that this key may ask:\n")?;
        writeln!(f, "curl -s {url}/models -H 'Authorization: Bearer {key}'; echo\n")?;
        writeln!(f, "How the engines are, as JSON and as a table:\n")?;
        writeln!(f, "curl -s http://{}/status\n{} status --admin {0}\n", self.admin, quoted(&self.program))?;
        writeln!(f, "Ctrl-C ends it all.")
    }
}

impl Welcome {
    /// How an engine differs from the others.
    fn said(&self, engine: &Engine) -> String {
        let Engine { weight, tokens_per_second, first_token, .. } = engine;
        if !first_token.is_zero() {
            let first = first_token.as_millis();
            return format!("slow: the first token after {first} ms, then {tokens_per_second} tokens/s");
        }
        let total: u32 = self.engines.iter().map(|engine| engine.weight).sum();
        let share =
            if *weight > 1 { format!(", weight {weight}: {weight} of {total} requests") } else { String::new() };
        format!("{tokens_per_second} tokens/s{share}")
    }
}

/// The line that asks a question; `more` are further members of the prompt.
fn ask(url: &str, key: &str, flags: &str, more: &str) -> String {
    format!(
        "curl {flags} {url}/chat/completions \\\n  \
         -H 'Authorization: Bearer {key}' \\\n  \
         -H 'Content-Type: application/json' \\\n  \
         -d '{{\"model\": \"demo\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello there\"}}]{more}}}'"
    )
}

/// An address to connect to: who listens on every address is found on this machine's own.
fn reachable(listens: &str) -> String {
    match listens.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => {
            let own = match address {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            };
            SocketAddr::new(own, address.port()).to_string()
        }
        _ => listens.to_owned(),
    }
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_is_said_to_be_what_it_is() {
        for (count, said) in [
            (1, vec!["40 tokens/s"]),
            (2, vec!["40 tokens/s, weight 3: 3 of 4 requests", "40 tokens/s"]),
            (
                4,
                vec![
                    "40 tokens/s, weight 3: 3 of 6 requests",
                    "40 tokens/s",
                    "40 tokens/s",
                    "slow: the first token after 800 ms, then 10 tokens/s",
                ],
            ),
        ] {
            let engines = Engine::all(count);
            let (traffic, admin, secret, program) = Default::default();
            let welcome = Welcome { traffic, admin, secret, file: PathBuf::new(), program, engines };
            let lines: Vec<String> = welcome.engines.iter().map(|engine| welcome.said(engine)).collect();
            assert_eq!(lines, said);
        }
    }

    #[test]
    fn what_is_printed_is_an_address_to_connect_to() {
        for (listens, shown) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("[fd00::1]:8080", "[fd00::1]:8080"),
        ] {
            assert_eq!(reachable(listens), shown);
        }
    }

    #[test]
    fn a_programs_name_is_one_word_for_a_shell() {
        for (word, shown) in [
            ("target/release/forebay", "target/release/forebay"),
            ("/home/a b/forebay", "'/home/a b/forebay'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word), shown);
        }
    }
}
