//! What a configuration was read from and how that looked, to tell whether its files say something else by now.
//!
//! Looks are compared, not contents: a file that was written, replaced, or led elsewhere by a symbolic link on its way looks
//! different, even where its length and its time are what they were.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use glob::PatternError;

/// The files that a configuration was read from, its secrets' among them, and how they looked before they were read.
#[derive(Clone, Debug, Default)]
pub struct Footprint {
    /// `None`: it was not there.
    files: BTreeMap<PathBuf, Option<Look>>,
    /// The globs of includes, and the files that they matched.
    globs: BTreeMap<String, BTreeSet<PathBuf>>,
}

/// How a file looks from outside.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Look {
    /// Its device and inode: another file of this name has others.
    identity: (u64, u64),
    /// Its length in bytes.
    length: u64,
    /// When its content was written, in seconds and nanoseconds. A writer can set it back.
    written: (i64, i64),
    /// When it, its owner or its mode was changed. Nobody can set it back.
    changed: (i64, i64),
}

// === impl Footprint ===

impl Footprint {
    /// Takes in a file that is about to be read.
    pub(super) fn note(&mut self, path: &Path) {
        if !self.files.contains_key(path) {
            self.files.insert(path.to_owned(), Look::at(path));
        }
    }

    /// The files that a glob matches, in alphabetical order; hidden ones only where it spells their dot, as in a shell.
    pub(super) fn matches(&mut self, pattern: &str) -> Result<Vec<PathBuf>, PatternError> {
        // The crate's own option for hidden files panics at names that are not UTF-8 (glob 0.3.4).
        let all = is_hidden(Path::new(pattern));
        let wanted = |path: &PathBuf| (all || !is_hidden(path)) && !path.is_dir();
        // A folder that cannot be looked into is as if it were empty, as in a shell.
        let paths: Vec<PathBuf> = glob::glob(pattern)?.flatten().filter(wanted).collect();
        self.globs.insert(pattern.to_owned(), paths.iter().cloned().collect());
        Ok(paths)
    }

    /// How all of it looks now, and what its globs match now.
    #[must_use]
    pub fn look(&self) -> Self {
        let mut now = Self::default();
        for pattern in self.globs.keys() {
            let paths = now.matches(pattern).unwrap_or_default(); // it was one before
            paths.iter().for_each(|path| now.note(path));
        }
        self.files.keys().for_each(|path| now.note(path));
        now
    }

    /// A file that does not look as it did in `since`, if there is one.
    #[must_use]
    pub fn changed<'f>(&'f self, since: &'f Self) -> Option<&'f Path> {
        let looks = self.files.iter().filter(|(path, look)| since.files.get(*path) != Some(look));
        let gone = self.globs.iter().flat_map(|(pattern, paths)| {
            let before = since.globs.get(pattern).into_iter().flatten();
            before.filter(|path| !paths.contains(*path))
        });
        looks.map(|(path, _)| path).chain(gone).next().map(PathBuf::as_path)
    }
}

// === impl Look ===

