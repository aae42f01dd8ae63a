"""API keys of callers: keys in policy files, and keys in Redis that were created while the gateway runs.

Each process has all keys in memory, so authentication needs no I/O. A process reads changes from Redis twice a second.
`token_callers.py` finds the callers of tokens (identity/) by the rules of the policies.
"""
