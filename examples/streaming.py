"""Stream a guided answer: first the teacher's text, then the student's, in one answer.

    python examples/streaming.py "Why is the sky blue?"

GKT_URL and GKT_KEY set the gateway and the key. The defaults are those of `scripts/demo`.
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
    stream_options={"include_usage": True},  # adds token counts to the last chunk, and cost under `gkt`
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
    # The status of a stream cannot change after its start, so an error is its last event. Clients do not retry it,
    # and the shown text is not a complete answer.
    sys.exit(f"\nbroke off: {error.code}: {error.message}")

print()
assert finished
if facts:
    print(facts["mode"], "for", facts.get("cost_usd", "a cost that is not shown"))
