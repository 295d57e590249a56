"""Streams of events that an engine paces, read side by side; each must come whole.

As a program: opens 16 streams through a port, of as many events together as is said, and reads them. Arguments: port,
events. The key comes in $KEY, the engine's pace in $PACE.
"""

import json
import os
import selectors
import socket
import sys
import time

KEY, PACE = os.environ["KEY"], int(os.environ.get("PACE", "50"))
# The stand-in engine sends a role before the tokens, and a reason and [DONE] after them.
AROUND = 3
EVENT_END = b"\n\n"


class Streams:
    """So many streams, each of so many seconds at the engine's pace."""

    def __init__(self, port, number, seconds):
        self.events, self.pieces, self.tokens = 0, 0, int(seconds * PACE)
        self.selector, self.open = selectors.DefaultSelector(), {}
        prompt = {"model": "demo", "stream": True, "max_tokens": self.tokens}
        prompt["messages"] = [{"role": "user", "content": "word " * self.tokens}]
        body = json.dumps(prompt).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        first = time.monotonic()
        for place in range(number):
            # Spread over the time between two events, as clients are.
            time.sleep(max(0, first + place / number / PACE - time.monotonic()))
            stream = socket.create_connection(("127.0.0.1", port))
            stream.sendall(head.encode() + body)
            stream.setblocking(False)
            self.selector.register(stream, selectors.EVENT_READ)
            self.open[stream] = bytearray()

    def read_for(self, seconds):
        """Reads what comes in that time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.read(left)

    def read_to_the_end(self):
        """Reads until each stream has ended, and makes sure that it is whole."""
        until = time.monotonic() + 60
        while self.open:
            self.read(1)
            if time.monotonic() > until:
                sys.exit(f"{len(self.open)} streams do not end")

    def read(self, limit):
        """Reads what is there, or waits for it that long."""
        for key, _ in self.selector.select(limit):
            stream = key.fileobj
            piece = stream.recv(65536)
            read = self.open[stream]
            before = len(read)
            self.pieces += 1
            read += piece
            # Its end may be in two pieces.
            self.events += read.count(EVENT_END, max(0, before - 1))
            if not piece or read.endswith(b"0\r\n\r\n"):
                self.end(stream)

    def end(self, stream):
        """A stream is over."""
        read = self.open.pop(stream)
        count = read.count(EVENT_END)
        if count != self.tokens + AROUND or b"data: [DONE]" not in read[-40:]:
            sys.exit(f"a stream has {count} events, not {self.tokens + AROUND}: {read[:300]!r} … {read[-300:]!r}")
        self.selector.unregister(stream)
        stream.close()


if __name__ == "__main__":
    each = int(sys.argv[2]) // 16
    opened = Streams(int(sys.argv[1]), 16, each / PACE)
    opened.read_to_the_end()
    if opened.pieces < 0.9 * opened.events:
        # Together they cost less: a smaller $PACE or a quieter machine keeps them apart.
        print(f"{opened.events} events came in {opened.pieces} pieces", file=sys.stderr)
