"""GKT Gateway: a large teacher writes the first tokens of an answer, and a small student completes it.

The path of one request:

    step            modules                               result
    1 receive       api/completions.py, protocol/         bytes -> ChatRequest or TextRequest
    2 authenticate  api/auth.py, keys/                    bearer key or token -> Caller
    3 resolve       policy/routing.py, policy/resolve.py  caller and request -> Route -> Plan
    4 admit         pipeline/admission.py, accounting/    a slot in this process; limits, budgets and the intent in one
                                                          Redis script; or 429 or 503
    5 guide         pipeline/teacher.py, batching/,       Plan -> guidance, or the reason for none
                    guidance/
    6 complete      pipeline/student.py, engines/,        guidance placed -> the student's answer, with the caller's
                    guidance/seam.py                      sampling parameters; joined at the seam, stop strings applied
    7 reply         api/completions.py, api/events.py     JSON, or SSE with the guidance first
    8 record        accounting/                           Receipt: tokens, cost, baseline, savings, timings; settled
                                                          exactly once, with an entry in the tenant's outbox

Start reading at `pipeline/completion.py`: it calls steps 3 to 6 and 8 in order. Later steps read the Plan only.
`pipeline/embeddings.py` is the path without step 5. `pipeline/edge_guidance.py` returns the guidance of step 5 to
devices that run the student, and `pipeline/edge_reports.py` receives their reports.

Off the path:

    usage/       writes receipts and their sums to SQL, and answers queries
    admin/       serves the dashboard and the operators' API from these sums and from live state
    quality/     compares a sample of the answers with each engine's own, and switches guidance off
    live/        applies edits of config.yaml: builds, probes and closes engines
    migration/   converts configurations of other gateways
    evaluation/  measures the path on data sets
    planning/    estimates the GPUs for a load

`app.py` constructs the parts, and `server/` runs them in processes.
"""

from gateway.version import __version__

__all__ = ["__version__"]
