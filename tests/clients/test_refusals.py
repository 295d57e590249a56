"""How forebay says no: the client's own error classes, the codes of the contract, and never a reset."""

import gzip
import http.client
import json
import socket
import threading

import openai
import pytest
from conftest import MARK
from harness import Key, ask

PROMPT = [{"role": "user", "content": f"Say something. {MARK}"}]
CHAT = json.dumps({"model": "demo", "messages": PROMPT}).encode()
MEBIBYTE = 1 << 20


def chat(client, model="demo", content="hello"):
    messages = [{"role": "user", "content": f"{content} {MARK}"}]
    return client.chat.completions.create(model=model, messages=messages)


def envelope(answer):
    """The error of a response, after a look at its form."""
    assert answer.headers["content-type"].split(";")[0] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "127.0.0.1" not in body["error"]["message"]
    return body["error"]


@pytest.mark.parametrize("key", ["disabled", "expired", "unknown"])
def test_a_key_that_does_not_admit_is_an_authentication_error(world, key):
    secret = world.keys[key].secret if key in world.keys else Key("made up").secret
    client = openai.OpenAI(base_url=world.forebay.base_url, api_key=secret, max_retries=0)
    with pytest.raises(openai.AuthenticationError) as refused:
        chat(client)
    assert refused.value.status_code == 401
    assert refused.value.code == "invalid_api_key"
    assert refused.value.response.headers["www-authenticate"].startswith("Bearer")


def test_every_cause_of_a_401_reads_the_same(world):
    messages = set()
    for key in ("disabled", "expired"):
        with pytest.raises(openai.AuthenticationError) as refused:
            chat(world.client(key))
        messages.add(refused.value.body["message"])
    keyless = ask(world.forebay.port, "/v1/chat/completions", "POST", {"content-type": "application/json"}, CHAT)
    messages.add(envelope(keyless)["message"])
    assert len(messages) == 1


def test_a_model_that_the_key_may_not_use_is_a_permission_error(world):
    with pytest.raises(openai.PermissionDeniedError) as refused:
        chat(world.client("acme-only"))
    assert (refused.value.status_code, refused.value.code) == (403, "model_not_allowed")
    assert refused.value.type == "permission_error"


def test_an_unknown_model_is_a_not_found_error(client):
    with pytest.raises(openai.NotFoundError) as refused:
        chat(client, model="no-such-model")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_an_unknown_path_is_a_not_found_error(world):
    client = world.client(base_url=f"http://127.0.0.1:{world.forebay.port}/v2")
    with pytest.raises(openai.NotFoundError) as refused:
        chat(client)
    assert refused.value.code == "not_found"


