"""What one answer cost, to the last digit, and what the teacher alone would have cost.

    python examples/receipt_and_cost.py "Why is the sky blue?"

GKT_URL and GKT_KEY say where and as whom; without them the gateway of `scripts/demo` is asked.
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

# A receipt is written once the answer has left, so it may be a moment late.
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

# Money is text and exact: add it up as Decimal, never as float.
cost, baseline = Decimal(receipt["cost_usd"]), Decimal(receipt["baseline_usd"])
print(f"together                          {cost:>19} USD")
print(f"{receipt['baseline_model']} alone                         {baseline:>16} USD, {receipt['baseline_basis']}")
# Of a guided answer. Other classes of savings count otherwise: docs/cost.md has the table.
print(f"saved                             {baseline - cost:>19} USD, {receipt['savings_class']}")
assert baseline - cost == Decimal(receipt["savings_usd"])
