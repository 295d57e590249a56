"""`forebay drain` on a terminal, and interrupted."""

import os
import pty
import signal
import subprocess

import pytest
from harness import BINARY, Engine, Process, free_port, is_ok, started, until

PROMPT = b'{"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 30}'


@pytest.fixture
def busy(tmp_path):
    """The admin listener of a daemon, and a request that takes its engine three seconds."""
    engine = Engine.start(tmp_path, "gpu1", ["demo"], "--tokens-per-second", "10")
    admin, file = f"unix:{tmp_path / 'admin.sock'}", tmp_path / "forebay.toml"

    def start():
        port = free_port()
        file.write_text(
            f'[server]\nlisten = ["127.0.0.1:{port}"]\n[admin]\nlisten = "{admin}"\n'
            f'[pool.llama]\nservers = [{{ address = "127.0.0.1:{engine.port}", name = "gpu1" }}]\n'
            '[[route]]\nname = "all"\npath = "/v1/*"\npool = "llama"\nauth = "none"\n'
        )
        forebay = Process(["run", "-c", str(file)], tmp_path / "forebay.log")
        forebay.port = port
        return forebay

    forebay = started(start, lambda forebay: is_ok(forebay.port, "/health"))
    url = f"http://127.0.0.1:{forebay.port}/v1/chat/completions"
    command = ["curl", "-s", "--noproxy", "*", url, "-H", "Content-Type: application/json", "-d", PROMPT]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as request:
        try:
            until("it is in flight", lambda: " 1 " in status(admin).splitlines()[-1])
            yield admin, request
        finally:
            request.kill()
            forebay.stop()
            engine.stop()


def status(admin):
    return subprocess.run([BINARY, "status", "--admin", admin], capture_output=True, text=True, timeout=30).stdout


def test_a_terminal_has_one_line_that_is_rewritten(busy):
    admin, request = busy
    ours, terminal = pty.openpty()
    command = [BINARY, "drain", "llama/gpu1", "--admin", admin]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=terminal) as draining:
        try:
            assert draining.wait(timeout=20) == 0
            shown = os.read(ours, 4096).decode()
        finally:
            draining.kill()
            os.close(terminal)
            os.close(ours)
    rewrite = "\r\x1b[K"
    last = "llama/gpu1: drained, nothing is in flight there; `forebay ready llama/gpu1` brings it back\r\n"
    assert shown == f"{rewrite}llama/gpu1: draining, 1 in flight{rewrite}{last}"
    assert request.wait(timeout=20) == 0


def test_an_interrupt_ends_the_wait_and_not_the_drain(busy):
    admin, request = busy
    command = [BINARY, "drain", "llama/gpu1", "--admin", admin]
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options) as draining:
        assert draining.stdout.readline() == "llama/gpu1: draining, 1 in flight\n"
        draining.send_signal(signal.SIGINT)
        stdout, stderr = draining.communicate(timeout=20)
    left = "1 in flight at llama/gpu1, which stays drained; `forebay ready llama/gpu1` brings it back"
    assert (draining.returncode, stdout, stderr) == (1, "", f"forebay: stopped waiting: {left}\n")
    assert " draining " in status(admin)
    assert request.wait(timeout=20) == 0, "what was under way is finished"
