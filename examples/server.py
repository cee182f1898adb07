"""Start `dure serve`, and ask it with OpenAI's client (`pip install openai`).

A server that runs already needs the second half only.
"""

from __future__ import annotations

import re
import subprocess
import sys

from openai import OpenAI

model = sys.argv[1] if len(sys.argv) > 1 else "smollm2:135m"

command = [sys.executable, "-m", "dure", "serve", model, "--port", "0", "--context", "2048"]
server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
assert server.stderr is not None
try:
    for line in server.stderr:  # ends when the server does
        found = re.search(r"listens on (http\S+)", line)
        if found:
            break
    else:
        sys.exit("the server did not start")

    with OpenAI(base_url=found[1], api_key="none") as client:
        stream = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": "Name three colours."}],
            max_tokens=32,
            temperature=0,
            stream=True,
        )
        for event in stream:
            print(event.choices[0].delta.content or "", end="", flush=True)
    print()
finally:
    server.terminate()
    server.communicate()
