"""Authenticate callers by API key or by a token of an OpenID Connect issuer.

Each process has all keys in memory, so authentication needs no I/O. A process reads changes from Redis twice a second.
`identity/` verifies tokens, and `token_callers.py` finds their callers by the rules of the policies.
"""
