"""systemd finds nothing wrong with the units, and little that the service may do beyond what it needs."""

import configparser
import re
import subprocess
import tomllib

import pytest
from harness import BINARY, ROOT

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
