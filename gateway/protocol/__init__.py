"""OpenAI's API: the requests of callers and the replies that they get.

Requests are decoded once. Fields that the gateway reads are checked and typed. The body is kept as it was sent, so that
unknown parameters reach the student unchanged. OpenAI's names (`prompt_tokens`, ...) are used in this package only;
other packages use `input_tokens` and `output_tokens`.

    body.py             decodes a body to one of the structs below, or raises InvalidRequest
    structure.py        bounds the structure of JSON before it is decoded
    token_ids.py        long lists of token ids
    unicode.py          repairs text that is not valid Unicode
    forbidden_fields.py fields that no body may contain: destinations and credentials
    field_names.py      other names of the fields that the gateway reads
    chat.py             /v1/chat/completions
    text.py             /v1/completions
    embeddings.py       /v1/embeddings
    messages.py         text of chat messages
    edge.py             reports of devices
    reply.py            fields that replies and chunks share
"""
