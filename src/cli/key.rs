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
    /// Shows in logs and in the status; the secret never does
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
        let shown = format!("# the secret, shown this once:\n# {secret}\n");
        match &self.append {
            None => super::print(&format!("{shown}\n{table}\n")),
            Some(file) => {
                self.fits(file)?;
                let made = !file.exists();
                let text = format!("\n{table}");
                let undo = append(file, &text)
                    .map_err(|e| Failure::Runtime(format!("cannot append to {}: {e}", file.display())))?;
                let where_to = match made {
                    true => format!("# made {}, which counts once a configuration includes it", file.display()),
                    false => format!("# appended to {}", file.display()),
                };
                // A key whose secret nobody saw is of no use.
                super::print(&format!("{shown}\n{where_to}\n")).inspect_err(|_| undo())
            }
        }
    }

    /// Whether the key can stand in this file, which need not be there.
    fn fits(&self, file: &Path) -> Result<(), Failure> {
        let refused = |why: String| Err(Failure::Usage(format!("forebay: {} {why}", file.display())));
        match fs::metadata(file) {
            Ok(metadata) if !metadata.is_file() => return refused("is not a file".into()),
            Ok(_) => {}
            Err(_) => return Ok(()), // appending makes it, or says why not
        }
        let read =
            fs::read_to_string(file).map_err(|e| Failure::Runtime(format!("cannot read {}: {e}", file.display())))?;
        let Ok(table) = read.parse::<toml::Table>() else {
            return refused("is not TOML; `forebay check` says where".into());
        };
        let keys = table.get("key").and_then(toml::Value::as_array);
        let mut names = keys.into_iter().flatten().filter_map(|key| key.get("name")?.as_str());
        if names.any(|name| name == self.name) {
            return refused(format!(
                "has a key {:?} already; to change its secret, make one without --append and add its digest to `sha256`",
                self.name
            ));
        }
        Ok(())
    }

    fn table(&self, secret: &str) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let models = if self.models.is_empty() { vec!["*".to_owned()] } else { self.models.clone() };
        let models = models.iter().map(|glob| quoted(glob)).collect::<Vec<_>>().join(", ");
        let digest = hex(&digest(secret.as_bytes()));
        format!("[[key]]\nname   = {}\nsha256 = \"{digest}\"\nmodels = [{models}]\n", quoted(&self.name))
    }
}

/// Appends all of it, or nothing: half a table would be the end of the next reload. What it gives takes it away again.
fn append(path: &Path, text: &str) -> std::io::Result<impl FnOnce()> {
    let made = !path.exists();
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    let before = file.metadata()?.len();
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    let undo = move || {
        // The first error is what counts.
        let _ = if made { fs::remove_file(path) } else { file.set_len(before) };
    };
    match written {
        Ok(()) => Ok(undo),
        Err(e) => {
            undo();
            Err(e)
        }
    }
}

/// 256 random bits, with a prefix by which a leaked one is recognised.
pub(super) fn secret() -> Result<String, getrandom::Error> {
    let mut random = [0; 32];
    getrandom::fill(&mut random)?;
    Ok(format!("fb-{}", hex(&random)))
}

/// Bytes as lower-case digits.
pub(super) fn hex(bytes: &[u8]) -> String {
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
