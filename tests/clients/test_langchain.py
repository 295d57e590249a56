"""What LangChain gets through forebay, set up as its users do."""

import openai
import pytest
from conftest import MARK
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

QUESTION = f"Say something. {MARK}"


def set_up(world, client, key="everything", **options):
    options = {"model": "demo", "base_url": world.forebay.base_url, "max_retries": 0, "timeout": 30} | options
    return client(api_key=world.keys[key].secret, **options)


def test_a_model_is_invoked(world):
    answer = set_up(world, ChatOpenAI).invoke(QUESTION)
    assert MARK in answer.content
    assert answer.usage_metadata["output_tokens"] > 0


def test_a_model_streams_the_same_answer(world):
    model = set_up(world, ChatOpenAI, stream_usage=True)
    chunks = list(model.stream(QUESTION))
    assert len(chunks) > 2
    whole = sum(chunks[1:], chunks[0])
    answer = model.invoke(QUESTION)
    assert (whole.content, whole.usage_metadata) == (answer.content, answer.usage_metadata)


def test_documents_and_queries_are_embedded(world):
    # Without this option texts are sent as the tokens of OpenAI's own models.
    embeddings = set_up(world, OpenAIEmbeddings, check_embedding_ctx_length=False)
    first, second = embeddings.embed_documents([f"a {MARK}", f"b {MARK}"])
    assert len(first) == len(second) > 1
    assert embeddings.embed_query(f"a {MARK}") == first


@pytest.mark.parametrize(
    ("key", "model", "error"),
    [
        ("disabled", "demo", openai.AuthenticationError),
        ("acme-only", "demo", openai.PermissionDeniedError),
        ("everything", "no-such-model", openai.NotFoundError),
    ],
)
def test_a_refusal_is_an_error_of_its_class(world, key, model, error):
    with pytest.raises(error):
        set_up(world, ChatOpenAI, key, model=model).invoke(QUESTION)
