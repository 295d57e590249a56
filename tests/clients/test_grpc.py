"""A real gRPC client and a real gRPC server, with forebay in between: a route by pool over HTTP/2."""

import threading
import time
from concurrent import futures
from contextlib import ExitStack
from dataclasses import dataclass, field

import grpc
import pytest
from harness import Forebay, Key, free_port, until

KEY = Key("grpc", models=[], more='routes = ["grpc", "down"]')
# Refused everywhere: it may use another route only.
OTHER = Key("other", models=[], more='routes = ["open"]')


@dataclass
class Seen:
    """What the server saw, by the method's name."""

    metadata: dict = field(default_factory=dict)
    ended: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)


class Echo(grpc.GenericRpcHandler):
    """The service, without generated code: bytes in, bytes out."""

    def __init__(self, seen):
        self.seen = seen
        unary, streams = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        self.methods = {
            "Say": unary(self.say),
            "Fail": unary(self.fail),
            "Slow": unary(self.slow),
            "Count": streams(self.count),
            "Break": streams(self.break_off),
            "Forever": streams(self.forever),
            "Gather": grpc.stream_unary_rpc_method_handler(self.gather),
            "Talk": grpc.stream_stream_rpc_method_handler(self.talk),
            "Refuse": grpc.stream_stream_rpc_method_handler(self.refuse),
        }

    def service(self, call):
        method = call.method.rsplit("/", 1)[1]
        self.seen.metadata[method] = dict(call.invocation_metadata)
        self.seen.requests.append(method)
        return self.methods.get(method)

    def watch(self, method, context):
        ended = self.seen.ended[method] = threading.Event()
        context.add_callback(ended.set)
        return ended

    def say(self, request, context):
        context.send_initial_metadata((("x-initial", "before"), ("x-initial-bin", b"\x00\xff")))
        context.set_trailing_metadata((("x-trailing", "after"), ("x-trailing-bin", b"\xff\x00")))
        return request

    def fail(self, request, context):
        context.set_trailing_metadata((("x-trailing", "after"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "50% of it – no")

    def slow(self, _, context):
        self.watch("Slow", context).wait(20)
        return b""

    def count(self, request, _):
        for number in range(int(request)):
            yield str(number).encode()

    def break_off(self, _, context):
        yield b"one"
        yield b"two"
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more")

    def forever(self, _, context):
        ended = self.watch("Forever", context)
        yield b"began"
        ended.wait(20)

    def gather(self, requests, _):
        return str(sum(len(request) for request in requests)).encode()

    def talk(self, requests, _):
        for request in requests:
            yield request.upper()

    def refuse(self, requests, context):
        next(requests)
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "heard enough")


@dataclass
class World:
    forebay: Forebay
    seen: Seen
    channel: grpc.Channel

    def metadata(self, key=KEY):
        return (("authorization", f"Bearer {key.secret}"),)

    def call(self, kind, method):
        """A method of the service, through forebay, with the key."""
        path = method if method.startswith("/") else f"/test.Echo/{method}"
        return getattr(self.channel, kind)(path)


def configuration(port, dead):
    return f"""
[pool.grpc]
servers = ["127.0.0.1:{port}"]
protocol = "http2"
health = {{ path = "", interval = "200ms" }}

[pool.down]
servers = ["127.0.0.1:{dead}"]
protocol = "http2"
health = {{ path = "", interval = "200ms" }}

[[route]]
name = "grpc"
path = "/test.Echo/*"
pool = "grpc"

[[route]]
name = "open"
path = "/test.Open/*"
pool = "grpc"
auth = "none"

[[route]]
name = "down"
path = "/test.Down/*"
pool = "down"

{KEY.toml()}
{OTHER.toml()}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    seen = Seen()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64))
    server.add_generic_rpc_handlers((Echo(seen),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with ExitStack() as running:
        running.callback(lambda: server.stop(0).wait())
        forebay = Forebay.start(tmp_path_factory.mktemp("grpc"), configuration(port, free_port()))
        running.callback(forebay.stop)
        channel = running.enter_context(grpc.insecure_channel(f"127.0.0.1:{forebay.port}"))
        yield World(forebay, seen, channel)
        # Never `in` within an assert: its message would print the secret.
        told = KEY.secret in forebay.stderr()
        assert not told, "the key is in the log"


def test_an_answer_comes_with_its_metadata_before_and_after(world):
    for size in (0, 1, 100_000, 3_000_000):
        body = bytes(n % 251 for n in range(size))
        answer, call = world.call("unary_unary", "Say").with_call(
            body, metadata=(*world.metadata(), ("x-own", "mine"), ("x-own-bin", b"\x01\x02")), timeout=20
        )
        assert answer == body
        initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
        assert (initial["x-initial"], initial["x-initial-bin"]) == ("before", b"\x00\xff")
        assert (trailing["x-trailing"], trailing["x-trailing-bin"]) == ("after", b"\xff\x00")
        assert call.code() == grpc.StatusCode.OK
        seen = world.seen.metadata["Say"]
        assert (seen["x-own"], seen["x-own-bin"]) == ("mine", b"\x01\x02")
        assert "authorization" not in seen, "the client's key is forebay's affair"
        assert seen["x-request-id"] == initial["x-request-id"]


def test_an_error_keeps_its_status_its_message_and_its_trailers(world):
    with pytest.raises(grpc.RpcError) as failed:
        world.call("unary_unary", "Fail")(b"x", metadata=world.metadata(), timeout=20)
    assert failed.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert failed.value.details() == "50% of it – no"
    assert dict(failed.value.trailing_metadata())["x-trailing"] == "after"


def test_an_unknown_method_is_the_servers_own_answer(world):
    with pytest.raises(grpc.RpcError) as failed:
        world.call("unary_unary", "Nothing")(b"x", metadata=world.metadata(), timeout=20)
    assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "Nothing" in world.seen.requests


def test_a_stream_of_answers_comes_whole(world):
    for length in (0, 1, 5000):
        answers = list(world.call("unary_stream", "Count")(str(length).encode(), metadata=world.metadata(), timeout=20))
        assert answers == [str(number).encode() for number in range(length)]


def test_a_stream_that_fails_has_its_answers_and_then_its_status(world):
    stream = world.call("unary_stream", "Break")(b"", metadata=world.metadata(), timeout=20)
    assert (next(stream), next(stream)) == (b"one", b"two")
    with pytest.raises(grpc.RpcError) as failed:
        next(stream)
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "no more")


def test_a_stream_of_requests_comes_whole(world):
    requests = (b"x" * 10_000 for _ in range(200))
    assert world.call("stream_unary", "Gather")(requests, metadata=world.metadata(), timeout=20) == b"2000000"


def test_both_sides_talk_in_turns(world):
    """Each word waits for the answer to the one before: nothing may be held back on either way."""
    answered = threading.Semaphore(1)

    def words():
        for number in range(50):
            assert answered.acquire(timeout=20)
            yield f"word {number}".encode()

    heard = []
    for answer in world.call("stream_stream", "Talk")(words(), metadata=world.metadata(), timeout=20):
        heard.append(answer)
        answered.release()
    assert heard == [f"WORD {number}".encode() for number in range(50)]


def test_a_server_may_end_a_stream_that_its_client_goes_on_with(world):
    release = threading.Event()

    def words():
        yield b"one"
        release.wait(20)
        yield b"two"

    stream = world.call("stream_stream", "Refuse")(words(), metadata=world.metadata(), timeout=10)
    with pytest.raises(grpc.RpcError) as failed:
        next(stream)
    release.set()
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.PERMISSION_DENIED, "heard enough")


def test_a_deadline_ends_the_call_at_both_ends(world):
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as failed:
        world.call("unary_unary", "Slow")(b"", metadata=world.metadata(), timeout=0.5)
    assert failed.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 5
    assert world.seen.ended["Slow"].wait(5)


def test_a_cancelled_call_is_cancelled_at_the_server_at_once(world):
    stream = world.call("unary_stream", "Forever")(b"", metadata=world.metadata(), timeout=20)
    assert next(stream) == b"began"
    began = time.monotonic()
    stream.cancel()
    assert world.seen.ended["Forever"].wait(5)
    assert time.monotonic() - began < 1


def test_many_calls_at_once_are_each_answered(world):
    say = world.call("unary_unary", "Say")
    calls = [say.future(str(number).encode(), metadata=world.metadata(), timeout=20) for number in range(300)]
    assert [call.result() for call in calls] == [str(number).encode() for number in range(300)]
    used = world.forebay.metrics()
    fresh = used.sum("forebay_upstream_connections_total", pool="grpc", reused="false")
    reused = used.sum("forebay_upstream_connections_total", pool="grpc", reused="true")
    assert fresh + reused >= 300
    assert fresh < 150, "calls share connections"


@pytest.mark.parametrize(
    "method, key, status",
    [
        ("/test.Echo/Say", None, grpc.StatusCode.UNAUTHENTICATED),
        ("/test.Echo/Say", Key("unknown"), grpc.StatusCode.UNAUTHENTICATED),
        ("/test.Echo/Say", OTHER, grpc.StatusCode.PERMISSION_DENIED),
        ("/test.Elsewhere/Say", KEY, grpc.StatusCode.UNIMPLEMENTED),
        ("/test.Down/Say", KEY, grpc.StatusCode.UNAVAILABLE),
    ],
)
@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_stream"])
def test_forebays_refusals_are_grpc_statuses(world, kind, method, key, status):
    until("the dead server is down", lambda: world.forebay.metrics().sum("forebay_server_up", pool="down") == 0)
    before = len(world.seen.requests)
    request = iter([b"x"]) if kind == "stream_stream" else b"x"
    metadata = world.metadata(key) if key else ()
    with pytest.raises(grpc.RpcError) as refused:
        call = world.call(kind, method)(request, metadata=metadata, timeout=20)
        list(call)
    assert refused.value.code() == status
    assert refused.value.details().endswith(".")
    assert "127.0.0.1" not in refused.value.details()
    assert len(world.seen.requests) == before


def test_a_route_that_asks_for_no_key_takes_none(world):
    assert world.call("unary_unary", "/test.Open/Say")(b"x", timeout=20) == b"x"
    assert "authorization" not in world.seen.metadata["Say"]


def test_calls_are_logged_and_counted_as_what_they_were(world):
    metadata = (*world.metadata(), ("x-request-id", "grpc-observed"))
    world.call("unary_unary", "Say")(b"x", metadata=metadata, timeout=20)
    record = world.forebay.record_of("grpc-observed")
    expected = {"route": "grpc", "pool": "grpc", "key": "grpc", "path": "/test.Echo/Say", "status": 200, "end": "complete"}
    assert {name: record[name] for name in expected} == expected
    until("nothing in flight", lambda: world.forebay.metrics().sum("forebay_in_flight") == 0)
    assert {record["end"] for record in world.forebay.records() if record["path"] == "/test.Echo/Say"} <= {"complete"}
