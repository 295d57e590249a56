"""One forebay in front of three engines for the whole run, and the official clients to talk to it."""

import os
from contextlib import ExitStack
from dataclasses import dataclass

import anthropic
import openai
import pytest
from harness import Engine, Forebay, Key

# A proxy meant for the outside world must not get between the tests and loopback.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
# The clients read much from their variables, which must be neither sent nor obeyed here.
for name in list(os.environ):
    if name.startswith(("OPENAI_", "ANTHROPIC_", "LANGCHAIN_", "LANGSMITH_")):
        del os.environ[name]

# Stands in every prompt of these tests: it must be found in nothing that forebay writes.
MARK = "the-prompt-is-private"


@dataclass
class World:
    forebay: Forebay
    keys: dict
    engine: Engine = None

    def client(self, key="everything", **options):
        """The official client, as its users set it up: the base URL and the key are all that changes."""
        options = {"base_url": self.forebay.base_url, "max_retries": 0, "timeout": 30} | options
        return openai.OpenAI(api_key=self.keys[key].secret, **options)

    def async_client(self, key="everything"):
        return openai.AsyncOpenAI(
            base_url=self.forebay.base_url, api_key=self.keys[key].secret, max_retries=0, timeout=30
        )

    def anthropic(self, key="everything", client=anthropic.Anthropic):
        """Anthropic's official client. Its base URL is without `/v1`, and its key goes in `x-api-key`."""
        root = f"http://127.0.0.1:{self.forebay.port}"
        return client(base_url=root, api_key=self.keys[key].secret, max_retries=0, timeout=30)

    def bearer(self, key="everything"):
        return {"authorization": f"Bearer {self.keys[key].secret}", "content-type": "application/json"}


def configuration(fast, slow, keys):
    servers = ", ".join(f'"127.0.0.1:{engine.port}"' for engine in fast)
    return f"""max_body = "8MiB"

[pool.fast]
servers = [{servers}]

[pool.fast.health]
interval = "200ms"

[pool.slow]
servers = ["127.0.0.1:{slow.port}"]

[pool.slow.health]
interval = "200ms"

[pool.dead]
servers = ["127.0.0.1:1"]

[model.demo]
pool = "fast"

[model."acme/tiny"]
pool = "fast"

[model.renamed]
pool = "fast"
upstream = "demo"

[model.slow]
pool = "slow"

[model.dead]
pool = "dead"

{"".join(key.toml() for key in keys)}"""


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    keys = [
        Key("everything"),
        Key("demo-only", models=["demo"]),
        Key("acme-only", models=["acme/*"]),
        Key("disabled", more="disabled = true"),
        Key("expired", more="expires = 2020-01-01T00:00:00Z"),
    ]
    with ExitStack() as running:

        def kept(process):
            running.callback(process.stop)
            return process

        fast = [kept(Engine.start(directory, name, ["demo", "acme/tiny"])) for name in ("one", "two")]
        slow = kept(Engine.start(directory, "three", ["slow"], "--tokens-per-second", "20"))
        forebay = kept(Forebay.start(directory, configuration(fast, slow, keys)))
        yield World(forebay, {key.name: key for key in keys})
        assert forebay.stop() == 0, "forebay did not end well"
        assert_private(forebay.stderr(), keys, "forebay's whole log")


def assert_private(text, keys, where):
    """Fails where a text that somebody may read holds a key or a prompt."""
    # Never `in` within an assert: its message would print the text, secret included.
    told = [key.name for key in keys if key.secret in text or key.digest in text]
    assert told == [], f"{where} holds the secret or the digest of these keys"
    prompt_told = MARK in text
    assert not prompt_told, f"{where} holds a prompt"


@pytest.fixture
def fragile(tmp_path):
    """A world of its own whose only engine answers slowly, and may be killed."""
    with ExitStack() as running:
        key = Key("everything")
        engine = Engine.start(tmp_path, "fragile", [], "--tokens-per-second", "20")
        running.callback(engine.popen.wait)
        running.callback(engine.popen.kill)
        pool = f'[pool.only]\nservers = ["127.0.0.1:{engine.port}"]\n[model."*"]\npool = "only"\n'
        forebay = Forebay.start(tmp_path, pool + key.toml())
        running.callback(forebay.stop)
        yield World(forebay, {key.name: key}, engine)


@pytest.fixture
def client(world):
    with world.client() as client:
        yield client
