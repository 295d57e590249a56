"""`forebay demo` is ready when it says so, each line that it prints works as printed, and it leaves nothing behind."""

import json
import os
import re
import signal
import socket
import subprocess
import time

import pytest
from harness import BINARY, DEADLINE, until

# The whole text has come once this line has.
LAST = "Ctrl-C ends it all."


class Demo:
    """A running `forebay demo`, in a process group and with a folder for temporary files of its own."""

    def __init__(self, directory, *arguments):
        self.output, self.log, self.temporary = directory / "output", directory / "log", directory / "temporary"
        self.temporary.mkdir()
        with self.output.open("wb") as stdout, self.log.open("wb") as stderr:
            self.popen = subprocess.Popen(
                [BINARY, "demo", *arguments],
                env=os.environ | {"TMPDIR": str(self.temporary)},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.popen.kill()
        self.popen.wait()

    def printed(self):
        return self.output.read_text()

    def ready(self):
        until("ready", lambda: LAST in self.printed() or self.popen.poll() is not None)
        assert self.popen.poll() is None, self.log.read_text()
        return self

    def value(self, name):
        [value] = re.findall(rf"^  {name} +(\S+)", self.printed(), re.MULTILINE)
        return value

    def commands(self):
        """What is to be pasted: the blocks that begin with a program."""
        blocks = self.printed().split("\n\n")
        return [block for block in blocks if block.startswith(("curl ", BINARY))]

    def paste(self, block):
        done = subprocess.run(["bash", "-c", block], capture_output=True, text=True, timeout=60)
        # Never the command in a message: it holds the key.
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def ends(self, sent):
        """Sends a signal; nothing is left, and nothing secret was logged."""
        secret = self.value("API key")
        self.popen.send_signal(sent)
        assert self.popen.wait(timeout=DEADLINE) == 0
        assert list(self.temporary.iterdir()) == []
        with pytest.raises(ProcessLookupError):
            os.killpg(self.popen.pid, 0)
        told = secret in self.log.read_text()
        assert not told, "the log holds the secret"


def test_each_printed_line_works_as_printed(tmp_path):
    with Demo(tmp_path, "--listen", "127.0.0.1:0").ready() as demo:
        chat, stream, kept, models, state = demo.commands()

        answer = json.loads(demo.paste(chat))
        assert answer["choices"][0]["message"]["content"].startswith("You said: Hello there")
        assert answer["system_fingerprint"] == "engine-1"

        events = [line.removeprefix("data: ") for line in demo.paste(stream).splitlines() if line]
        assert events.pop() == "[DONE]"
        said = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events]
        assert "".join(said) == answer["choices"][0]["message"]["content"]
        assert len(said) > 10

        first, again = (demo.paste(kept) for _ in range(2))
        assert "x-forebay-cache: MISS" in first and "x-forebay-cache: HIT" in again
        assert first.split("\n\n")[-1] == again.split("\n\n")[-1]

        assert [model["id"] for model in json.loads(demo.paste(models))["data"]] == ["demo"]

        as_json, as_table = state.splitlines()
        status = json.loads(demo.paste(as_json))
        servers = status["pools"]["demo"]["servers"]
        assert [(server["name"], server["state"], server["weight"]) for server in servers] == [
            ("engine-1", "up", 3),
            ("engine-2", "up", 1),
            ("engine-3", "up", 1),
        ]
        assert sum(server["requests"] for server in servers) == 3
        assert status["config"]["files"] == [demo.value("runs by")]
        assert re.search(r"^  engine-3 +up ", demo.paste(as_table), re.MULTILINE)

        assert demo.log.read_text() == ""
        demo.ends(signal.SIGINT)


def test_the_engines_differ_as_it_says(tmp_path):
    with Demo(tmp_path, "--listen", "127.0.0.1:0", "--engines", "3").ready() as demo:
        assert re.search(r"^  engine-1 +40 tokens/s, weight 3: 3 of 5 requests$", demo.printed(), re.MULTILINE)
        assert re.search(r"^  engine-3 +slow: the first token after 800 ms, then 10 tok", demo.printed(), re.MULTILINE)
        short = demo.commands()[0].replace('"model"', '"max_tokens": 2, "model"')
        took = {}
        for _ in range(5):
            start = time.monotonic()
            engine = json.loads(demo.paste(short))["system_fingerprint"]
            took.setdefault(engine, []).append(time.monotonic() - start)
        assert {name: len(times) for name, times in took.items()} == {"engine-1": 3, "engine-2": 1, "engine-3": 1}
        assert took["engine-3"][0] >= 0.9
        assert min(took["engine-1"]) < 0.8
        demo.ends(signal.SIGTERM)


def test_a_stream_does_not_hold_up_the_end(tmp_path):
    with Demo(tmp_path, "--listen", "127.0.0.1:0", "--engines", "1").ready() as demo:
        long = demo.commands()[1].replace("Hello there", "Hello there " * 2000)
        with subprocess.Popen(["bash", "-c", long], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as streaming:
            assert streaming.stdout.readline().startswith(b"data: ")
            demo.ends(signal.SIGINT)


def test_a_signal_leaves_nothing_behind_even_before_it_is_ready(tmp_path):
    with Demo(tmp_path, "--listen", "127.0.0.1:0") as demo:
        deadline = time.monotonic() + DEADLINE
        while not any(demo.temporary.iterdir()):  # as soon as there is something to leave
            assert time.monotonic() < deadline
        demo.popen.send_signal(signal.SIGINT)
        assert demo.popen.wait(timeout=DEADLINE) == 0
        assert list(demo.temporary.iterdir()) == []


def test_a_port_in_use_is_one_line_and_leaves_nothing(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Demo(tmp_path, "--listen", f"127.0.0.1:{port}") as demo:
            assert demo.popen.wait(timeout=DEADLINE) == 1
            assert demo.printed() == ""
            [line] = demo.log.read_text().splitlines()
            assert f"cannot listen on 127.0.0.1:{port}: another process listens there already" in line
            assert "--listen 127.0.0.1:0" in line
            assert list(demo.temporary.iterdir()) == []


def test_two_demos_run_beside_each_other(tmp_path):
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    with (
        Demo(tmp_path / "one", "--listen", "127.0.0.1:0").ready() as one,
        Demo(tmp_path / "two", "--listen", "127.0.0.1:0").ready() as two,
    ):
        pids = [json.loads(demo.paste(demo.commands()[-1].splitlines()[0]))["pid"] for demo in (one, two)]
        assert pids == [one.popen.pid, two.popen.pid]


@pytest.mark.parametrize("engines", ["0", "17", "many"])
def test_a_number_of_engines_out_of_bounds_is_wrong_usage(tmp_path, engines):
    with Demo(tmp_path, "--engines", engines) as demo:
        assert demo.popen.wait(timeout=DEADLINE) == 2
        assert "--engines" in demo.log.read_text()
