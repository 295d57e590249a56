"""`forebay explain` says of a request what the proxy then does with it."""

import json
import re
import subprocess

import pytest
from conftest import assert_private
from harness import BINARY, Engine, Forebay, Key, ask

KEYS = [
    Key("everything"),
    Key("llama-only", models=["llama-*"], more='routes = ["api"]'),
    Key("disabled", more="disabled = true"),
    Key("expired", more="expires = 2020-01-01T00:00:00Z"),
]

CONFIGURATION = """
[[route]]
name = "internal"
host = "*.internal"
path = "/v1/*"
auth = "none"
by = "model"

[[route]]
name = "triton"
path = "/triton/*"
methods = ["GET", "POST"]
pool = "gpus"
strip_prefix = "/triton"

[[route]]
name = "open"
path = "/open/*"
auth = "none"
pool = "gpus"

[[route]]
name = "api"
path = "/v1/*"
by = "model"

[[route]]
name = "put"
path = "/put/*"
methods = ["PUT"]
by = "model"

[model.demo]
pool = "gpus"

[model."llama-*"]
pool = "gpus"
upstream = "meta/llama"

[model."llama-*".cache]
ttl = "10m"
"""

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def forebay(tmp_path_factory):
    directory = tmp_path_factory.mktemp("explain")
    engine = Engine.start(directory, "engine", [])
    pool = f'\n[pool.gpus]\nservers = [{{ name = "gpu1", address = "127.0.0.1:{engine.port}", weight = 2 }}]\n'
    forebay = Forebay.start(directory, pool + CONFIGURATION + "".join(key.toml() for key in KEYS))
    yield forebay
    forebay.stop()
    engine.stop()


