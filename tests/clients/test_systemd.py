"""systemd finds nothing wrong with the units, and little that the service may do beyond what it needs."""

import configparser
import re
import socket
import subprocess
import tomllib

import pytest
from harness import BINARY, ROOT, Engine, free_port, is_ok, until

UNITS = ROOT / "systemd"


@pytest.fixture
def units(tmp_path):
    """The units of a machine on which the binary is installed."""
    paths = []
    for unit in ["forebay.service", "forebay.socket"]:
        path = tmp_path / unit
        path.write_text((UNITS / unit).read_text().replace("/usr/bin/forebay", BINARY))
        paths.append(path)
    return paths


def run(*command):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


def settings(unit, section):
    """The settings of a section that have one line."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(UNITS / unit)
    return parser[section]


def test_systemd_finds_no_fault_in_the_units(units):
    verified = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_the_service_may_do_little_beyond_what_it_needs(units):
    rated = run("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", units[0])
    assert rated.returncode == 0, rated.stdout[-200:]
    assert float(re.search(r"exposure level for forebay.service: ([\d.]+)", rated.stdout)[1]) <= 1.5


def test_the_account_that_the_service_runs_as_is_made(tmp_path):
    (tmp_path / "etc").mkdir()
    accounts = UNITS / "sysusers.d/forebay.conf"
    made = run("systemd-sysusers", f"--root={tmp_path}", "--dry-run", accounts)
    assert made.returncode == 0, made.stderr
    service = settings("forebay.service", "Service")
    assert f"Creating user '{service['User']}'" in made.stderr
    assert f"Creating group '{service['Group']}'" in made.stderr


def test_the_socket_holds_what_the_smallest_configuration_listens_on():
    written = tomllib.loads((ROOT / "conf/forebay.toml").read_text())["server"]["listen"]
    assert [settings("forebay.socket", "Socket")["ListenStream"]] == written


def test_a_socket_of_systemds_own_tool_is_taken(tmp_path):
    engine = Engine.start(tmp_path, "gpu1", ["demo"])
    port, admin = free_port(), tmp_path / "admin.sock"
    file = tmp_path / "forebay.toml"
    file.write_text(
        f'[server]\nlisten = ["127.0.0.1:{port}"]\n[admin]\nlisten = "unix:{admin}"\n'
        f'[pool.p]\nservers = ["127.0.0.1:{engine.port}"]\n[pool.p.health]\ninterval = "100ms"\n'
        '[[route]]\nname = "all"\npath = "/v1/*"\npool = "p"\nauth = "none"\n'
    )
    # It runs the daemon in its own place once somebody connects.
    command = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", BINARY, "run", "-c", str(file)]
    log = (tmp_path / "log").open("w")
    daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        until("it listens", lambda: is_open(port))
        until("it serves", lambda: is_ok(port, "/health"))
        assert "listening on" in (tmp_path / "log").read_text()
        assert "a socket was passed that nothing" not in (tmp_path / "log").read_text()
    finally:
        daemon.kill()
        daemon.wait()
        log.close()
        engine.stop()


def is_open(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
