//! Puts the git revision into the binary, for `--version` and `build_info`.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-changed=.git/index");
    let described = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|out| out.status.success())
        .and_then(|out| String::from_utf8(out.stdout).ok());
    let revision = described.as_deref().map_or("unknown", str::trim);
    println!("cargo::rustc-env=FOREBAY_REVISION={revision}");
}
