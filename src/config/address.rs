//! Where an engine or a listener is: `host:port`, `ip:port`, `unix:/path`.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::net::SocketAddr as UnixSocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use toml::Spanned;

use super::{Server, units};
use crate::pool::settings::Address;

/// Where forebay listens, written as `"ip:port"` or `"unix:/path"`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Listen {
    /// A TCP address; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// A server that was written as a table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerEntry {
    address: Spanned<Address>,
    #[serde(default = "one")]
    weight: u32,
    #[serde(default)]
    name: Option<Spanned<String>>,
    #[serde(default)]
    backup: bool,
    #[serde(default)]
    max_in_flight: Option<u32>,
}

/// A server in either of its forms.
enum Written {
    Address(Address),
    Table(ServerEntry),
}

fn one() -> u32 {
    1
}

fn parse_address(text: &str) -> Result<Address, String> {
    let wrong = || format!("{text:?} is not an address; write such as \"10.0.0.11:8000\"");
    if let Some((_, rest)) = text.split_once("://") {
        let authority = rest.split('/').next().unwrap_or(rest);
        return Err(format!("{text:?} is a URL; write the address alone: {authority:?}"));
    }
    if let Some(path) = text.strip_prefix("unix:") {
        return unix_path(path, text).map(Address::Unix);
    }
    if let Some((address, _)) = text.split_once('/') {
        return Err(format!("{text:?} has a path; write {address:?}, and put the path into `path_prefix`"));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
            host.parse::<Ipv6Addr>().map_err(|_| wrong())?;
            (host, port.strip_prefix(':'))
        }
        None if text.parse::<Ipv6Addr>().is_ok() => {
            return Err(format!("{text:?} has no port; write such as \"[{text}]:8000\""));
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let odd = |c: char| c.is_whitespace() || c.is_control() || "/@?#\\".contains(c);
    if host.is_empty() || host.contains(odd) {
        return Err(wrong());
    }
    let Some(port) = port else {
        return Err(format!("{text:?} has no port; write such as \"{text}:8000\""));
    };
    // Rust reads "+80" too.
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(port) if digits && port > 0 => Ok(Address::new(host, port)),
        _ => Err(format!("{text:?} has a port that is not between 1 and 65535")),
    }
}

/// The path in `text`, which the system must be able to take for a socket's.
fn unix_path(path: &str, text: &str) -> Result<PathBuf, String> {
    if !path.starts_with('/') {
        return Err(format!("{text:?} needs an absolute path; write \"unix:/path\""));
    }
    match UnixSocketAddr::from_pathname(path) {
        Ok(_) => Ok(PathBuf::from(path)),
        Err(_) => {
            Err(format!("{text:?} has a path that is too long for a unix socket; write one of 107 bytes at most"))
        }
    }
}

fn parse_listen(text: &str) -> Result<Listen, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix_path(path, text).map(Listen::Unix);
    }
    text.parse().map(Listen::Tcp).map_err(|_| {
        let port = text.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
        let port = port.unwrap_or(8080);
        format!(
            "{text:?} is not an IP address and port; write \"127.0.0.1:{port}\", \
             \"0.0.0.0:{port}\" for every address, or \"unix:/path\""
        )
    })
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "{address}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_listen(text)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        units::text(deserializer, "an address such as \"10.0.0.11:8000\"", parse_address)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        units::text(deserializer, "an address such as \"127.0.0.1:8080\"", parse_listen)
    }
}

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Spanned::<Written>::deserialize(deserializer)?;
        let span = written.span();
        Ok(match written.into_inner() {
            Written::Address(address) => {
                let address = Spanned::new(span, address);
                Server { address, weight: one(), name: None, backup: false, max_in_flight: None }
            }
            Written::Table(ServerEntry { address, weight, name, backup, max_in_flight }) => {
                Server { address, weight, name, backup, max_in_flight }
            }
        })
    }
}

// Not `#[serde(untagged)]`, whose one message is that nothing matched.
impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Written;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address such as \"10.0.0.11:8000\" or a table with one")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Written, E> {
                parse_address(text).map(Written::Address).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Written, A::Error> {
                ServerEntry::deserialize(MapAccessDeserializer::new(map)).map(Written::Table)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_is_found_by_host_and_port() {
        let cases = [
            ("10.0.0.11:8000", Ok("10.0.0.11:8000")),
            ("llama.internal:80", Ok("llama.internal:80")),
            ("[::1]:8000", Ok("[::1]:8000")),
            ("[0:0::1]:8000", Ok("[::1]:8000")),
            ("10.0.0.11", Err("\"10.0.0.11\" has no port; write such as \"10.0.0.11:8000\"")),
            ("::1", Err("\"::1\" has no port; write such as \"[::1]:8000\"")),
            ("[::1]", Err("\"[::1]\" has no port; write such as \"[::1]:8000\"")),
            ("http://a:80/v1", Err("\"http://a:80/v1\" is a URL; write the address alone: \"a:80\"")),
            ("a:0", Err("\"a:0\" has a port that is not between 1 and 65535")),
            ("a:70000", Err("\"a:70000\" has a port that is not between 1 and 65535")),
            ("a:b:80", Err("\"a:b:80\" has a port that is not between 1 and 65535")),
            ("unix:/run/a", Ok("unix:/run/a")),
            ("unix:run/a", Err("\"unix:run/a\" needs an absolute path; write \"unix:/path\"")),
            (":80", Err("\":80\" is not an address; write such as \"10.0.0.11:8000\"")),
            ("a:80/v1", Err("\"a:80/v1\" has a path; write \"a:80\", and put the path into `path_prefix`")),
        ];
        for (text, expected) in cases {
            let address = parse_address(text).map(|address| address.to_string());
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(address, expected, "{text}");
        }
    }

    #[test]
    fn a_listener_is_an_ip_address_and_port_or_a_unix_socket() {
        let cases = [
            ("127.0.0.1:0", true),
            ("[::]:8080", true),
            ("unix:/run/forebay.sock", true),
            ("unix:forebay.sock", false),
            ("localhost:8080", false),
            ("8080", false),
            ("", false),
        ];
        for (text, fine) in cases {
            let listen = parse_listen(text).map(|listen| listen.to_string());
            assert_eq!(listen.as_deref() == Ok(text), fine, "{text}: {listen:?}");
        }
        assert_eq!(
            parse_listen(":9000"),
            Err("\":9000\" is not an IP address and port; write \"127.0.0.1:9000\", \
                 \"0.0.0.0:9000\" for every address, or \"unix:/path\""
                .to_owned())
        );
    }
}
