"""JSON Web Tokens of OpenID Connect issuers: read the issuers' keys, and verify tokens.

- `token.py` parses a token strictly, before its signature is verified.
- `key_set.py` holds the public keys of an issuer and verifies signatures. It imports the cryptography.
- `document.py` reads a small JSON document from an issuer.
- `issuer.py` keeps the keys and the discovery document of one issuer up to date.
- `issuers.py` has all issuers of config.yaml. It verifies tokens and caches verified ones.

A process without `identity.issuers` in config.yaml imports no cryptography and opens no connection.
"""
