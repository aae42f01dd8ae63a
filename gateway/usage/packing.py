"""Receipts as compressed JSON: a Zstandard frame (RFC 8878) with a dictionary of what receipts have in common.

The first byte names the dictionary. A dictionary never changes once receipts have been written with it: a better one
gets another number and a file of its own.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import zstandard

# Trained by load_tests/receipt_dictionary.py.
_DICTIONARY = zstandard.ZstdCompressionDict(Path(__file__).with_name("receipts.zdict").read_bytes())
_VERSION = b"\x01"
_LEVEL = 3
_MAX_BYTES = 16_000_000


def pack(raw: bytes) -> bytes:
    """Return the JSON of a receipt in compressed form."""
    with _PACKING:
        return _VERSION + _PACKER.compress(raw)


def unpack(packed: bytes) -> bytes:
    """Return the JSON of a receipt. Raises ValueError where a later version wrote it, or where it is damaged."""
    if packed[:1] != _VERSION:
        raise ValueError(f"receipts packed with dictionary {packed[:1].hex()} need a newer version of the gateway")
    try:
        return zstandard.ZstdDecompressor(_DICTIONARY).decompress(packed[1:], _MAX_BYTES)
    except zstandard.ZstdError as error:
        raise ValueError("a packed receipt is damaged") from error


# Its frames have no number of the dictionary: the first byte names it.
_PACKER = zstandard.ZstdCompressor(_LEVEL, _DICTIONARY, write_dict_id=False)
_PACKING = Lock()  # a compressor works for one thread at a time, and lets other threads run meanwhile
