"""The public API's own description, OpenAPI 3.1, made from the code that serves it.

    shapes.py       what replies look like
    operations.py   of each handler: what it takes, what it gives, and how it can fail
    rules.py        what holds of bodies beyond types and ranges
    document.py     all three, with the route table, the request structs and the error tree -> one JSON document
    route.py        GET /openapi.json

Ranges are those that the parsers enforce, since both come from the same structs. Nothing of the configuration stands in
it: it is the same for every gateway of one version, and needs no key.
"""
