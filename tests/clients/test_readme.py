"""The README's commands do what it shows, and the files under `conf/` are good and hold every key.

A block after `<!-- tour -->` is typed into one shell, as a reader would; the `text` block after it is what must appear.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import BINARY, ROOT, until

README = (ROOT / "README.md").read_text()
CONFIG = (ROOT / "src/config.rs").read_text()
CONFS = sorted((ROOT / "conf").glob("*.toml"))
PORTS = [8001, 8002, 8080, 9180]
# Ends the output of each block: a character that nothing here prints.
END = "\x1e"


def run(*arguments, **options):
    options = {"capture_output": True, "text": True, "timeout": 30, "stdin": subprocess.DEVNULL} | options
    return subprocess.run([BINARY, *map(str, arguments)], **options)


# === the tour ===


@dataclass
class Step:
    language: str
    typed: str
    shown: str


def steps():
    block = r"<!-- tour -->\n```(\w+)\n(.*?)```\n```text\n(.*?)```"
    found = [Step(*parts) for parts in re.findall(block, README, re.DOTALL)]
    assert len(found) == README.count("<!-- tour -->"), "a tour block without its output"
    return found


def shape(text):
    """The lines of an output without what differs each time. Two processes at once print in any order."""
    for pattern, instead in [
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
        (r"chatcmpl-[0-9a-f]+", "CHATCMPL"),
        (r'("created": ?)\d+', r"\1N"),
        (r'(_ms": ?)[\d.]+', r"\1N"),
        (r"pid \d+", "pid N"),
        (r" +\d+s\b", " AGE"),
        (r"gpu[12]", "gpuN"),
        (r"127\.0\.0\.1:800[12]", "127.0.0.1:800N"),
    ]:
        text = re.sub(pattern, instead, text)
    return sorted(line.rstrip() for line in text.splitlines() if line.strip())


class Shell:
    """A bash that is typed into."""

    def __init__(self, directory):
        self.output = directory / "output"
        environment = os.environ | {"NO_PROXY": "*", "no_proxy": "*"}
        with self.output.open("wb") as output:
            self.popen = subprocess.Popen(
                ["bash"],
                cwd=directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def type(self, step):
        """Types a block; returns what was printed once it is as shown, or at the deadline."""
        typed = step.typed
        if step.language == "python":
            typed = f"{sys.executable} - <<'PYTHON'\n{typed}PYTHON\n"
        before = len(self.output.read_text())
        self.popen.stdin.write(f"{typed}printf '{END}'\n".encode())
        self.popen.stdin.flush()

        def printed():
            return self.output.read_text()[before:]

        until(f"the end of:\n{typed}", lambda: END in printed())
        try:
            # What runs in the background prints a moment later.
            until("the output", lambda: shape(printed().replace(END, "")) == shape(step.shown), seconds=5)
        except AssertionError:
            pass  # the caller's assert shows the difference
        return printed().replace(END, "")

    def close(self):
        """Ends the shell and whatever still runs in it."""
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended by itself, and everything with it
        self.popen.stdin.close()
        self.popen.wait()


def taken(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def test_the_tour_prints_what_the_readme_shows(tmp_path):
    busy = [port for port in PORTS if taken(port)]
    if busy:
        pytest.skip(f"the tour's ports are taken: {busy}")
    (tmp_path / "target/release").mkdir(parents=True)
    (tmp_path / "target/release/forebay").symlink_to(Path(BINARY).resolve())
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    shell = Shell(tmp_path)
    try:
        for step in steps():
            printed = shell.type(step)
            assert shape(printed) == shape(step.shown), step.typed
    finally:
        shell.close()


# === the configurations ===

# What the README's shorter examples leave out.
POOLS = "".join(f'\n[pool.{name}]\nservers = ["127.0.0.1:1"]\n' for name in ["vllm", "triton"])
CHAT = '\n[[route]]\nname = "chat"\npath = "/v1/*"\nby = "model"\n'
MODEL = '\n[model."llama-3"]\npool = "vllm"\n'


@pytest.mark.parametrize("file", CONFS, ids=lambda file: file.name)
def test_check_finds_nothing_wrong_with_a_shipped_configuration(file):
    checked = run("check", "-c", file)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", README, re.DOTALL))
def test_check_finds_nothing_wrong_with_an_example_of_the_readme(tmp_path, monkeypatch, example):
    monkeypatch.setenv("VLLM_KEY", "a-key")
    example = example.replace("/var/log/forebay", str(tmp_path))
    has = tomllib.loads(example)
    missing = [("pool", POOLS), ("model", MODEL), ("route", CHAT)]
    file = tmp_path / "forebay.toml"
    file.write_text(example + "".join(text for table, text in missing if table not in has))
    (tmp_path / "env").mkdir()
    (tmp_path / "env/dev.toml").touch()
    checked = run("check", "-c", file)
    assert checked.returncode == 0, checked.stderr


def whole():
    """conf/forebay.toml as it stands, and with the keys that are commented out."""
    text = (ROOT / "conf/forebay.toml").read_text()
    return text, re.sub(r"^#(\w+ = )", r"\1", text, flags=re.MULTILINE)


def test_check_finds_nothing_wrong_with_the_keys_that_are_commented_out(tmp_path):
    written, uncommented = whole()
    assert written != uncommented
    file = tmp_path / "forebay.toml"
    file.write_text(uncommented)
    checked = run("check", "-c", file)
    assert checked.returncode == 0, checked.stderr


def test_the_whole_configuration_has_every_key_of_the_code():
    root = tomllib.loads(whole()[1])
    [pool] = root["pool"].values()
    [model] = root["model"].values()
    routes = {key: value for route in root["route"] for key, value in route.items()}
    tables = {
        "Config": root,
        "ServerTable": root["server"],
        "Admin": root["admin"],
        "Log": root["log"],
        "Cache": root["cache"],
        "Pool": pool,
        "Server": pool["servers"][0],
        "Health": pool["health"],
        "Eject": pool["eject"],
        "Timeouts": pool["timeouts"],
        "Connections": pool["connections"],
        "Retry": pool["retry"],
        "Queue": pool["queue"],
        "Model": model,
        "ModelCache": model["cache"],
        "Route": routes,
        "Key": root["key"][0],
    }
    structs = re.findall(r"^pub struct (\w+) \{\n(.*?)^\}", CONFIG, re.DOTALL | re.MULTILINE)
    in_code = {name: set(re.findall(r"^    pub (\w+):", fields, re.MULTILINE)) for name, fields in structs}
    assert {name: set(table) for name, table in tables.items()} == in_code


def test_the_whole_configuration_shows_the_defaults_of_the_code():
    # The text that a test of the code holds against each `impl Default`.
    [defaults] = re.findall(r"fn what_is_left_out_is.*?r#\"(.*?)\"#", CONFIG, re.DOTALL)
    expected, root = tomllib.loads(defaults), tomllib.loads(whole()[0])
    required = {"address", "name", "path", "pool"}  # these have no default

    def compare(expected, shown, where):
        if isinstance(expected, dict):
            for key, value in expected.items():
                # The one pool and the one model have a name of their own.
                [(_, there)] = shown.items() if where in ("pool", "model") else [(key, shown.get(key))]
                if key not in required or isinstance(value, dict):
                    compare(value, there, key)
        elif isinstance(expected, list) and expected and isinstance(expected[0], dict):
            compare(expected[0], shown[0], "")
        else:
            assert shown == expected, where

    compare(expected, root, "")


# === the README's tables ===


def test_the_readme_knows_every_error_metric_and_log_field():
    def found(pattern, file):
        names = re.findall(pattern, (ROOT / "src" / file).read_text())
        assert names, f"nothing in {file} looks like {pattern}"
        return set(names)

    codes = found(r'=> \(\d{3}, [^,]+, "(\w+)", \d+\)', "proxy/rejection.rs")
    metrics = found(r'"(forebay_\w+)"', "observe/metrics.rs")
    fields = found(r'\.(?:text|plain|millis)\("(\w+)"', "observe/access_log.rs")
    assert (codes | metrics | fields) - set(re.findall(r"\w+", README)) == set()
