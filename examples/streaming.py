"""The same as a stream: the teacher's words come first, then the student's, in one answer.

    python examples/streaming.py "Why is the sky blue?"

GKT_URL and GKT_KEY say where and as whom; without them the gateway of `scripts/demo` is asked.
"""

import os
import sys

import openai

client = openai.OpenAI(
    base_url=os.environ.get("GKT_URL", "http://127.0.0.1:8080/v1"),
    api_key=os.environ.get("GKT_KEY", "gk-demo"),
)
question = " ".join(sys.argv[1:]) or "Why is the sky blue?"

stream = client.chat.completions.create(
    model="chat",
    messages=[{"role": "user", "content": question}],
    max_tokens=120,
    stream=True,
    stream_options={"include_usage": True},  # then the last chunk has the counts, and what it cost under `gkt`
)
facts = None
finished = False
try:
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
            finished = finished or choice.finish_reason is not None
        facts = (chunk.model_extra or {}).get("gkt", facts)
except openai.APIError as error:
    # Once a stream has begun its status cannot change: what goes wrong then is its last event. Nobody asks again by
    # himself, and what was shown is not a whole answer.
    sys.exit(f"\nbroke off: {error.code}: {error.message}")

print()
assert finished
if facts:
    print(facts["mode"], "for", facts.get("cost_usd", "a cost that is not shown"))
