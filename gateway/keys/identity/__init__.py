"""JSON Web Tokens of OpenID Connect issuers: read the issuers' keys, and verify tokens.

- `token.py` has the error of rejected tokens, and limits.
- `jose.py` reads tokens and keys, and verifies signatures and claims. It imports the cryptography.
- `document.py` reads a small JSON document from an issuer.
- `issuer.py` keeps the keys and the discovery document of one issuer up to date.
- `issuers.py` has all issuers of config.yaml. It verifies tokens and caches verified ones.

A process without `identity.issuers` in config.yaml imports no cryptography and opens no connection.
"""
