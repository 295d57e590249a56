"""What the official OpenAI client gets through forebay when all is well."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
from conftest import MARK
from harness import until

PROMPT = [{"role": "user", "content": f"Say something. {MARK}"}]
# A minute's answer at 20 tokens a second.
LONG = {"messages": PROMPT, "max_tokens": 1200}


def test_a_chat_is_answered(client):
    answer = client.chat.completions.create(model="demo", messages=PROMPT)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.completion_tokens > 0


def test_a_completion_is_answered(client):
    answer = client.completions.create(model="demo", prompt=f"Once upon a time {MARK}", max_tokens=8)
    assert answer.choices[0].text


def test_a_stream_ends_with_a_finish_reason(client):
    with client.chat.completions.create(model="demo", messages=PROMPT, stream=True) as stream:
        chunks = list(stream)
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert [reason for reason in reasons if reason] in (["stop"], ["length"])
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_a_streams_usage_arrives_when_asked_for(client):
    stream = client.chat.completions.create(
        model="demo", messages=PROMPT, stream=True, stream_options={"include_usage": True}
    )
    usages = [chunk.usage for chunk in stream if chunk.usage]
    assert len(usages) == 1
    assert usages[0].completion_tokens > 0


def test_chunks_of_a_stream_arrive_as_the_engine_makes_them(client):
    asked = time.monotonic()
    stream = client.chat.completions.create(model="slow", messages=PROMPT, stream=True, max_tokens=16)
    arrivals = [time.monotonic() - asked for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert len(arrivals) >= 4
    # At 20 tokens a second 16 of them take most of a second; a proxy that buffered would deliver them all at its end.
    assert arrivals[-1] > 0.3
    assert arrivals[0] < arrivals[-1] / 2


def test_embeddings_are_vectors_of_one_length(client):
    answer = client.embeddings.create(model="demo", input=[f"a {MARK}", f"b {MARK}"])
    assert [entry.index for entry in answer.data] == [0, 1]
    lengths = {len(entry.embedding) for entry in answer.data}
    assert len(lengths) == 1 and lengths.pop() > 1
    assert all(isinstance(value, float) for value in answer.data[0].embedding)


@pytest.mark.parametrize(
    ("key", "models"),
    [
        ("everything", {"demo", "acme/tiny", "renamed", "slow", "dead"}),
        ("demo-only", {"demo"}),
        ("acme-only", {"acme/tiny"}),
    ],
)
def test_the_list_of_models_is_what_the_key_may_use(world, key, models):
    listed = list(world.client(key).models.list())
    assert {model.id for model in listed} == models
    assert {model.owned_by for model in listed} == {"forebay"}


@pytest.mark.parametrize("name", ["demo", "acme/tiny"])
def test_one_model_can_be_looked_up(client, name):
    model = client.models.retrieve(name)
    assert (model.id, model.object) == (name, "model")


def test_a_model_with_a_slash_in_its_name_answers(client):
    assert client.chat.completions.create(model="acme/tiny", messages=PROMPT).choices


def test_a_renamed_model_reaches_its_engine(client):
    assert client.chat.completions.create(model="renamed", messages=PROMPT).choices


def test_a_body_of_5_mb_passes(client):
    long = [{"role": "user", "content": f"{MARK} " + "word " * 1_000_000}]
    assert client.chat.completions.create(model="demo", messages=long, max_tokens=4).choices


def test_32_at_once_are_all_answered(client):
    def one(number):
        prompt = [{"role": "user", "content": f"{number} {MARK}"}]
        return client.chat.completions.create(model="demo", messages=prompt, stream=number % 2 == 1)

    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(one, range(32)))
    assert all(answer.choices for answer in answers[::2])
    assert all(list(stream) for stream in answers[1::2])


def test_the_client_works_over_http_2_too(world):
    with httpx2.Client(http1=False, http2=True) as http:
        client = world.client(http_client=http)
        assert client.chat.completions.create(model="demo", messages=PROMPT).choices
        assert list(client.chat.completions.create(model="demo", messages=PROMPT, stream=True))
        raw = client.chat.completions.with_raw_response.create(model="demo", messages=PROMPT)
        assert raw.http_response.http_version == "HTTP/2"


def test_every_answer_carries_a_request_id(client):
    answer = client.chat.completions.create(model="demo", messages=PROMPT)
    assert answer._request_id
    chosen = client.chat.completions.create(
        model="demo", messages=PROMPT, extra_headers={"x-request-id": "chosen-by-the-client-1"}
    )
    assert chosen._request_id == "chosen-by-the-client-1"


def until_in_flight(world, count):
    until(f"{count} in flight at the slow engine", lambda: world.forebay.in_flight("slow") == count)


def test_a_stream_that_its_client_closes_frees_the_engine(world, client):
    stream = client.chat.completions.create(model="slow", **LONG, stream=True)
    assert next(stream).choices
    until_in_flight(world, 1)
    stream.close()
    until_in_flight(world, 0)


def test_a_stream_that_its_engine_breaks_off_is_an_error(fragile):
    with fragile.client() as client:
        stream = client.chat.completions.create(model="any", **LONG, stream=True)
        assert next(stream).choices
        fragile.engine.popen.kill()
        with pytest.raises(openai.APIError) as broken:
            list(stream)
        assert broken.value.code == "upstream_unavailable"


# === the Responses API ===


def test_a_response_is_answered(client):
    answer = client.responses.create(model="demo", input=f"Say something. {MARK}")
    assert (answer.status, answer.model) == ("completed", "demo")
    assert MARK in answer.output_text
    assert answer.usage.output_tokens > 0


def test_a_streamed_response_says_the_same_and_ends_as_completed(client):
    prompt = {"model": "demo", "input": f"Say something. {MARK}"}
    with client.responses.create(stream=True, **prompt) as stream:
        events = list(stream)
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(pieces) > 2
    assert events[-1].type == "response.completed"
    assert "".join(pieces) == events[-1].response.output_text == client.responses.create(**prompt).output_text


def test_a_streamed_response_that_its_engine_breaks_off_ends_with_an_error(fragile):
    with fragile.client() as client:
        stream = client.responses.create(model="any", input=MARK, max_output_tokens=1200, stream=True)
        assert next(stream).type == "response.created"
        fragile.engine.popen.kill()
        events = []
        with pytest.raises(openai.APIError):
            events.extend(stream)
        assert (events[-1].type, events[-1].code) == ("error", "upstream_unavailable")


# === the asynchronous client ===


def test_the_asynchronous_client_gets_chats_streams_with_usage_and_embeddings(world):
    async def talk():
        async with world.async_client() as client:
            chats, create = client.chat.completions, client.embeddings.create
            chat, stream, embeddings = await asyncio.gather(
                chats.create(model="demo", messages=PROMPT),
                chats.create(
                    model="demo", messages=PROMPT, stream=True, stream_options={"include_usage": True}
                ),
                create(model="demo", input=[f"a {MARK}"]),
            )
            return chat, [chunk async for chunk in stream], embeddings

    chat, chunks, embeddings = asyncio.run(talk())
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == chat.choices[0].message.content
    assert [chunk.usage for chunk in chunks if chunk.usage] == [chat.usage]
    assert embeddings.data[0].embedding


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cancelled_frees_the_engine(world, stream):
    async def listen():
        async with world.async_client() as client:
            answer = await client.chat.completions.create(model="slow", **LONG, stream=stream)
            return [chunk async for chunk in answer]

    async def cancel():
        call = asyncio.create_task(listen())
        await asyncio.to_thread(until_in_flight, world, 1)
        call.cancel()
        await asyncio.to_thread(until_in_flight, world, 0)
        assert call.cancelled()

    asyncio.run(cancel())
