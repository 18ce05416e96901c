"""An agent that knows an OpenAI URL: asks, says how long the answer was, asks again."""

import json
import os
import sys
import urllib.request


def ask(messages: list[dict[str, str]]) -> dict[str, str]:
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/chat/completions",
        json.dumps({"model": "any", "messages": messages}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        message: dict[str, str] = json.load(answer)["choices"][0]["message"]
    return message


chat = json.load(sys.stdin)["messages"]
first = ask(chat)
chat += [first, {"role": "user", "content": f"{len(first['content'])} letters"}]
print(json.dumps({"reward": len(ask(chat)["content"]) / 100}))
