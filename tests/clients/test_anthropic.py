"""What Anthropic's official client gets through forebay: answers, events, and refusals as its own error classes."""

import asyncio

import anthropic
import pytest
from conftest import MARK
from harness import until

PROMPT = {"max_tokens": 24, "messages": [{"role": "user", "content": f"Say something. {MARK}"}]}
# A minute's answer at 20 tokens a second.
LONG = PROMPT | {"max_tokens": 1200}


def test_a_message_is_answered(world):
    answer = world.anthropic().messages.create(model="demo", **PROMPT)
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "demo")
    assert MARK in answer.content[0].text
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 24)


def test_a_stream_says_the_same_as_the_whole_message(world):
    client = world.anthropic()
    whole = client.messages.create(model="demo", **PROMPT)
    with client.messages.stream(model="demo", **PROMPT) as stream:
        pieces = list(stream.text_stream)
        last = stream.get_final_message()
    assert len(pieces) > 2
    assert "".join(pieces) == last.content[0].text == whole.content[0].text
    assert (last.stop_reason, last.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


def test_the_events_of_a_stream_come_in_their_order(world):
    with world.anthropic().messages.create(model="demo", stream=True, **PROMPT) as stream:
        kinds = [event.type for event in stream]
    assert [kinds[0], kinds[-2], kinds[-1]] == ["message_start", "message_delta", "message_stop"]
    assert kinds.count("content_block_delta") > 2


def test_the_asynchronous_client_streams(world):
    async def talk():
        async with world.anthropic(client=anthropic.AsyncAnthropic) as client:
            async with client.messages.stream(model="demo", **PROMPT) as stream:
                return await stream.get_final_text()

    assert MARK in asyncio.run(talk())


def test_a_renamed_model_reaches_its_engine(world):
    assert world.anthropic().messages.create(model="renamed", **PROMPT).content


REFUSALS = [
    ("disabled", "demo", "", anthropic.AuthenticationError, 401, "authentication_error"),
    ("acme-only", "demo", "", anthropic.PermissionDeniedError, 403, "permission_error"),
    ("everything", "no-such-model", "", anthropic.NotFoundError, 404, "not_found_error"),
    ("everything", "demo", "word " * 2_000_000, anthropic.ContentTooLargeError, 413, "request_too_large"),
    ("everything", "dead", "", anthropic.ServiceUnavailableError, 503, "overloaded_error"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("key", "model", "more", "error", "status", "kind"), REFUSALS)
def test_a_refusal_is_an_error_of_its_class(world, key, model, more, error, status, kind, stream):
    messages = [{"role": "user", "content": MARK + more}]
    with pytest.raises(error) as refused:
        world.anthropic(key).messages.create(model=model, max_tokens=8, messages=messages, stream=stream)
    assert (refused.value.status_code, refused.value.body["error"]["type"]) == (status, kind)


def test_a_stream_that_its_client_closes_frees_the_engine(world):
    with world.anthropic().messages.stream(model="slow", **LONG) as stream:
        assert next(stream.text_stream)
        until("one in flight", lambda: world.forebay.in_flight("slow") == 1)
    until("none in flight", lambda: world.forebay.in_flight("slow") == 0)


def test_a_stream_that_its_engine_breaks_off_is_an_error(fragile):
    with fragile.anthropic().messages.stream(model="any", **LONG) as stream:
        assert next(stream.text_stream)
        fragile.engine.popen.kill()
        with pytest.raises(anthropic.APIStatusError) as broken:
            stream.get_final_message()
    assert broken.value.body["error"]["type"] == "api_error"
