"""Sends an exact number of the comparison's prompts over 16 keep-alive connections, and fails unless each is answered 200.

Arguments: port, number, and "plain", "hit" (one prompt, whose answer may be kept) or "miss" (a different one each time). The
key comes in $KEY.
"""

import http.client
import json
import os
import sys

port, number, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
headers = {"Authorization": f"Bearer {os.environ['KEY']}", "Content-Type": "application/json"}
model, temperature = ("demo", 0.7) if kind == "plain" else ("kept", 0)
prompt = {"model": model, "max_tokens": 16, "temperature": temperature, "messages": [{"role": "user", "content": ""}]}
room = 1024 - len(json.dumps(prompt))
prompt["messages"][0]["content"] = ("word " * 300)[:room]
body = json.dumps(prompt)


def asked_next(count):
    """The next prompt: as long as the others, and with a number of its own for a miss."""
    return body if kind != "miss" else body.replace("word word", f"{count:9}", 1)


connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(16)]
sent = 0
while sent < number:
    asked = connections[: number - sent]
    for place, connection in enumerate(asked):
        connection.request("POST", "/v1/chat/completions", asked_next(sent + place), headers)
    for connection in asked:
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            sys.exit(f"answered {response.status}: {answer[:200]!r}")
    sent += len(asked)
