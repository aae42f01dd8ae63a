"""OpenAI's wire: what callers send and what they get.

Requests are decoded once. The fields the gateway acts on are checked and typed; the whole body is kept as it came, so
that parameters nobody here knows reach the student untouched. OpenAI's names (`prompt_tokens`, ...) live in this
package only; inside, it is `input_tokens` and `output_tokens`.

    body.py         a body's bytes -> an object that fits one of the structs below, or an InvalidRequest
    structure.py    bounds on the structure of JSON, before it is decoded
    token_ids.py    long lists of token ids
    unicode.py      repair of text that is no valid Unicode
    elsewhere.py    what no body may say: where a call goes, or as whom
    field_names.py  other names of the fields that the gateway reads
    chat.py         /v1/chat/completions
    text.py         /v1/completions
    embeddings.py   /v1/embeddings
    reply.py        what every reply and chunk shares
"""
