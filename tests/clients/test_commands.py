"""The commands around the daemon: a new key works when pasted, and `check` says what is wrong and where."""

import hashlib
import re
import subprocess
import tomllib

import openai
import pytest
from harness import BINARY, Engine, Forebay, Process


def run(*arguments):
    return subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)


def new_key(*arguments):
    """Makes a key; returns its secret and the lines of its table, wherever the command's words put them."""
    made = run("key", "new", *arguments)
    assert made.returncode == 0
    lines = made.stdout.splitlines()
    table = lines[lines.index("[[key]]") :]
    digest = tomllib.loads("\n".join(table))["key"][0]["sha256"]
    words = set(re.findall(r"[^\s\"'`]+", made.stdout + made.stderr))
    secrets = [word for word in words if hashlib.sha256(word.encode()).hexdigest() == digest]
    assert len(secrets) == 1, "the digest is of no word that was printed"
    return secrets[0], "\n".join(table) + "\n"


def test_a_new_key_is_long_and_never_the_same():
    first, _ = new_key("search-team")
    second, _ = new_key("search-team")
    # Not in the assert: a failure would print them.
    different, long = first != second, len(first) >= 32
    assert different and long


def test_a_new_keys_table_never_holds_the_secret():
    secret, table = new_key("search-team")
    told = secret in table
    assert not told
    assert tomllib.loads(table)["key"][0]["name"] == "search-team"


def test_a_new_key_works_when_pasted(tmp_path):
    secret, table = new_key("search-team", "--model", "de*")
    engine = Engine.start(tmp_path, "engine", ["demo"])
    try:
        forebay = Forebay.start(
            tmp_path,
            f'[pool.one]\nservers = ["127.0.0.1:{engine.port}"]\n[model.demo]\npool = "one"\n\n{table}',
        )
        try:
            client = openai.OpenAI(base_url=forebay.base_url, api_key=secret, max_retries=0, timeout=30)
            assert [model.id for model in client.models.list()] == ["demo"]
            assert client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hi"}]).choices
        finally:
            code = forebay.stop()
        told = secret in forebay.stderr()
        assert code == 0
        assert not told, "the log holds the secret"
    finally:
        engine.stop()


def test_what_cannot_be_printed_is_said_and_a_key_that_nobody_saw_is_not_kept(tmp_path):
    keys, file = tmp_path / "keys.toml", tmp_path / "forebay.toml"
    file.write_text('[pool.p]\nservers = ["127.0.0.1:1"]\n')
    for arguments in [
        ["check", "-c", file],
        ["explain", "-c", file, "--path", "/health", "--method", "GET"],
        ["key", "new", "x"],
        ["key", "new", "x", "--append", keys],
    ]:
        with open("/dev/full", "w") as full:
            options = {"stdin": subprocess.DEVNULL, "stdout": full, "stderr": subprocess.PIPE, "text": True, "timeout": 30}
            done = subprocess.run([BINARY, *map(str, arguments)], **options)
        assert (done.returncode, done.stderr) == (1, "forebay: cannot print: No space left on device (os error 28)\n")
    assert not keys.exists()
    piped = subprocess.run(["bash", "-c", f"set -o pipefail; {BINARY} check -c {file} | true"], capture_output=True)
    assert piped.returncode in (0, 1) and piped.stderr == b""


def test_check_praises_what_run_would_run(world):
    checked = run("check", "-c", str(world.forebay.file))
    assert checked.returncode == 0
    told = [key.name for key in world.keys.values() if key.secret in checked.stdout or key.digest in checked.stdout]
    assert told == []


FAULTS = {
    "a misspelt key": ('[server]\nlissen = ["127.0.0.1:1"]\n', 2, "listen"),
    "no such pool": ('[pool.one]\nservers = ["127.0.0.1:1"]\n\n[model.demo]\npool = "two"\n', 5, "two"),
    "not TOML": ("[server\n", 1, ""),
}


@pytest.mark.parametrize("case", FAULTS)
def test_check_names_the_place_and_the_cure(tmp_path, case):
    text, line, word = FAULTS[case]
    file = tmp_path / "forebay.toml"
    file.write_text(text)
    checked = run("check", "-c", str(file))
    assert checked.returncode == 2
    said = checked.stdout + checked.stderr
    places = [row for row in said.splitlines() if re.search(rf"forebay\.toml:{line}:\d+: ", row)]
    assert places, said
    assert any(word in row for row in places), said


def test_run_refuses_a_bad_file_with_the_same_exit_code(tmp_path):
    file = tmp_path / "forebay.toml"
    file.write_text(FAULTS["a misspelt key"][0])
    process = Process(["run", "-c", str(file)], tmp_path / "log")
    assert process.popen.wait(timeout=20) == 2
    assert "lissen" in process.stderr()


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"], ["engine", "--help"]])
def test_help_and_version_are_printed(arguments):
    printed = run(*arguments)
    assert printed.returncode == 0
    assert "forebay" in printed.stdout


def test_wrong_usage_is_exit_code_2():
    assert run("no-such-command").returncode == 2
