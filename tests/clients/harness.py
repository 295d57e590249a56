"""Starts the real processes on free ports, and says what was given to them.

Nothing here sleeps to be in time: `until` asks again until the answer is there or a deadline has passed.
"""

import hashlib
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("FOREBAY", str(ROOT / "target/debug/forebay"))
DEADLINE = 20.0


def until(what, ask, seconds=DEADLINE):
    """Asks again until the answer is true, and returns it."""
    deadline = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


def free_port():
    """A loopback port that was free a moment ago; `started` tries again where it no longer is."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Key:
    """A client's credential, as its owner and as the configuration know it."""

    name: str
    models: list = field(default_factory=lambda: ["*"])
    more: str = ""
    secret: str = field(default_factory=lambda: "sk-" + secrets.token_hex(24), repr=False)

    @property
    def digest(self):
        return hashlib.sha256(self.secret.encode()).hexdigest()

    def toml(self):
        models = json.dumps(self.models)
        return f'[[key]]\nname = "{self.name}"\nsha256 = "{self.digest}"\nmodels = {models}\n{self.more}\n'


@dataclass
class Answer:
    """A response, read whole."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self):
        return json.loads(self.body)


def ask(port, path, method="GET", headers=None, body=None, seconds=DEADLINE):
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def is_ok(port, path):
    try:
        return ask(port, path, seconds=2).status == 200
    except (OSError, http.client.HTTPException):
        return False


class Process:
    """A running forebay command whose stderr goes to a file."""

    def __init__(self, arguments, log):
        self.log = Path(log)
        with self.log.open("wb") as stderr:
            self.popen = subprocess.Popen(
                [BINARY, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
            )

    def stderr(self):
        return self.log.read_text(errors="replace")

    def ended(self):
        return self.popen.poll() is not None

    def stop(self):
        """Asks the process to end, and returns its exit code."""
        if not self.ended():
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise AssertionError(f"still running {DEADLINE:g} s after SIGTERM: {self.popen.args[1:]}") from None


def started(start, is_ready):
    """Starts a process and waits until it is ready; takes other ports where somebody else took the free ones."""
    for _ in range(5):
        process = start()
        try:
            until("ready", lambda: process.ended() or is_ready(process))
        except AssertionError:
            process.stop()
            raise AssertionError(f"never ready: {process.popen.args[1:]}\n{process.stderr()}") from None
        if not process.ended():
            return process
        if "in use" not in process.stderr().lower():
            break
    raise AssertionError(f"ended at once: {process.popen.args[1:]}\n{process.stderr()}")


class Engine(Process):
    """`forebay engine`: the stand-in for an inference engine."""

    @classmethod
    def start(cls, directory, name, models, *flags):
        def start():
            port = free_port()
            arguments = ["engine", "--listen", f"127.0.0.1:{port}", "--name", name, *flags]
            for model in models:
                arguments += ["--model", model]
            engine = cls(arguments, Path(directory) / f"{name}.log")
            engine.port = port
            return engine

        return started(start, lambda engine: is_ok(engine.port, "/health"))


class Forebay(Process):
    """`forebay run`: the proxy, with the port for clients (`port`) and the one for operators (`admin`)."""

    @classmethod
    def start(cls, directory, configuration, admin=""):
        """`configuration` is TOML without the listeners' addresses, first `[server]`'s own; `admin` is `[admin]`'s."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)

        def start():
            port, tools = free_port(), free_port()
            file = directory / "forebay.toml"
            file.write_text(
                f'[admin]\nlisten = "127.0.0.1:{tools}"\n{admin}\n'
                f'[server]\nlisten = ["127.0.0.1:{port}"]\n{configuration}'
            )
            forebay = cls(["run", "-c", str(file)], directory / "forebay.log")
            forebay.file, forebay.port, forebay.admin = file, port, tools
            return forebay

        return started(start, lambda forebay: is_ok(forebay.admin, "/startupz") and is_ok(forebay.admin, "/readyz"))

    @property
    def base_url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def metrics(self):
        return Metrics(ask(self.admin, "/metrics").body.decode())

    def in_flight(self, pool):
        """How many requests the pool's engines are answering."""
        servers = ask(self.admin, "/status").json()["pools"][pool]["servers"]
        return sum(server["in_flight"] for server in servers)

    def records(self):
        """The access log's records so far."""
        lines = [line for line in self.stderr().split("\n")[:-1] if line]
        return [record for record in map(json.loads, lines) if "duration_ms" in record]

    def record_of(self, request_id):
        """The access log's record of one request; it is written after the client has its answer."""

        def look():
            return [record for record in self.records() if record["request_id"] == request_id]

        found = until(f"an access log record of {request_id}", look)
        assert len(found) == 1, f"{len(found)} records of one request"
        return found[0]


class Metrics:
    """Prometheus text, read."""

    SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
    LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

    def __init__(self, text):
        self.samples = []
        for line in text.splitlines():
            if line and not line.startswith("#"):
                sample = self.SAMPLE.match(line)
                assert sample, f"not a Prometheus sample: {line}"
                name, labels, value = sample.groups()
                self.samples.append((name, dict(self.LABEL.findall(labels or "")), float(value)))

    def names(self):
        return {name for name, _, _ in self.samples}

    def sum(self, name, **labels):
        """The sum over the series of this name that carry these labels."""
        return sum(
            value for found, has, value in self.samples if found == name and labels.items() <= has.items()
        )
