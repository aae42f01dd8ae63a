"""GKT Gateway: a large teacher opens every answer, a small student finishes it.

The path of one request, in the order of the rooms it walks through:

    1 receive       web/completions.py         bytes -> ChatRequest or TextRequest
    2 authenticate  web/auth.py + keyring/     bearer key, of a policy file or of Redis -> Caller
    3 resolve       policy/                    (caller, request) -> the first route that takes it (routing.py) -> Plan
                                               (resolve.py); all that follows reads the Plan only
    4 admit         admission.py + ledger/     a place in this process, room in limits and budgets, and an intent in
                                               Redis: one script; or 429, or 503
    5 guide         guide.py + guidance/       Plan -> Opening (opening.py), or why there is none: the teacher
                    + batching/                is asked, in batches
    6 complete      engines/                   the opening placed -> the student's answer, caller's sampling kept
    7 reply         web/                       JSON at once, or SSE with the guidance first
    8 record        ledger/                    Receipt: tokens, cost, baseline, savings, timings; settled exactly once,
                                               in the script that posts it to its tenant's outbox

From there, off the path, `usage/` writes receipts and their sums to SQL and answers who used what, and `backup/` writes
all of that to one file; `guarding.py` and `quality/` compare a sample of the answers with each
engine's alone. `evaluation/` measures the same path over a data set, and `planning/` reckons how many GPUs a load
needs.

`completion.py` holds steps 3 to 6 and 8 as named calls on one screen: read that file first. Embeddings take the short
way, without 5: `embedding.py`. Devices that run the student themselves get step 5's opening and report the rest:
`handover.py`, `edge_accounts.py`.
"""

from gateway.version import __version__

__all__ = ["__version__"]
