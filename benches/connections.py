#!/usr/bin/env python3
"""What an idle connection and an open stream cost forebay in memory, and how soon it tells of itself meanwhile.

    benches/connections.py [IDLE [STREAMS]]     10000 idle keep-alive connections and 2000 streams, unless it says otherwise

FOREBAY=FILE measures another binary. Every connection has had an answer before it is idle; every stream has had its first event,
and another one comes each second. Memory is the growth of what the process holds (RSS), over their number.
"""

import hashlib
import http.client
import json
import multiprocessing
import os
import resource
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOREBAY = os.environ.get("FOREBAY") or Path(os.environ.get("CARGO_TARGET_DIR") or HERE.parent / "target") / "release/forebay"
KEY = secrets.token_urlsafe(24)
CLIENTS = 4
LOOKS = 50
CONFIGURATION = """
[server]
listen = ["127.0.0.1:{port}"]
keepalive = "1h"

[admin]
listen = "127.0.0.1:{admin}"

[log]
access = "off"

[pool.engines]
servers = ["127.0.0.1:{engine}"]

[model.demo]
pool = "engines"

[[key]]
name = "bench"
sha256 = "{digest}"
models = ["demo"]
"""


def free_port():
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def prompt(stream):
    """A request: for a short answer, or for a stream that outlasts the measurement."""
    body = {"model": "demo", "stream": stream, "max_tokens": 3600 if stream else 1}
    body["messages"] = [{"role": "user", "content": "word " * 200}]
    body = json.dumps(body)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def connect(port, stream):
    """A connection that has had its answer, or the first event of it."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(prompt(stream))
    read = b""
    while not (b"data: " in read if stream else read.endswith(b"}")):
        piece = connection.recv(65536)
        if not piece:
            sys.exit(f"an answer broke off: {read!r}")
        read += piece
    if not read.startswith(b"HTTP/1.1 200 "):
        sys.exit(f"not answered: {read!r}")
    return connection


def hold(port, number, stream, told):
    """A client process: opens so many connections, says so, and holds them until it is told to let go."""
    held = [connect(port, stream) for _ in range(number)]
    told.send(len(held))
    told.recv()


def clients(port, number, stream):
    """So many connections, open."""
    all_told = []
    for place in range(CLIENTS):
        ours, theirs = multiprocessing.Pipe()
        share = number // CLIENTS + (place < number % CLIENTS)
        process = multiprocessing.Process(target=hold, args=(port, share, stream, theirs), daemon=True)
        process.start()
        theirs.close()
        all_told.append((process, ours))
    for process, told in all_told:
        try:
            told.recv()
        except EOFError:
            sys.exit("a client failed")
    return all_told


def let_go(all_told):
    """Closes their connections."""
    for process, told in all_told:
        told.send(None)
        process.join()


def kilobytes(pid):
    """The memory that a process holds, once it has settled."""
    time.sleep(2)
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e3


def status_times(admin):
    """How long each of some looks at the status takes, in milliseconds, each on a connection of its own."""
    took = []
    for _ in range(LOOKS):
        start = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=30)
        connection.request("GET", "/status")
        answer = connection.getresponse()
        if answer.status != 200 or not json.loads(answer.read())["pools"]:
            sys.exit("no status")
        took.append((time.monotonic() - start) * 1e3)
        connection.close()
    return took


def ready(admin, process):
    """Waits until requests are served."""
    for _ in range(300):
        if process.poll() is not None:
            sys.exit("forebay has ended")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    sys.exit("forebay is not ready")


def measure(folder, idle, streams):
    """Starts engine and forebay, opens the connections, and prints a table."""
    port, admin, engine = (free_port() for _ in range(3))
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    file = Path(folder, "forebay.toml")
    file.write_text(CONFIGURATION.format(port=port, admin=admin, engine=engine, digest=digest))
    started = [
        subprocess.Popen([FOREBAY, "engine", "--listen", f"127.0.0.1:{engine}", "--tokens-per-second", "1"], stdout=subprocess.DEVNULL),
        subprocess.Popen([FOREBAY, "run", "-c", file], stderr=Path(folder, "log").open("w")),
    ]
    try:
        forebay = started[1]
        ready(admin, forebay)
        # What it takes once for all is not counted.
        for stream in (False, True):
            let_go(clients(port, 64, stream))
        rows, before = [("nothing", 0, kilobytes(forebay.pid), status_times(admin))], []
        for what, number, stream in (("idle connections", idle, False), ("and streams", streams, True)):
            before.append(clients(port, number, stream))
            rows.append((what, number, kilobytes(forebay.pid), status_times(admin)))
        for all_told in before:
            let_go(all_told)
        rows.append(("all closed", 0, kilobytes(forebay.pid), status_times(admin)))
    finally:
        for process in started:
            process.terminate()
            process.wait()
    print("| open | number | RSS, MB | kB each | `/status`, ms: median | slowest |\n|---|--:|--:|--:|--:|--:|")
    last = rows[0][2]
    for what, number, held, took in rows:
        each = f"{(held - last) / number:.1f}" if number else ""
        print(f"| {what} | {number} | {held / 1e3:.1f} | {each} | {statistics.median(took):.1f} | {max(took):.1f} |")
        last = held


def main():
    idle, streams = (int(word) for word in (sys.argv[1:] + ["10000", "2000"][len(sys.argv) - 1 :]))
    # Two for each connection to the engine: see src/proxy/cork.rs.
    needed = idle + 3 * streams + 100
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < needed:
        sys.exit(f"a limit of {needed} open files is needed, and {most} is the most that may be set")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if not os.access(FOREBAY, os.X_OK):
        sys.exit(f"no {FOREBAY}: cargo build --release makes it")
    with tempfile.TemporaryDirectory() as folder:
        measure(folder, idle, streams)


main()