def explain(forebay, *arguments):
    command = [BINARY, "explain", "-c", str(forebay.file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)


def prompt(model=None, key="everything", path=CHAT, method="POST", host=None):
    return {"path": path, "method": method, "host": host, "model": model, "key": key}


REQUESTS = {
    "a model": prompt("demo"),
    "a family": prompt("llama-3", "llama-only"),
    "no such model": prompt("gpt"),
    "a family's own name": prompt("llama-*"),
    "an empty model": prompt(""),
    "no model": prompt(),
    "a model of others": prompt("demo", "llama-only"),
    "an unknown model with a narrow key": prompt("gpt", "llama-only"),
    "no key": prompt("demo", None),
    "a disabled key": prompt("demo", "disabled"),
    "an expired key": prompt("demo", "expired"),
    "a route of others": prompt(None, "llama-only", path="/triton/v2"),
    "no route": prompt("demo", path="/nothing"),
    "the wrong method": prompt("demo", method="DELETE"),
    "the wrong method for a list": prompt(path="/v1/models"),
    "the list of models": prompt(path="/v1/models", method="GET"),
    "the list of models without a key": prompt(None, None, path="/v1/models", method="GET"),
    "one model": prompt(path="/v1/models/llama-3", method="GET"),
    "one model of others": prompt(None, "llama-only", path="/v1/models/demo", method="GET"),
    "no such one": prompt(path="/v1/models/gpt", method="HEAD"),
    "a host of its own": prompt("demo", None, host="a.internal"),
    "a host with a port": prompt("demo", None, host="a.internal:8080"),
    "another host": prompt("demo", None, host="internal"),
    "no host at all": prompt("demo", host="a b"),
    "a path by pool": prompt(None, path="/triton/v2/models", method="GET"),
    "a path by pool, doubled": prompt(None, path="//triton/v2", method="GET"),
    "a path by pool, escaped": prompt(None, path="/%74riton/v2", method="GET"),
    "anyone": prompt(None, None, path="/open/x?y=/z", method="PUT"),
    "two readings": prompt(None, None, path="/open%2fx"),
    "dots": prompt("demo", path="/v1/../open/x"),
    "slashes": prompt("demo", path="//v1//chat/completions"),
    "too long a line": prompt("demo", path="/v1/" + "x" * 9000),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_the_proxy_does_what_was_said(forebay, case):
    request = REQUESTS[case]
    options = [f"--{name}={value}" for name, value in request.items() if value is not None]
    said = explain(forebay, *options)
    assert said.returncode in (0, 1), said.stderr
    assert_private(said.stdout, KEYS, "the explanation")

    headers = {"x-request-id": re.sub(r"\W", "-", case)}
    if request["host"]:
        headers["host"] = request["host"]
    if request["key"]:
        headers["authorization"] = "Bearer " + next(key.secret for key in KEYS if key.name == request["key"])
    body = {} if request["model"] is None else {"model": request["model"]}
    body |= {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    body = None if request["method"] in ("GET", "HEAD") else json.dumps(body)
    answer = ask(forebay.port, request["path"], request["method"], headers, body)
    record = forebay.record_of(headers["x-request-id"])

    refused = re.match(r"The request would be refused: (\d+) (\w+)\.\n", said.stdout)
    if refused:
        assert said.returncode == 1
        assert (str(answer.status), record["code"]) == refused.groups(), said.stdout
        [message] = re.findall(r"^  message  (.+)$", said.stdout, re.MULTILINE)
        if request["method"] != "HEAD":
            assert answer.json()["error"]["message"] == message
    else:
        assert said.returncode == 0
        assert record["code"] is None, said.stdout
        by_itself = "forebay answers it itself" in said.stdout
        assert (record["server"] is None) == by_itself
        pools = re.findall(r"^  pool     (\w+):", said.stdout, re.MULTILINE)
        assert pools == ([] if by_itself else [record["pool"]])
    routes = re.findall(r"^  route    (\w+):", said.stdout, re.MULTILINE)
    if record["route"]:
        assert routes == [record["route"]]


def test_health_needs_nothing(forebay):
    said = explain(forebay, "--path", "/health", "--method", "get")
    assert said.returncode == 0
    assert said.stdout.startswith("The request would be let through: forebay answers it itself, 200 ")


def test_all_that_is_known_of_a_request_is_said(forebay):
    said = explain(forebay, "--path", "//v1/chat/completions?x=1", "--model", "llama-3", "--key", "llama-only")
    port = re.search(r"127\.0\.0\.1:(\d+), weight", said.stdout)[1]
    assert said.stdout == f"""\
The request would be let through: to pool gpus.
  request  POST //v1/chat/completions
  path     /v1/chat/completions is what it is read as
  not      internal: serves the host *.internal, and --host names none
  not      triton: serves the path /triton/*
  not      open: serves the path /open/*
  route    api: /v1/* by model
  key      llama-only may use the route
  model    llama-3, found by llama-*; the engine is asked for meta/llama
  cache    keeps the answers to embeddings, and prompts with `temperature` 0 or a `seed` for 10m, for this key alone
  pool     gpus: round-robin over
           gpu1 at 127.0.0.1:{port}, weight 2
  engine   is asked POST //v1/chat/completions?x=1
  body     at most 32MiB
  timeouts connect 1s, first_byte 5m, idle 2m, total none
  attempts 3 at most
"""


def test_a_method_that_is_not_for_the_cache_is_said(forebay):
    request = ["--path", "/put/x", "--key", "everything", "--method", "PUT", "--model"]
    said = explain(forebay, *request, "llama-3")
    assert "\n  cache    leaves the request alone, because it is no POST\n" in said.stdout, said.stdout
    assert "  cache " not in explain(forebay, *request, "demo").stdout


def test_what_is_stripped_is_gone_for_the_engine(forebay):
    said = explain(forebay, "--path", "/triton/v2/models?x=1", "--method", "GET", "--key", "everything")
    assert "\n  engine   is asked GET /v2/models?x=1\n" in said.stdout


HINTS = {
    "no key": (["--path", CHAT, "--model", "demo"], "--key"),
    "no model": (["--path", CHAT, "--key", "everything"], "--model"),
    "an expired key": (["--path", CHAT, "--model", "demo", "--key", "expired"], "expired has expired"),
    "a disabled key": (["--path", CHAT, "--model", "demo", "--key", "disabled"], "disabled is disabled"),
    "a model of others": (["--path", CHAT, "--model", "demo", "--key", "llama-only"], "may ask llama-*"),
    "a route of others": (["--path", "/triton/x", "--key", "llama-only"], "llama-only may use api"),
    "a method of others": (["--path", "/triton/x", "--method", "PUT"], "serves /triton/* with GET, POST"),
}


@pytest.mark.parametrize("case", HINTS)
def test_a_refusal_says_what_would_be_let_through(forebay, case):
    arguments, hint = HINTS[case]
    said = explain(forebay, *arguments)
    assert said.returncode == 1
    assert hint in said.stdout, said.stdout
    assert said.stderr == ""


WRONG = {
    "no path": ([], "--path"),
    "a URL": (["--path", "http://host/v1"], "--host"),
    "no method": (["--path", "/v1", "--method", "GET /"], "not a method"),
    "no such key": (["--path", "/v1", "--key", "nobody"], "everything, llama-only"),
    "a header in the host": (["--path", "/v1", "--host", "a\nb: c"], "--host"),
    "white space": (["--path", "/v1 HTTP/1.1"], "%20"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_exit_code_2_and_says_what_would_be_right(forebay, case):
    arguments, cure = WRONG[case]
    said = explain(forebay, *arguments)
    assert (said.returncode, said.stdout) == (2, "")
    assert cure in said.stderr


def test_a_faulty_configuration_is_told_as_check_tells_it(tmp_path):
    file = tmp_path / "forebay.toml"
    file.write_text("[pool.p]\nservers = []\n")
    command = [BINARY, "explain", "-c", str(file), "--path", "/v1"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert said.returncode == 2
    assert "forebay.toml:2:" in said.stderr
