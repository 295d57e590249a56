"""What Prometheus gets, read as Prometheus reads it."""

import http.client
import json
import secrets
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from harness import Engine, Forebay, Key, ask, until
from prometheus_client.parser import text_string_to_metric_families

KEYS = [
    Key("everything"),
    Key("disabled", more="disabled = true"),
    Key("expired", more="expires = 2020-01-01T00:00:00Z"),
]


@dataclass
class World:
    forebay: Forebay

    def families(self):
        answer = ask(self.forebay.admin, "/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return {family.name: family for family in text_string_to_metric_families(answer.body.decode())}

    def value(self, name, **labels):
        """The sum over the samples of this name with these labels."""
        samples = [sample for family in self.families().values() for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def headers(self, key=KEYS[0]):
        return {"authorization": f"Bearer {key.secret}", "content-type": "application/json"}

    def chat(self, model="quick", key=KEYS[0], **more):
        body = {"model": model, "messages": [{"role": "user", "content": "word"}]} | more
        return ask(self.forebay.port, "/v1/chat/completions", "POST", self.headers(key), json.dumps(body))

    def grows(self, by, name, **labels):
        """Waits until a value has grown by this much since `before` was read."""
        return Growth(self, by, name, labels)


class Growth:
    def __init__(self, world, by, name, labels):
        self.now = lambda: world.value(name, **labels)
        self.what, self.by = f"{name} {labels} grew by {by}", by

    def __enter__(self):
        self.before = self.now()

    def __exit__(self, kind, *_):
        if kind is None:
            until(self.what, lambda: self.now() >= self.before + self.by)
            assert self.now() == self.before + self.by


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("metrics")
    with ExitStack() as running:

        def kept(process):
            running.callback(process.stop)
            return process

        quick = kept(Engine.start(directory, "quick", ["quick"]))
        slow = kept(Engine.start(directory, "slow", ["slow"], "--first-token", "1000", "--tokens-per-second", "20"))
        pools = "".join(
            f'[pool.{name}]\nservers = [{{ name = "{name}-1", address = "127.0.0.1:{engine.port}" }}]\n'
            f'health = {{ interval = "200ms" }}\n[model.{name}]\npool = "{name}"\n'
            for name, engine in (("quick", quick), ("slow", slow))
        )
        yield World(kept(Forebay.start(directory, f"\n{pools}\n{''.join(key.toml() for key in KEYS)}")))


def test_every_metric_is_one_that_prometheus_reads(world):
    assert world.chat().status == 200
    families = world.families()
    for name, family in families.items():
        assert name.startswith(("forebay_", "process_")), name
        assert family.documentation.endswith(".") or name.startswith("process_"), name
        assert family.type in ("counter", "gauge", "histogram"), name
        series = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
        assert len(series) == len(set(series)), f"{name} has a series twice"
    # The parser takes `_total` off the names of counters.
    assert {
        "forebay_requests",
        "forebay_request_duration_seconds",
        "forebay_time_to_first_byte_seconds",
        "forebay_overhead_seconds",
        "forebay_upstream_attempts",
        "forebay_upstream_connections",
        "forebay_auth_failures",
        "forebay_client_aborts",
        "forebay_client_connections",
        "forebay_client_connections_refused",
        "forebay_in_flight",
        "forebay_server_up",
        "forebay_config_reloads",
        "forebay_build_info",
    } - {"forebay_config_reloads"} <= set(families)


def test_histograms_are_whole(world):
    assert world.chat().status == 200
    for family in world.families().values():
        if family.type != "histogram":
            continue
        series = {}
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            series.setdefault(tuple(sorted(labels.items())), []).append(sample)
        for samples in series.values():
            buckets = [(float(sample.labels["le"]), sample.value) for sample in samples if "le" in sample.labels]
            counts = [count for _, count in sorted(buckets)]
            assert counts == sorted(counts) and sorted(buckets)[-1][0] == float("inf")
            total = [sample.value for sample in samples if sample.name.endswith("_count")]
            assert total == [counts[-1]]


def test_a_slow_engines_second_is_the_engines_and_not_forebays(world):
    names = ("request_duration_seconds", "time_to_first_byte_seconds", "overhead_seconds")

    def read():
        labels = {"overhead_seconds": {"route": "default"}}
        return {
            name: [world.value(f"forebay_{name}_{part}", **labels.get(name, {"model": "slow"})) for part in ("sum", "count")]
            for name in names
        }

    before = read()
    assert world.chat("slow", stream=True, max_tokens=10).status == 200
    until("it is counted", lambda: read()["request_duration_seconds"][1] == before["request_duration_seconds"][1] + 1)
    after = read()
    (duration, requests), (first, firsts), (overhead, overheads) = (
        [now - then for now, then in zip(after[name], before[name], strict=True)] for name in names
    )
    assert (requests, firsts, overheads) == (1, 1, 1)
    assert duration >= 1.3, "one second, and nine tokens at twenty a second"
    assert 0 < first <= duration
    assert 0 < overhead < 0.2
    assert world.value("forebay_request_duration_seconds_count", model="slow", route="default") >= 1
    assert world.value("forebay_time_to_first_byte_seconds_count", model="slow", pool="slow") >= 1


def test_the_time_in_which_a_body_comes_is_not_forebays(world):
    body = json.dumps({"model": "quick", "messages": [{"role": "user", "content": "x" * 100}]}).encode()
    before = world.value("forebay_overhead_seconds_sum"), world.value("forebay_overhead_seconds_count")
    connection = http.client.HTTPConnection("127.0.0.1", world.forebay.port, timeout=20)
    connection.putrequest("POST", "/v1/chat/completions")
    for name, value in (world.headers() | {"content-length": str(len(body))}).items():
        connection.putheader(name, value)
    connection.endheaders()
    time.sleep(1)  # The passing of time is what is tested.
    connection.send(body)
    assert connection.getresponse().status == 200
    connection.close()
    until("it is counted", lambda: world.value("forebay_overhead_seconds_count") == before[1] + 1)
    assert world.value("forebay_overhead_seconds_sum") - before[0] < 0.2


def test_connections_are_counted_as_new_and_reused(world):
    world.chat()
    labels = {"pool": "quick", "server": "quick-1"}
    # It was kept, though Pingora may miss it where another thread still watches it: then a later one is taken.
    reused = world.value("forebay_upstream_connections_total", reused="true", **labels)

    def grows():
        world.chat()
        return world.value("forebay_upstream_connections_total", reused="true", **labels) > reused

    until("a connection is reused", grows)
    assert world.value("forebay_upstream_connections_total", reused="false", **labels) >= 1
    assert world.value("forebay_upstream_connections_total", pool="quick") == world.value(
        "forebay_upstream_attempts_total", pool="quick"
    )


@pytest.mark.parametrize(
    "reason, headers",
    [
        ("missing", {}),
        ("unknown", {"authorization": f"Bearer {Key('nobody').secret}"}),
        ("disabled", {"authorization": f"Bearer {KEYS[1].secret}"}),
        ("expired", {"x-api-key": KEYS[2].secret}),
    ],
)
def test_refused_keys_are_counted_by_why(world, reason, headers):
    reasons = {"missing", "unknown", "disabled", "expired"}
    others = sum(world.value("forebay_auth_failures_total", reason=other) for other in reasons - {reason})
    with world.grows(3, "forebay_auth_failures_total", reason=reason):
        for _ in range(3):
            assert ask(world.forebay.port, "/v1/models", headers=headers).status == 401
    assert sum(world.value("forebay_auth_failures_total", reason=other) for other in reasons - {reason}) == others


def leave(world, request, heard=b""):
    """Sends this, waits until all of that is there, and goes."""
    with socket.create_connection(("127.0.0.1", world.forebay.port), timeout=20) as connection:
        connection.sendall(request)
        got = b""
        while heard not in got:
            piece = connection.recv(65536)
            assert piece
            got += piece
        if not heard:
            until("it is at an engine", lambda: world.value("forebay_in_flight") == 1)


def request_bytes(world, body, length=None):
    headers = "".join(f"{name}: {value}\r\n" for name, value in world.headers().items())
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length or len(body)}\r\n\r\n"
    return head.encode() + body


def test_clients_that_leave_are_counted_by_how_far_they_came(world):
    prompt = {"model": "slow", "messages": [{"role": "user", "content": "word"}], "max_tokens": 200}
    body, streamed = json.dumps(prompt).encode(), json.dumps(prompt | {"stream": True}).encode()
    aborts = "forebay_client_aborts_total"
    with world.grows(1, aborts, phase="request"), socket.create_connection(("127.0.0.1", world.forebay.port)) as half:
        half.sendall(request_bytes(world, body[:20], len(body)))
    with world.grows(1, aborts, phase="waiting"):
        leave(world, request_bytes(world, body))
    with world.grows(1, aborts, phase="answer"):
        leave(world, request_bytes(world, streamed), b"data: ")
    phases = {
        sample.labels["phase"]
        for sample in world.families()["forebay_client_aborts"].samples
        if sample.name.endswith("_total")
    }
    assert phases == {"request", "queued", "waiting", "answer"}
    until("the engine is free", lambda: world.value("forebay_in_flight") == 0)


def test_nothing_that_a_client_makes_up_becomes_a_label(world):
    made_up = "zz" + secrets.token_hex(8)
    refused = world.value("forebay_requests_total", code="404")
    assert world.chat(made_up).status == 404
    headers = world.headers() | {"host": f"{made_up}.example.com", "user-agent": made_up, "x-request-id": made_up}
    assert ask(world.forebay.port, f"/v1/{made_up}", "POST", headers, f'{{"model": "{made_up}"}}').status == 404
    assert ask(world.forebay.port, f"/{made_up}", "GET", headers).status == 404
    assert ask(world.forebay.port, "/v1/models", headers={"authorization": f"Bearer {made_up}"}).status == 401
    assert ask(world.forebay.port, "/v1/models", made_up.upper(), headers).status in (400, 405)
    until("all are counted", lambda: world.value("forebay_requests_total", code="404") == refused + 3)
    text = ask(world.forebay.admin, "/metrics").body.decode().lower()
    assert made_up not in text


def test_connected_clients_are_counted(world):
    until("nobody is connected", lambda: world.value("forebay_client_connections") == 0)
    connections = [http.client.HTTPConnection("127.0.0.1", world.forebay.port, timeout=20) for _ in range(7)]
    for connection in connections:
        connection.connect()
    until("seven are connected", lambda: world.value("forebay_client_connections") == 7)
    for connection in connections:
        connection.close()
    until("nobody is connected", lambda: world.value("forebay_client_connections") == 0)
    assert world.value("forebay_client_connections_refused_total") == 0
