"""One guided answer through the unchanged OpenAI client, and what it says of itself.

    python examples/openai_chat.py "Why is the sky blue?"

GKT_URL and GKT_KEY say where and as whom; without them the gateway of `scripts/demo` is asked.
"""

import os
import sys

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("GKT_URL", "http://127.0.0.1:8080/v1"),
    api_key=os.environ.get("GKT_KEY", "gk-demo"),
)
question = " ".join(sys.argv[1:]) or "Why is the sky blue?"

# The reply as it came: its body is OpenAI's, its headers say who wrote what and what it cost.
raw = client.chat.completions.with_raw_response.create(
    model="chat",  # a route of the policy, not a model
    messages=[{"role": "user", "content": question}],
    max_tokens=120,
)
reply = raw.parse()
print(reply.choices[0].message.content)

print()
print("mode        ", raw.headers["x-gkt-mode"])
if "x-gkt-unguided" in raw.headers:
    print("unguided    ", raw.headers["x-gkt-unguided"])  # why; docs/reference/receipts.md has the words
if "x-gkt-guidance-tokens" in raw.headers:
    print("by the teacher", raw.headers["x-gkt-guidance-tokens"], "tokens")
print("cost, USD   ", raw.headers.get("x-gkt-cost-usd", "not shown on this route"))
print("request     ", raw.headers["x-request-id"])
