"""Request a guided answer with the unmodified OpenAI client, and print the facts in its headers.

    python examples/openai_chat.py "Why is the sky blue?"

GKT_URL and GKT_KEY set the gateway and the key. The defaults are those of `scripts/demo`.
"""

import os
import sys

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("GKT_URL", "http://127.0.0.1:8080/v1"),
    api_key=os.environ.get("GKT_KEY", "gk-demo"),
)
question = " ".join(sys.argv[1:]) or "Why is the sky blue?"

# The raw reply: the body is OpenAI's, and the headers have the gateway's facts and the cost.
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
    print("unguided    ", raw.headers["x-gkt-unguided"])  # the reason: docs/reference/receipts.md
if "x-gkt-guidance-tokens" in raw.headers:
    print("by the teacher", raw.headers["x-gkt-guidance-tokens"], "tokens")
print("cost, USD   ", raw.headers.get("x-gkt-cost-usd", "not shown on this route"))
print("request     ", raw.headers["x-request-id"])
