"""Sends an exact number of the comparison's prompts over 16 keep-alive connections, and fails unless each is answered 200.

Arguments: port, number. The key comes in $KEY.
"""

import http.client
import json
import os
import sys

port, number = int(sys.argv[1]), int(sys.argv[2])
headers = {"Authorization": f"Bearer {os.environ['KEY']}", "Content-Type": "application/json"}
prompt = {"model": "demo", "max_tokens": 16, "temperature": 0.7, "messages": [{"role": "user", "content": ""}]}
room = 1024 - len(json.dumps(prompt))
prompt["messages"][0]["content"] = ("word " * 300)[:room]
body = json.dumps(prompt)

connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(16)]
sent = 0
while sent < number:
    asked = connections[: number - sent]
    for connection in asked:
        connection.request("POST", "/v1/chat/completions", body, headers)
    for connection in asked:
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            sys.exit(f"answered {response.status}: {answer[:200]!r}")
    sent += len(asked)
