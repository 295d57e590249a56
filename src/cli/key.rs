//! `forebay key`: clients' keys. The secret is shown once and kept nowhere.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::Failure;
use crate::access::key::digest;

/// Make clients' keys
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a key: prints the secret once, and the table for the configuration
    New(New),
}

/// Make a key: prints the secret once, and the table for the configuration
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  forebay key new search-team --model 'llama-*' --append /etc/forebay/keys.toml")]
pub(super) struct New {
    /// Shows in logs and metrics; the secret never does
    name: String,
    /// A glob of the models that it may ask; may be given again. Without one: all
    #[arg(long = "model", value_name = "GLOB")]
    models: Vec<String>,
    /// Append the table to this file instead of printing it
    #[arg(long, value_name = "FILE")]
    append: Option<PathBuf>,
}

// === impl Command ===

impl Command {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::New(new) => new.run(),
        }
    }
}

// === impl New ===

impl New {
    fn run(self) -> Result<(), Failure> {
        if self.name.is_empty() {
            return Err(Failure::Usage("forebay: a key needs a name".into()));
        }
        if let Some(wrong) = self.models.iter().find(|glob| glob::Pattern::new(glob).is_err()) {
            return Err(Failure::Usage(format!("forebay: {wrong:?} is not a glob")));
        }
        let secret = secret().map_err(|e| Failure::Runtime(format!("no randomness: {e}")))?;
        let table = self.table(&secret);
        match &self.append {
            None => println!("# the secret, shown this once:\n# {secret}\n\n{table}"),
            Some(file) if fs::read_to_string(file).is_ok_and(|text| text.parse::<toml::Table>().is_err()) => {
                let said = format!("forebay: {} is not TOML; `forebay check -c` says where", file.display());
                return Err(Failure::Usage(said));
            }
            Some(file) if self.stands_in(file) => {
                let said = format!(
                    "forebay: {} has a key {:?} already; to change its secret, make one without --append and add its digest to `sha256`",
                    file.display(),
                    self.name
                );
                return Err(Failure::Usage(said));
            }
            Some(file) => {
                let mut options = OpenOptions::new();
                let opened = options.append(true).create(true).open(file);
                let written = opened.and_then(|mut file| file.write_all(format!("\n{table}").as_bytes()));
                written.map_err(|e| Failure::Runtime(format!("cannot append to {}: {e}", file.display())))?;
                println!("# the secret, shown this once:\n# {secret}\n\n# appended to {}", file.display());
            }
        }
        Ok(())
    }

    /// Whether the file has a key of this name. What cannot be read has none, and appending will tell.
    fn stands_in(&self, file: &Path) -> bool {
        let read = fs::read_to_string(file).ok().and_then(|text| text.parse::<toml::Table>().ok());
        let keys = read.as_ref().and_then(|table| table.get("key")?.as_array());
        keys.into_iter().flatten().any(|key| key.get("name").and_then(toml::Value::as_str) == Some(&self.name))
    }

    fn table(&self, secret: &str) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let models = if self.models.is_empty() { vec!["*".to_owned()] } else { self.models.clone() };
        let models = models.iter().map(|glob| quoted(glob)).collect::<Vec<_>>().join(", ");
        let digest = hex(&digest(secret.as_bytes()));
        format!("[[key]]\nname   = {}\nsha256 = \"{digest}\"\nmodels = [{models}]\n", quoted(&self.name))
    }
}

/// 256 random bits, with a prefix by which a leaked one is recognised.
fn secret() -> Result<String, getrandom::Error> {
    let mut random = [0; 32];
    getrandom::fill(&mut random)?;
    Ok(format!("fb-{}", hex(&random)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_the_digest_and_never_the_secret() {
        let new = New { name: "a \"b\"".into(), models: vec!["llama-*".into()], append: None };
        let table = new.table("fb-secret");
        let read: toml::Table = table.parse().unwrap();
        let key = &read["key"][0];
        assert_eq!(key["name"].as_str(), Some("a \"b\""));
        assert_eq!(key["models"][0].as_str(), Some("llama-*"));
        assert_eq!(key["sha256"].as_str(), Some(&*hex(&digest(b"fb-secret"))));
        assert!(!table.contains("fb-secret"));
    }

    #[test]
    fn two_secrets_differ() {
        assert_ne!(secret().unwrap(), secret().unwrap());
    }
}
