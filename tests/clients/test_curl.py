"""curl, with the habits that trip proxies: HTTP/2 without TLS, 100-continue, uploads of unknown length."""

import json
import subprocess

import pytest
from conftest import MARK

CHAT = json.dumps({"model": "demo", "messages": [{"role": "user", "content": f"Hello {MARK}"}]})
STREAM = json.dumps({"model": "demo", "stream": True, "messages": [{"role": "user", "content": f"Hello {MARK}"}]})
# Far longer than any test: a curl that gives up waiting for 100 Continue fails by --max-time instead of passing late.
PATIENT = ["--expect100-timeout", "60"]


class Said:
    def __init__(self, finished):
        lines = finished.stderr.decode().lower().splitlines()
        self.headers = "\n".join(line for line in lines if "authorization" not in line)
        self.body, _, trailer = finished.stdout.decode().rpartition("\n")
        self.status, self.version = trailer.split()

    def json(self):
        return json.loads(self.body)


def curl(world, *arguments, body=None, key="everything", path="/v1/chat/completions"):
    """Runs curl with the key in a file, so that no failure shows it."""
    config = f'header = "authorization: Bearer {world.keys[key].secret}"\n'
    config_file = world.forebay.file.with_name("curl.conf")
    config_file.write_text(config)
    finished = subprocess.run(
        ["curl", "-q", "--config", config_file, "-sSv", "--noproxy", "*", "--max-time", "30", "-o", "-"]
        + ["-w", "\n%{http_code} %{http_version}", "-H", "content-type: application/json", *arguments]
        + [f"http://127.0.0.1:{world.forebay.port}{path}"],
        input=body,
        capture_output=True,
        timeout=60,
    )
    assert finished.returncode == 0, f"curl ended with {finished.returncode}"
    return Said(finished)


@pytest.mark.parametrize(("flag", "version"), [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")])
def test_each_http_version_is_answered(world, flag, version):
    said = curl(world, flag, "-d", CHAT)
    assert (said.status, said.version) == ("200", version)
    assert said.json()["choices"]


def test_a_client_of_http_1_0_is_answered(world):
    assert curl(world, "--http1.0", "-d", CHAT).json()["choices"]


@pytest.mark.parametrize("flag", ["--http1.1", "--http2-prior-knowledge"])
def test_a_stream_ends_with_done(world, flag):
    said = curl(world, flag, "-N", "-d", STREAM)
    assert said.status == "200"
    assert "content-type: text/event-stream" in said.headers
    events = [line for line in said.body.splitlines() if line.startswith("data: ")]
    assert len(events) > 2
    assert events[-1] == "data: [DONE]"


def large(mebibytes):
    return CHAT[:-1] + ', "padding": "' + "x" * (mebibytes << 20) + '"}'


def test_a_large_body_waits_for_100_continue_and_gets_it(world):
    said = curl(world, *PATIENT, "-H", "expect: 100-continue", "--data-binary", "@-", body=large(5).encode())
    assert said.status == "200"
    assert "< http/1.1 100" in said.headers


def test_a_body_that_declares_itself_too_large_is_refused_before_it_is_sent(world):
    said = curl(world, *PATIENT, "-H", "expect: 100-continue", "--data-binary", "@-", body=large(9).encode())
    assert (said.status, said.json()["error"]["code"]) == ("413", "request_too_large")
    assert "< http/1.1 100" not in said.headers


def test_a_key_is_checked_before_a_body_is_invited(world):
    said = curl(
        world, *PATIENT, "-H", "expect: 100-continue", "--data-binary", "@-", body=large(5).encode(), key="disabled"
    )
    assert (said.status, said.json()["error"]["code"]) == ("401", "invalid_api_key")
    assert "< http/1.1 100" not in said.headers


@pytest.mark.parametrize("mebibytes", [0, 5])
def test_an_upload_of_unknown_length_is_answered(world, mebibytes):
    said = curl(world, *PATIENT, "-X", "POST", "-T", "-", body=large(mebibytes).encode())
    assert said.status == "200"
    assert "> transfer-encoding: chunked" in said.headers


@pytest.mark.parametrize("flag", ["--http1.1", "--http2-prior-knowledge"])
def test_an_upload_of_unknown_length_that_grows_too_large_is_a_413(world, flag):
    said = curl(world, flag, *PATIENT, "-X", "POST", "-T", "-", body=large(9).encode())
    assert (said.status, said.json()["error"]["code"]) == ("413", "request_too_large")


def test_the_models_are_listed(world):
    said = curl(world, path="/v1/models")
    assert said.status == "200"
    assert said.json()["object"] == "list"
