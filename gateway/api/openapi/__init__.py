"""The OpenAPI 3.1 document of the public API.

    shapes.py       structs of the replies
    operations.py   of each handler: request body, reply, parameters and errors
    document.py     builds the document from these, rules for request bodies, the route table and the error tree

Types and ranges of request bodies come from the structs that the parsers decode. The document contains nothing of the
configuration: it is the same for every gateway of one version, and public.
"""
