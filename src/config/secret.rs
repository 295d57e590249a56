//! Secrets that the configuration names and never holds: they come from the environment, from a file or from systemd.
//!
//! No message here repeats what was written: it may be a secret in clear text.

use std::fmt;
use std::fs;
use std::path::Path;

use http::HeaderValue;
use serde::Deserialize;

use super::Footprint;

/// Where a secret is, written as `"${NAME}"`, `"file:/path"` or `"credential:NAME"`; `""` is none.
#[derive(Clone, Default, Deserialize, Eq, PartialEq)]
#[serde(transparent)]
pub struct Secret(String);

/// systemd's variable for the folder of a unit's credentials.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// The longest secret, in bytes.
const LONGEST: u64 = 8 * 1024;

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// The secret as the value of `Authorization`; none, if none was written. `written` is what stands in the file, where its
    /// variables are not filled in yet. The secret's own file, if it has one, goes into `footprint`.
    pub(super) fn bearer(
        &self,
        written: &str,
        environment: &dyn Fn(&str) -> Option<String>,
        footprint: &mut Footprint,
    ) -> Result<Option<HeaderValue>, String> {
        let Some(secret) = self.reveal(written, environment, footprint)? else { return Ok(None) };
        let value = format!("Bearer {}", secret.trim());
        let empty = secret.trim().is_empty();
        match HeaderValue::try_from(value) {
            Ok(mut value) if !empty && value.to_str().is_ok() => {
                value.set_sensitive(true);
                Ok(Some(value))
            }
            _ if empty => Err("the secret is empty".to_owned()),
            _ => Err("the secret is more than one line of visible ASCII characters".to_owned()),
        }
    }

    fn reveal(
        &self,
        written: &str,
        environment: &dyn Fn(&str) -> Option<String>,
        footprint: &mut Footprint,
    ) -> Result<Option<String>, String> {
        let written = written.trim_matches(['"', '\'']);
        if written.is_empty() {
            return Ok(None);
        }
        if is_variable(written) {
            return Ok(Some(self.0.clone()));
        }
        if let Some(path) = self.0.strip_prefix("file:") {
            return read(Path::new(path), footprint).map(Some);
        }
        let Some(name) = self.0.strip_prefix("credential:") else {
            return Err(
                "a secret cannot stand here in clear text; write \"${NAME}\" for a variable of the environment, \
                        \"file:/path\", or \"credential:NAME\" for one of systemd's"
                    .to_owned(),
            );
        };
        let Some(folder) = environment(CREDENTIALS) else {
            return Err(format!(
                "the environment has no `{CREDENTIALS}`; systemd sets it for a unit with LoadCredential=NAME:PATH"
            ));
        };
        if name.is_empty() || name.contains('/') {
            return Err("a credential's name is what stands before the colon in LoadCredential=".to_owned());
        }
        read(&Path::new(&folder).join(name), footprint).map(Some)
    }
}

/// Whether all of this is one variable without a default, which would be clear text again.
fn is_variable(written: &str) -> bool {
    let name = written.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    name.is_some_and(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
}

fn read(path: &Path, footprint: &mut Footprint) -> Result<String, String> {
    if !path.is_absolute() {
        return Err("the path of the secret's file must be absolute; write \"file:/path\"".to_owned());
    }
    footprint.note(path);
    let shown = path.display();
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(format!("{shown} is not a file")),
        Ok(metadata) if metadata.len() > LONGEST => Err(format!("{shown} is too long for a secret")),
        _ => fs::read_to_string(path).map_err(|e| format!("{shown} cannot be read: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::source::tests::Folder;

    #[test]
    fn a_secret_comes_from_where_it_is_named_to_be() {
        let folder = Folder::new(&[("key", "fb-file\n"), ("two", "a\nb"), ("empty", "\n")]);
        let path = |name: &str| format!("file:{}", folder.path(name).display());
        let directory = folder.path("key").parent().map(|folder| folder.display().to_string());
        let clear = "a secret cannot stand here in clear text; write \"${NAME}\" for a variable of the environment, \
                     \"file:/path\", or \"credential:NAME\" for one of systemd's";
        let cases = [
            ("", "", Ok(None)),
            ("\"${KEY}\"", "fb-variable", Ok(Some("Bearer fb-variable"))),
            ("'${KEY}'", "file:/odd", Ok(Some("Bearer file:/odd"))),
            ("\"${KEY}\"", " ", Err("the secret is empty".to_owned())),
            ("\"${KEY}\"", "a\u{7f}", Err("the secret is more than one line of visible ASCII characters".into())),
            ("\"${KEY:-fb-clear}\"", "fb-clear", Err(clear.to_owned())),
            ("\"fb-${KEY}\"", "fb-x", Err(clear.to_owned())),
            ("\"fb-clear\"", "fb-clear", Err(clear.to_owned())),
            ("\"file:…\"", &path("key"), Ok(Some("Bearer fb-file"))),
            ("\"file:…\"", &path("two"), Err("the secret is more than one line of visible ASCII characters".into())),
            ("\"file:…\"", &path("empty"), Err("the secret is empty".to_owned())),
            (
                "\"file:…\"",
                "file:key",
                Err("the path of the secret's file must be absolute; write \"file:/path\"".into()),
            ),
            ("\"file:…\"", "file:/", Err("/ is not a file".to_owned())),
            ("\"credential:…\"", "credential:key", Ok(Some("Bearer fb-file"))),
            (
                "\"credential:…\"",
                "credential:../key",
                Err("a credential's name is what stands before the colon in LoadCredential=".to_owned()),
            ),
        ];
        for (written, value, expected) in cases {
            let environment = |name: &str| directory.clone().filter(|_| name == CREDENTIALS);
            let bearer = Secret(value.to_owned()).bearer(written, &environment, &mut Footprint::default());
            let shown = bearer.as_ref().map(|value| value.as_ref().map(|value| value.to_str().unwrap()));
            assert_eq!(shown, expected.as_ref().map(|value| *value), "{written}");
            assert!(!format!("{bearer:?}").contains("fb-"), "{written}");
        }
        let nowhere =
            Secret("credential:key".to_owned()).bearer("\"credential:key\"", &|_| None, &mut Footprint::default());
        assert!(nowhere.is_err_and(|why| why.starts_with("the environment has no `CREDENTIALS_DIRECTORY`")));
    }
}
