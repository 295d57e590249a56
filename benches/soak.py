#!/usr/bin/env python3
"""An hour of mixed load with a reload a minute: what fails, and whether the daemon's memory stays flat.

    benches/soak.py [MINUTES]       60 unless said; needs `cargo build --release`, nothing else

FOREBAY=FILE tries another binary. 40 clients ask two models, one with a cache: whole answers and streams on connections that are kept,
new connections, prompts that many ask, and a fifth who leave early. Each minute the file changes (servers, weights, limits, models,
keys) and is read again. A line a minute: requests, what failed, memory.
"""

import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOREBAY = os.environ.get("FOREBAY", str(ROOT / "target/release/forebay"))
KEY = os.urandom(24).hex()
CLIENTS, PAUSE = 40, 0.25


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


class Engine:
    """A stand-in engine."""

    def __init__(self, name):
        self.name, self.port = name, free_port()
        words = ["engine", "--listen", f"127.0.0.1:{self.port}", "--name", self.name, "--tokens-per-second", "40"]
        self.process = subprocess.Popen([FOREBAY, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def configuration(minute, engines, port, admin):
    """A file that differs each minute; what the clients use is always in it."""
    weights = [1 + (minute + place) % 3 for place in range(len(engines))]
    servers = ", ".join(
        f'{{ address = "127.0.0.1:{engine.port}", name = "{engine.name}", weight = {weight}, max_in_flight = {40 + minute % 7} }}'
        for engine, weight in zip(engines, weights, strict=True)
    )
    more = f'[model.extra-{minute}]\npool = "second"\n[[key]]\nname = "extra-{minute}"\nsha256 = "{minute:064x}"\nmodels = ["extra-*"]\n'
    return f"""
[server]
listen = ["127.0.0.1:{port}"]
[admin]
listen = "127.0.0.1:{admin}"
[log]
access = "off"
[cache]
memory = "16MiB"
[pool.main]
servers = [{servers}]
balance = "{["round-robin", "least-connections"][minute % 2]}"
health = {{ interval = "500ms" }}
queue = {{ size = 200, timeout = "20s" }}
[pool.second]
servers = ["127.0.0.1:{engines[minute % 2].port}"]
health = {{ interval = "500ms" }}
[model.plain]
pool = "main"
[model.kept]
pool = "main"
[model.kept.cache]
sampled = true
ttl = "{30 + minute % 5}s"
{more if minute % 3 else ""}
[[key]]
name = "soak"
sha256 = "{sha256(KEY.encode()).hexdigest()}"
models = ["plain", "kept"]
"""


class Load:
    """Clients, each in a thread of its own, and what became of their requests."""

    def __init__(self, port):
        self.port, self.over, self.told, self.lock = port, threading.Event(), Counter(), threading.Lock()
        self.threads = [threading.Thread(target=self.client, args=(seed,), daemon=True) for seed in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def count(self, what):
        with self.lock:
            self.told[what] += 1

    def client(self, seed):
        chance = random.Random(seed)
        connection = None
        while not self.over.is_set():
            kind = chance.choice(["whole", "whole", "stream", "stream", "leaves"])
            try:
                connection = self.ask(chance, kind, connection)
            except Exception as error:  # whatever it is, it is told
                self.count(f"failed ({kind}): {error!r}"[:160])
                connection = None
            if chance.random() < 0.3:
                connection = None
            time.sleep(chance.random() * 2 * PAUSE)

    def ask(self, chance, kind, connection):
        connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        model = chance.choice(["plain", "kept"])
        # A few are asked for by many, and most by one.
        text = f"question {int(chance.paretovariate(0.4)) % 100_000} " + "word " * chance.choice([5, 20, 60, 2000])
        tokens = chance.choice([4, 12, 40])
        body = json.dumps({
            "model": model, "stream": kind != "whole", "max_tokens": tokens, "messages": [{"role": "user", "content": text}],
        })
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        if kind == "leaves" and chance.random() < 0.5:
            time.sleep(chance.random() * 0.2)
            connection.close()
            self.count("left")
            return None
        answer = connection.getresponse()
        if kind == "leaves":
            answer.read(chance.randrange(1, 400))
            connection.close()
            self.count("left")
            return None
        whole = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {whole[:80]}")
        if kind == "stream" and not whole.endswith(b"data: [DONE]\n\n"):
            raise RuntimeError(f"broken: …{whole[-160:]}")
        self.count(answer.headers.get("x-forebay-cache") or "plain")
        return None if answer.will_close else connection


def admin_text(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path)
    return connection.getresponse().read().decode()


def metric(text, name):
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


def megabytes(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main():
    minutes = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    engines = [Engine(name) for name in ("one", "two", "three")]
    port, admin = free_port(), free_port()
    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name) / "forebay.toml"
    file.write_text(configuration(0, engines, port, admin))
    log = Path(folder.name) / "forebay.log"
    with log.open("w") as said:
        forebay = subprocess.Popen([FOREBAY, "run", "-c", file], stderr=said)
    try:
        soak(minutes, engines, (port, admin), file, forebay)
        print("in the log:", dict(Counter(json.loads(line)["level"] for line in log.read_text().splitlines())))
    finally:
        for process in [forebay, *(engine.process for engine in engines)]:
            process.terminate()
            process.wait()


def soak(minutes, engines, ports, file, forebay):
    port, admin = ports
    until = time.monotonic() + 20
    while True:
        try:
            if '"ready": true' in admin_text(admin, "/readyz"):
                break
        except OSError:
            pass
        if time.monotonic() > until:
            sys.exit("forebay is not ready in 20 s")
        time.sleep(0.1)
    load, held = Load(port), []
    for minute in range(1, minutes + 1):
        time.sleep(60)
        file.write_text(configuration(minute, engines, port, admin))
        forebay.send_signal(signal.SIGHUP)
        held.append(megabytes(forebay.pid))
        with load.lock:
            told = dict(load.told)
        failed = {what: count for what, count in told.items() if what.startswith("failed")}
        print(f"minute {minute}: {sum(told.values())} requests, {sum(failed.values())} failed, {held[-1]:.1f} MB", flush=True)
    load.over.set()
    for thread in load.threads:
        thread.join(90)
    time.sleep(2)
    text = admin_text(admin, "/metrics")
    print(f"\n{dict(load.told)}")
    for name in ("in_flight", "queued", "cache_bytes", "client_connections"):
        print(f"{name}: {metric(text, 'forebay_' + name):.0f}")
    print(f"reloads: {metric(text, 'forebay_config_reloads_total'):.0f}, retries and all: {metric(text, 'forebay_upstream_attempts_total'):.0f} attempts")
    tenth = max(1, len(held) // 6)
    print(f"memory: {held[0]:.1f} MB after a minute, {sum(held[tenth:2 * tenth]) / tenth:.1f} MB in the second sixth, "
          f"{sum(held[-tenth:]) / tenth:.1f} MB in the last, {max(held):.1f} MB at most")


main()