def test_a_body_without_a_model_is_a_bad_request_error(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", body={"messages": PROMPT}, cast_to=object)
    assert refused.value.code == "missing_model"
    assert refused.value.type == "invalid_request_error"


def test_a_model_without_a_usable_engine_is_an_internal_server_error_that_says_when_to_come_again(client):
    with pytest.raises(openai.InternalServerError) as refused:
        chat(client, model="dead")
    assert (refused.value.status_code, refused.value.code) == (503, "no_healthy_upstream")
    assert refused.value.type == "overloaded_error"
    assert int(refused.value.response.headers["retry-after"]) >= 1


BAD_BODIES = {
    "not JSON": (b"hello", {}, 400, "invalid_json"),
    "cut off": (CHAT[:-1], {}, 400, "invalid_json"),
    "empty": (b"", {}, 400, "invalid_json"),
    "two models": (b'{"model":"demo","messages":[],"model":"demo"}', {}, 400, "duplicate_model"),
    "two models, one escaped": (b'{"model":"demo","messages":[],"mod\\u0065l":"slow"}', {}, 400, "duplicate_model"),
    "a model deeper only": (b'{"messages":[{"model":"demo"}]}', {}, 400, "missing_model"),
    "gzip": (gzip.compress(CHAT), {"content-encoding": "gzip"}, 415, "unsupported_encoding"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_bad_body_is_refused_with_its_code(world, case):
    body, headers, status, code = BAD_BODIES[case]
    answer = ask(world.forebay.port, "/v1/chat/completions", "POST", world.bearer() | headers, body)
    assert (answer.status, envelope(answer)["code"]) == (status, code)


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
def test_a_key_is_taken_from_each_of_the_three_headers(world, header):
    secret = world.keys["everything"].secret
    headers = {header: f"Bearer {secret}" if header == "authorization" else secret}
    answer = ask(world.forebay.port, "/v1/chat/completions", "POST", headers, CHAT)
    assert answer.status == 200


def test_the_messages_api_is_refused_in_anthropics_form(world):
    body = json.dumps({"model": "no-such-model", "max_tokens": 8, "messages": PROMPT})
    answer = ask(world.forebay.port, "/v1/messages", "POST", world.bearer(), body)
    assert answer.status == 404
    assert answer.json()["type"] == "error"
    assert {"type", "message"} <= set(answer.json()["error"])


def test_health_needs_no_key_and_gives_no_detail(world):
    answer = ask(world.forebay.port, "/health")
    assert answer.status == 200
    assert b"127.0.0.1" not in answer.body


def test_a_body_that_is_too_large_is_a_413(client):
    with pytest.raises(openai.APIStatusError) as refused:
        chat(client, content="word " * 2_000_000)
    assert refused.value.status_code == 413
    assert refused.value.code == "request_too_large"
    assert "8" in refused.value.message


def test_a_413_reaches_a_client_that_sends_chunks_to_the_end(world):
    connection = http.client.HTTPConnection("127.0.0.1", world.forebay.port, timeout=30)
    chunks = (b" " * 65536 for _ in range(10 * MEBIBYTE // 65536))
    connection.request("POST", "/v1/chat/completions", chunks, world.bearer(), encode_chunked=True)
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]["code"]) == (413, "request_too_large")
    connection.close()


def half_sent(world, framing):
    """A connection on which a prompt's header was sent, and nothing of its body yet."""
    connection = socket.create_connection(("127.0.0.1", world.forebay.port), timeout=30)
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", framing]
    lines += [f"{name}: {value}" for name, value in world.bearer().items()]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def read_error(connection):
    response = http.client.HTTPResponse(connection, method="POST")
    response.begin()
    return response.status, json.loads(response.read())["error"]["code"]


def test_a_413_reaches_a_client_that_waits_in_the_middle_of_its_body(world):
    with half_sent(world, f"Content-Length: {100 * MEBIBYTE}") as connection:
        connection.sendall(b" " * 65536)
        assert read_error(connection) == (413, "request_too_large")


def test_a_413_reaches_a_client_that_is_still_sending_chunks(world):
    with half_sent(world, "Transfer-Encoding: chunked") as connection:
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        read, broken = threading.Event(), []

        def send_on():
            try:
                # Past the limit by a half, but not for ever: the rest is read for a few seconds only.
                for _ in range(12 * MEBIBYTE // 65536):
                    if read.is_set():
                        return
                    connection.sendall(chunk)
            except OSError as error:
                broken.append(error)

        sender = threading.Thread(target=send_on)
        sender.start()
        try:
            assert read_error(connection) == (413, "request_too_large")
            before_the_answer = list(broken)
        finally:
            read.set()
            sender.join()
        assert not before_the_answer, "the connection broke before the answer was read"


def test_a_refused_key_leaves_the_connection_usable(world):
    connection = http.client.HTTPConnection("127.0.0.1", world.forebay.port, timeout=30)
    for key, status in (("disabled", 401), ("everything", 200)):
        connection.request("POST", "/v1/chat/completions", CHAT, world.bearer(key))
        response = connection.getresponse()
        response.read()
        assert response.status == status
    connection.close()


@pytest.mark.parametrize(
    "path", ["/v1/../metrics", "/v1/%2e%2e/metrics", "/v1//../metrics", "/v1/..%2fmetrics"]
)
def test_no_spelling_of_a_path_gets_past_the_routes(world, path):
    answer = ask(world.forebay.port, path, "POST", world.bearer(), CHAT)
    assert answer.status in (400, 404)
