"""Print the exact cost of an answer, and the cost of the teacher alone.

    python examples/receipt_and_cost.py "Why is the sky blue?"

GKT_URL and GKT_KEY set the gateway and the key. The defaults are those of `scripts/demo`.
"""

import os
import sys
import time
from decimal import Decimal

import httpx

client = httpx.Client(
    base_url=os.environ.get("GKT_URL", "http://127.0.0.1:8080/v1"),
    headers={"Authorization": f"Bearer {os.environ.get('GKT_KEY', 'gk-demo')}"},
    timeout=120,
)
question = " ".join(sys.argv[1:]) or "Why is the sky blue?"

answer = client.post(
    "/chat/completions",
    json={"model": "chat", "messages": [{"role": "user", "content": question}], "max_tokens": 120},
).raise_for_status()
request_id = answer.headers["x-request-id"]

# The receipt is written after the answer was sent, so it may be missing for a moment.
for _ in range(50):
    found = client.get(f"/receipts/{request_id}")
    if found.status_code != httpx.codes.NOT_FOUND:
        break
    time.sleep(0.1)
receipt = found.raise_for_status().json()

print(f"{receipt['id']}  {receipt['mode']}, {receipt['status']}")
for role in ("teacher", "student"):
    share = receipt[role]
    if share is not None:
        read, written = share["input_tokens"], share["output_tokens"]
        print(f"{role:10}{read:>6} read {written:>6} written  {share['cost_usd']:>16} USD")

# Amounts are exact and encoded as text: use Decimal, not float.
cost, baseline = Decimal(receipt["cost_usd"]), Decimal(receipt["baseline_usd"])
print(f"together                          {cost:>19} USD")
print(f"{receipt['baseline_model']} alone                         {baseline:>16} USD, {receipt['baseline_basis']}")
# For a guided answer. docs/cost.md has the other classes of savings.
print(f"saved                             {baseline - cost:>19} USD, {receipt['savings_class']}")
assert baseline - cost == Decimal(receipt["savings_usd"])