impl Look {
    /// At the end of every link; `None` where nothing can be found.
    fn at(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        Some(Self {
            identity: (file.dev(), file.ino()),
            length: file.size(),
            written: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::os::unix::fs::symlink;
    use std::time::{Duration, UNIX_EPOCH};

    use super::super::plan::Plan;
    use super::super::source::tests::Folder;
    use super::*;

    /// What somebody does to a folder.
    type Deed<'d> = &'d dyn Fn(&dyn Fn(&str) -> PathBuf);

    /// A configuration of several files in a folder behind a link, as Kubernetes mounts one, and a secret.
    fn folder() -> Folder {
        let folder = Folder::new(&[
            ("one/main", "include = [\"d/*.toml\", \"absent\"]\n[pool.p]\nservers = [\"a:1\"]"),
            ("one/d/a.toml", "[model.a]\npool = \"p\""),
            ("one/d/sub/b.toml", ""),
            ("two/main", "[pool.p]\nservers = [\"a:1\"]"),
            ("secret", "fb-secret"),
        ]);
        symlink(folder.path("one"), folder.path("data")).unwrap();
        let api_key = format!("\napi_key = \"file:{}\"", folder.path("secret").display());
        fs::write(folder.path("one/main"), fs::read_to_string(folder.path("one/main")).unwrap() + &api_key).unwrap();
        folder
    }

    #[test]
    fn what_would_be_read_otherwise_looks_different() {
        let old = UNIX_EPOCH + Duration::from_secs(1);
        let cases: &[(&str, Deed, Option<&str>)] = &[
            ("nothing", &|_| {}, None),
            ("written in place", &|at| fs::write(at("one/main"), "x").unwrap(), Some("data/main")),
            ("another time", &|at| File::open(at("one/main")).unwrap().set_modified(old).unwrap(), Some("data/main")),
            (
                "replaced by one of the same length and time",
                &|at| {
                    let before = fs::metadata(at("one/main")).unwrap();
                    let length = usize::try_from(before.len()).unwrap();
                    fs::write(at("new"), "#".repeat(length)).unwrap();
                    File::open(at("new")).unwrap().set_modified(before.modified().unwrap()).unwrap();
                    fs::rename(at("new"), at("one/main")).unwrap();
                },
                Some("data/main"),
            ),
            ("gone", &|at| fs::remove_file(at("one/main")).unwrap(), Some("data/main")),
            (
                "a link that leads elsewhere",
                &|at| {
                    symlink(at("two"), at("next")).unwrap();
                    fs::rename(at("next"), at("data")).unwrap();
                },
                Some("data/d/a.toml"),
            ),
            ("an included file", &|at| fs::write(at("one/d/a.toml"), "").unwrap(), Some("data/d/a.toml")),
            ("an included file goes", &|at| fs::remove_file(at("one/d/a.toml")).unwrap(), Some("data/d/a.toml")),
            ("one that a glob matches", &|at| fs::write(at("one/d/c.toml"), "").unwrap(), Some("data/d/c.toml")),
            ("one that was missing", &|at| fs::write(at("one/absent"), "").unwrap(), Some("data/absent")),
            ("the file of a secret", &|at| fs::write(at("secret"), "fb-new").unwrap(), Some("secret")),
            ("one that no glob matches", &|at| fs::write(at("one/d/c.toml~"), "").unwrap(), None),
            ("an editor's hidden lock", &|at| symlink("nowhere", at("one/d/.#a.toml")).unwrap(), None),
            ("one deeper down", &|at| fs::write(at("one/d/sub/b.toml"), "x").unwrap(), None),
        ];
        for (what, act, expected) in cases {
            let folder = folder();
            let (plan, _) = Plan::read(&folder.path("data/main"), &|_| None);
            act(&|name| folder.path(name));
            let now = plan.footprint.look();
            assert_eq!(now.changed(&plan.footprint), expected.map(|name| folder.path(name)).as_deref(), "{what}");
            assert_eq!(now.look().changed(&now), None, "{what}");
        }
    }

    #[test]
    fn a_glob_matches_what_it_would_in_a_shell() {
        let files = ["b.toml", "a.toml", ".hidden.toml", "c.txt", ".d/e.toml", "[x]/f.toml", "f/g.toml", "dir.toml/h"];
        let folder = Folder::new(&files.map(|name| (name, "")));
        fs::write(folder.path("").join(OsStr::from_bytes(b"not UTF-8 \xff.toml")), "").unwrap();
        let cases: &[(&str, &[&str])] = &[
            ("*.toml", &["a.toml", "b.toml"]),
            (".*.toml", &[".hidden.toml"]),
            (".d/*", &[".d/e.toml"]),
            ("f/../*.txt", &["f/../c.txt"]),
            ("[[]x]/?.toml", &["[x]/f.toml"]),
            ("*/g.toml", &["f/g.toml"]),
            ("none/*", &[]),
        ];
        for (glob, expected) in cases {
            let found = Footprint::default().matches(&folder.path(glob).display().to_string());
            let expected: Vec<PathBuf> = expected.iter().map(|name| folder.path(name)).collect();
            assert_eq!(found.ok(), Some(expected), "{glob}");
        }
    }

    #[test]
    fn what_a_glob_matched_for_a_moment_is_missed() {
        let folder = folder();
        let (plan, _) = Plan::read(&folder.path("data/main"), &|_| None);
        fs::write(folder.path("one/d/c.toml"), "").unwrap();
        let with = plan.footprint.look();
        fs::remove_file(folder.path("one/d/c.toml")).unwrap();
        let without = plan.footprint.look();
        assert_eq!(without.changed(&with), Some(folder.path("data/d/c.toml").as_path()));
        assert_eq!(without.changed(&plan.footprint), None);
    }
}
