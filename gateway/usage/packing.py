"""Receipts as compressed JSON: raw DEFLATE (RFC 1951) with a dictionary of what receipts have in common.

The first byte names the dictionary. A dictionary never changes once receipts have been written with it.
"""

from __future__ import annotations

import zlib

_SHARE = (
    b'"%s":{"model":"","input_tokens":1,"output_tokens":1,"cost_usd":"0.000","cached_input_tokens":1,"estimated":true}'
)
_DICTIONARY = b",".join((
    b'"attempts":[{"engine":"","error":"engine_timeout","share":null}],"shadow_of":"req_","budget":"soft"',
    b'"length":{"by":"rule","prompt":"","rule":"","model":"","score":0.,"ended":"sentence","probe":{"outcome":"confident"}}',
    b'"close":{"by":17,"most_output_tokens":1},"edge_of":"req_","hint":"","measured":{"baseline_usd":"0.000"',
    b'"status":"client_gone","status":"engine_timeout","unguided":"teacher_late","mode":"teacher_complete","mode":"teacher"',
    b'{"id":"req_6","created":17,"tenant":"","key":"","route":"chat","mode":"guided","stream":true,"stream":false',
    b'"status":"ok","finish_reason":"stop","finish_reason":"length","unguided":null',
    _SHARE % b"teacher",
    _SHARE % b"student",
    b'"guidance":{"projection":"cutoff","placement":"prefix","tokens":40,"kept_tokens":3,"complete":false,"cut_short":null}',
    b'"batch":{"id":"b","size":1},"cost_usd":"0.000","baseline_model":"","baseline_usd":"0.000"',
    b'"baseline_estimated":true,"savings_usd":"0.000","timings":{"total_ms":1.,"admission_ms":0.,"batch_wait_ms":0.',
    b'"teacher_ms":1.,"first_token_ms":1.},"attempts":[],"shadow_of":null,"budget":null,"baseline_basis":"tokenizer"',
    b'"baseline_error_usd":"0.000","length":null,"probe":null,"close":null,"edge_of":null,"hint":null',
    b'"savings_class":"guided","measured":null,"estimated":false}',
))  # fmt: skip
_VERSION = b"\x01"
_RAW = -12  # a window of 4 KiB: the dictionary and nearly all receipts
_LEVEL = 3
_MEMORY = 5  # the smallest one that still finds nearly all: a larger table costs time for each receipt


def pack(raw: bytes) -> bytes:
    """Return the JSON of a receipt in compressed form."""
    packer = zlib.compressobj(_LEVEL, wbits=_RAW, memLevel=_MEMORY, zdict=_DICTIONARY)
    return _VERSION + packer.compress(raw) + packer.flush()


def unpack(packed: bytes) -> bytes:
    """Return the JSON of a receipt. Raises ValueError where a later version wrote it."""
    if packed[:1] != _VERSION:
        raise ValueError(f"receipts packed with dictionary {packed[0]} need a newer version of the gateway")
    unpacker = zlib.decompressobj(wbits=_RAW, zdict=_DICTIONARY)
    return unpacker.decompress(packed[1:]) + unpacker.flush()
