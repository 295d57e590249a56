"""The prompt cache through the real clients: the same call is computed once."""

import hashlib
import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import World
from harness import ROOT, Engine, Forebay, Key, Metrics, ask

PROMPT = [{"role": "user", "content": "the same question"}]
# What an operator shows to change something.
TOKEN = "the-token-of-an-operator"


@pytest.fixture
def cached(tmp_path):
    """A forebay whose models keep their answers, in front of one engine that counts its requests."""
    keys = [Key("one"), Key("two")]
    engine = Engine.start(tmp_path, "counts", [], "--first-token", "300")
    pool = f'[pool.p]\nservers = ["127.0.0.1:{engine.port}"]\n'
    models = "".join(f'[model."{name}"]\npool = "p"\n[model."{name}".cache]\n' for name in ("*", "llama-3.3-70b"))
    token = f'token_sha256 = "{hashlib.sha256(TOKEN.encode()).hexdigest()}"'
    forebay = Forebay.start(tmp_path, pool + models + "".join(key.toml() for key in keys), token)
    yield World(forebay, {key.name: key for key in keys}, engine)
    forebay.stop()
    engine.popen.kill()
    engine.popen.wait()


def computed(world):
    """How many requests the engine has had."""
    return Metrics(ask(world.engine.port, "/metrics").body.decode()).sum("vllm:request_success_total")


def test_the_same_call_is_a_hit_and_the_same_bytes(cached):
    with cached.client("one") as client:
        create = client.chat.completions.with_raw_response.create
        first, again = (create(model="m", messages=PROMPT, temperature=0) for _ in range(2))
        assert [answer.headers["x-forebay-cache"] for answer in (first, again)] == ["MISS", "HIT"]
        assert first.content == again.content
        assert int(again.headers["age"]) >= 0
        assert again.parse().choices[0].message.content == first.parse().choices[0].message.content
        assert computed(cached) == 1
        # Another key does not get what was kept for this one, nor does another question.
        with cached.client("two") as other:
            other = other.chat.completions.with_raw_response.create
            assert other(model="m", messages=PROMPT, temperature=0).headers["x-forebay-cache"] == "MISS"
        assert create(model="m", messages=PROMPT, temperature=0, seed=1).headers["x-forebay-cache"] == "MISS"
        assert create(model="m", messages=PROMPT, temperature=1).headers["x-forebay-cache"] == "BYPASS"


def test_the_same_stream_is_a_hit_and_the_same_events(cached):
    with cached.client("one") as client:

        def stream():
            with client.chat.completions.with_streaming_response.create(
                model="m", messages=PROMPT, seed=7, stream=True
            ) as answer:
                return answer.headers["x-forebay-cache"], answer.read()

        (first, one), (again, two) = stream(), stream()
        assert (first, again, computed(cached)) == ("MISS", "HIT", 1)
        assert one == two and one.endswith(b"data: [DONE]\n\n")
        kept = client.chat.completions.create(model="m", messages=PROMPT, seed=7, stream=True)
        said = "".join(chunk.choices[0].delta.content or "" for chunk in kept)
        assert "the same question" in said


def test_embeddings_are_kept_without_a_seed(cached):
    with cached.client("one") as client:
        first, again = (client.embeddings.create(model="m", input="word").data[0].embedding for _ in range(2))
        assert first == again


def test_twenty_at_once_are_computed_once(cached):
    with cached.client("one") as client, ThreadPoolExecutor(20) as threads:
        create = client.chat.completions.with_raw_response.create
        asks = [threads.submit(create, model="m", messages=PROMPT, temperature=0, n=1) for _ in range(20)]
        answers = [ask.result() for ask in asks]
    assert len({answer.content for answer in answers}) == 1
    did = sorted(answer.headers["x-forebay-cache"] for answer in answers)
    assert did.count("MISS") == 1 and set(did) <= {"MISS", "COALESCED", "HIT"}, did
    assert computed(cached) == 1


def test_a_purge_needs_leave_and_the_figures_tell(cached):
    with cached.client("one") as client:
        create = client.chat.completions.with_raw_response.create
        did = [create(model="m", messages=PROMPT, temperature=0).headers["x-forebay-cache"] for _ in range(2)]
        # Without the token such a call is refused, and nothing is lost.
        assert ask(cached.forebay.admin, "/cache/purge", "POST", body="{}").status == 401
        did.append(create(model="m", messages=PROMPT, temperature=0).headers["x-forebay-cache"])
    assert did == ["MISS", "HIT", "HIT"]
    assert ask(cached.forebay.admin, "/status").json()["cache"]["entries"] == 1
    assert cached.forebay.metrics().sum("forebay_cache_requests_total", result="hit") == 2


def test_the_readmes_purge_throws_out_the_answers_of_its_model(cached):
    [command] = re.findall(r"^ *(curl .*/cache/purge .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert command.count("127.0.0.1:9180") == 1
    with cached.client("one") as client:

        def did():
            create = client.chat.completions.with_raw_response.create
            answers = [create(model=model, messages=PROMPT, temperature=0) for model in ("llama-3.3-70b", "m")]
            return [answer.headers["x-forebay-cache"] for answer in answers]

        assert [did(), did()] == [["MISS", "MISS"], ["HIT", "HIT"]]
        command = command.replace("127.0.0.1:9180", f"127.0.0.1:{cached.forebay.admin}")
        environment = os.environ | {"TOKEN": TOKEN}
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr, json.loads(done.stdout)) == (0, "", {"purged": 1})
        assert did() == ["MISS", "HIT"]
