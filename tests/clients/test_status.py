"""`forebay status` shows the servers of a running daemon, wherever its admin listener is."""

import os
import pty
import signal
import subprocess

import pytest
from conftest import assert_private
from harness import BINARY, Process, ask, free_port, until


def status(*arguments):
    command = [BINARY, "status", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)


def rows(table):
    """The cells of each server's line."""
    return [line.split() for line in table.splitlines() if line.startswith("  ") and line[2] != " "]


@pytest.mark.parametrize("by", ["--admin", "-c"])
def test_each_server_is_shown_under_its_pool(world, by):
    shown = status(by, f"127.0.0.1:{world.forebay.admin}" if by == "--admin" else world.forebay.file)
    assert shown.returncode == 0, shown.stderr
    assert f", pid {world.forebay.popen.pid}, up " in shown.stdout
    assert str(world.forebay.file)[:40] in shown.stdout
    asked = ask(world.forebay.admin, "/status").json()
    lines = shown.stdout.splitlines()
    for pool, all in asked["pools"].items():
        below = [line.split() for line in lines[lines.index(pool) + 1 :]]
        for server, row in zip(all["servers"], below):
            assert row[:2] == [server["name"], server["state"]]
            assert row[4] == str(server["requests"])
    assert max(map(len, lines)) <= 80
    assert_private(shown.stdout, world.keys.values(), "the table")


def test_a_configuration_with_faults_still_tells_where_the_daemon_is(tmp_path, world):
    file = tmp_path / "forebay.toml"
    file.write_text(world.forebay.file.read_text() + '\n[pool.one]\nlissen = "nowhere"\n')
    shown = status("-c", file)
    assert shown.returncode == 0, shown.stderr


def test_a_unix_socket_answers_too(tmp_path):
    socket, file = tmp_path / "admin.sock", tmp_path / "forebay.toml"
    file.write_text(
        f'[server]\nlisten = ["127.0.0.1:0"]\n\n[admin]\nlisten = ["127.0.0.1:0", "unix:{socket}"]\n\n'
        f'[pool.gone]\nservers = ["127.0.0.1:{free_port()}"]\n'
    )
    process = Process(["run", "-c", str(file)], tmp_path / "log")
    try:
        until("down", lambda: " down " in status("--admin", f"unix:{socket}").stdout)
        shown = status("-c", file)
        assert shown.returncode == 0, shown.stderr
        assert "\n    connection refused\n" in shown.stdout
    finally:
        process.stop()
    gone = status("--admin", f"unix:{socket}")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "there is no such socket" in gone.stderr


def test_a_daemon_that_cannot_be_reached_is_one_line(tmp_path):
    port = free_port()
    shown = status("--admin", f"127.0.0.1:{port}")
    assert (shown.returncode, shown.stdout) == (1, "")
    [line] = shown.stderr.splitlines()
    assert f"127.0.0.1:{port}: connection refused" in line
    assert "is forebay running?" in line and "--admin" in line


def test_what_is_no_admin_listener_is_told(world):
    shown = status("--admin", f"127.0.0.1:{world.forebay.port}")
    assert (shown.returncode, shown.stdout) == (1, "")
    [line] = shown.stderr.splitlines()
    assert "answered with 404" in line and "--admin" in line


WRONG = {
    "no address": (["--admin", "localhost"], '"127.0.0.1:8080"'),
    "no such file": (["-c", "/nowhere/forebay.toml"], "--admin ADDR"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_told_with_what_would_be_right(case):
    arguments, cure = WRONG[case]
    shown = status(*arguments)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert cure in shown.stderr


def test_a_port_of_the_systems_choice_must_be_named(tmp_path):
    file = tmp_path / "forebay.toml"
    file.write_text('[admin]\nlisten = "127.0.0.1:0"\n')
    shown = status("-c", file)
    assert shown.returncode == 2
    assert "--admin ADDR" in shown.stderr


def test_watch_shows_it_each_second_with_rates_until_it_is_interrupted(world):
    command = [BINARY, "status", "--admin", f"127.0.0.1:{world.forebay.admin}", "--watch"]
    prompt = b'{"model": "demo", "messages": [{"role": "user", "content": "hi"}]}'
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as watching:
        try:
            tables = [""]
            while len(tables) < 4:
                line = watching.stdout.readline()
                assert line, "it ended by itself"
                tables[-1] += line
                # A table has one empty line within; another one comes before the next.
                if tables[-1].count("\n\n") == 2:
                    tables.append("")
                    assert ask(world.forebay.port, "/v1/chat/completions", "POST", world.bearer(), prompt).status == 200
            watching.send_signal(signal.SIGINT)
            assert watching.wait(timeout=20) == 0
        finally:
            watching.kill()
    assert all("REQ/S" in table for table in tables[:3])
    assert "\x1b" not in "".join(tables)
    assert {row[5] for row in rows(tables[0])} == {"-"}
    rates = [float(row[5]) for table in tables[1:3] for row in rows(table)]
    assert any(0 < rate <= 2 for rate in rates), rates


def test_watch_redraws_a_terminal(world):
    ours, terminal = pty.openpty()
    command = [BINARY, "status", "--admin", f"127.0.0.1:{world.forebay.admin}", "--watch"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=terminal) as watching:
        try:
            shown = ""
            while shown.count("\x1b[2J\x1b[H") < 2:
                shown += os.read(ours, 4096).decode()
            watching.send_signal(signal.SIGINT)
            assert watching.wait(timeout=20) == 0
        finally:
            watching.kill()
            os.close(terminal)
            os.close(ours)
    assert shown.startswith("\x1b[2J\x1b[Hforebay ")
