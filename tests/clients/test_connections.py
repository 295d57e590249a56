"""Too many clients: what the common tools make of forebay's refusal."""

import http.client
import json
import subprocess
from contextlib import ExitStack

import openai
import pytest
from harness import Engine, Forebay, Key, until

KEY = Key("everything")


@pytest.fixture
def full(tmp_path):
    """A forebay for two clients, both of them there, and what lets one of them go."""
    with ExitStack() as running:
        engine = Engine.start(tmp_path, "engine", ["demo"])
        running.callback(engine.stop)
        forebay = Forebay.start(
            tmp_path,
            f"""max_connections = 2

[pool.p]
servers = ["127.0.0.1:{engine.port}"]
health = {{ interval = "200ms" }}

[model.demo]
pool = "p"

{KEY.toml()}""",
        )
        running.callback(forebay.stop)
        inside = [http.client.HTTPConnection("127.0.0.1", forebay.port, timeout=20) for _ in range(2)]
        for connection in inside:
            running.callback(connection.close)
            connection.connect()
        until("both are in", lambda: forebay.metrics().sum("forebay_client_connections") == 2)
        yield forebay, inside[0].close


def test_http_client_reads_the_refusal(full):
    forebay, leave = full
    connection = http.client.HTTPConnection("127.0.0.1", forebay.port, timeout=20)
    connection.request("POST", "/v1/chat/completions", b"x" * 2_000_000)
    response = connection.getresponse()
    assert (response.status, response.headers["connection"], response.will_close) == (503, "close", True)
    assert int(response.headers["retry-after"]) > 0
    assert json.loads(response.read())["error"]["code"] == "too_many_connections"
    leave()
    until("one has left", lambda: forebay.metrics().sum("forebay_client_connections") == 1)
    connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {KEY.secret}"})
    assert connection.getresponse().status == 200
    connection.close()


def test_curl_reads_the_refusal(full):
    forebay, leave = full

    def curl(*more):
        arguments = ["curl", "-sS", "-i", "--max-time", "20", *more, f"http://127.0.0.1:{forebay.port}/health"]
        return subprocess.run(arguments, capture_output=True, text=True)

    refused = curl()
    assert refused.returncode == 0, refused.stderr
    assert refused.stdout.startswith("HTTP/1.1 503 ")
    assert '"too_many_connections"' in refused.stdout
    assert curl("--http2-prior-knowledge").returncode != 0
    leave()
    until("one has left", lambda: forebay.metrics().sum("forebay_client_connections") == 1)
    assert curl().stdout.startswith("HTTP/1.1 200 ")
    assert curl("--http2-prior-knowledge").stdout.startswith("HTTP/2 200")


def test_the_openai_client_comes_again_by_itself(full):
    forebay, leave = full
    client = openai.OpenAI(base_url=forebay.base_url, api_key=KEY.secret, max_retries=0, timeout=20)
    with pytest.raises(openai.InternalServerError) as refused:
        client.models.list()
    assert (refused.value.status_code, refused.value.code) == (503, "too_many_connections")
    leave()
    with openai.OpenAI(base_url=forebay.base_url, api_key=KEY.secret, max_retries=5, timeout=20) as patient:
        assert [model.id for model in patient.models.list()] == ["demo"]
