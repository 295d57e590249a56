"""What operators see of it: access log, metrics, probes, status; and what nobody may see there."""

import json

import pytest
from conftest import MARK, assert_private
from harness import ask, until

CHAT = {"model": "demo", "messages": [{"role": "user", "content": f"Hello {MARK}"}], "max_tokens": 8}
FIELDS = set(
    """time request_id client key route method path model pool server status code attempts cache stream bytes_in bytes_out
    queue_ms ttfb_ms duration_ms overhead_ms end""".split()
)


def post(world, request_id, body, key="everything", headers=None, path="/v1/chat/completions"):
    headers = world.bearer(key) | {"x-request-id": request_id} | (headers or {})
    return ask(world.forebay.port, path, "POST", headers, json.dumps(body))


def test_an_answered_prompt_has_one_record_with_every_field(world):
    answer = post(world, "observed-chat", CHAT)
    assert answer.status == 200
    assert answer.headers["x-request-id"] == "observed-chat"
    record = world.forebay.record_of("observed-chat")
    assert set(record) == FIELDS
    expected = {
        "key": "everything",
        "method": "POST",
        "path": "/v1/chat/completions",
        "model": "demo",
        "pool": "fast",
        "status": 200,
        "attempts": 1,
        "stream": False,
        "end": "complete",
    }
    assert {name: record[name] for name in expected} == expected
    assert record["bytes_in"] >= len(json.dumps(CHAT))
    assert record["bytes_out"] >= len(answer.body)
    assert record["queue_ms"] is None and record["cache"] is None
    assert 0 <= record["ttfb_ms"] <= record["duration_ms"]


def test_a_stream_is_recorded_as_one(world):
    assert post(world, "observed-stream", CHAT | {"stream": True}).status == 200
    record = world.forebay.record_of("observed-stream")
    assert (record["stream"], record["end"]) == (True, "complete")


def test_a_refusal_is_recorded_with_its_code(world):
    assert post(world, "observed-refusal", CHAT, key="disabled").status == 401
    record = world.forebay.record_of("observed-refusal")
    assert (record["status"], record["code"]) == (401, "invalid_api_key")
    assert not record.get("server")


def test_every_line_of_the_log_is_json(world):
    for line in world.forebay.stderr().split("\n")[:-1]:
        assert isinstance(json.loads(line), dict)


def test_what_is_logged_and_what_is_counted_are_the_same_requests(world):
    for number, key in enumerate(["everything", "disabled", "everything", "acme-only", "everything"]):
        request_id = f"counted-{number}"
        post(world, request_id, CHAT, key=key)
        world.forebay.record_of(request_id)
    until(
        "as many requests counted as logged",
        lambda: world.forebay.metrics().sum("forebay_requests_total") == len(world.forebay.records()),
    )


def test_requests_are_counted_under_their_model_and_pool(world):
    post(world, "counted-labels", CHAT)
    until(
        "a request counted under its labels",
        lambda: world.forebay.metrics().sum("forebay_requests_total", model="demo", pool="fast") >= 1,
    )


def test_nothing_stays_in_flight(world):
    post(world, "in-flight", CHAT | {"model": "slow", "stream": True})
    until("nothing in flight", lambda: world.forebay.metrics().sum("forebay_in_flight") == 0)
    assert "forebay_in_flight" in world.forebay.metrics().names()


def test_what_the_daemon_is_can_be_read_from_its_metrics(world):
    metrics = world.forebay.metrics()
    assert metrics.sum("forebay_build_info") == 1
    assert metrics.sum("forebay_server_up") == 3
    assert {"forebay_requests_total", "process_cpu_seconds_total", "process_open_fds"} <= metrics.names()


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz"])
def test_each_probe_says_yes(world, path):
    assert ask(world.forebay.admin, path).status == 200


def test_ready_comes_with_its_reasons(world):
    assert isinstance(ask(world.forebay.admin, "/readyz").json(), dict)


def test_the_status_shows_the_state_of_every_server(world):
    status = ask(world.forebay.admin, "/status", headers={"accept": "application/json"}).json()
    assert {"pid", "version", "started", "config", "pools", "models", "keys"} <= set(status)
    assert status["pid"] == world.forebay.popen.pid
    states = {name: [server["state"] for server in pool["servers"]] for name, pool in status["pools"].items()}
    assert states == {"fast": ["up", "up"], "slow": ["up"], "dead": ["down"]}


@pytest.mark.parametrize("path", ["/status", "/metrics", "/readyz"])
def test_no_secret_digest_or_prompt_is_shown_to_operators(world, path):
    assert_private(ask(world.forebay.admin, path).body.decode(), world.keys.values(), path)


def test_no_secret_digest_or_prompt_is_logged(world):
    for header in ("authorization", "x-api-key", "api-key", "traceparent"):
        headers = {header: world.keys["disabled"].secret, "content-type": "application/json"}
        assert ask(world.forebay.port, "/v1/chat/completions", "POST", headers, json.dumps(CHAT)).status == 401
    # The whole log is searched again when the run ends.
    assert_private(world.forebay.stderr(), world.keys.values(), "the log so far")


def test_traffic_listeners_do_not_serve_the_admin_paths(world):
    for path in ("/metrics", "/status", "/readyz"):
        assert ask(world.forebay.port, path, headers=world.bearer()).status == 404
