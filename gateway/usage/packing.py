"""Compress receipts: a Zstandard frame (RFC 8878) with a dictionary of strings that receipts have in common.

The first byte is the version of the dictionary. A dictionary never changes after receipts have been written with it: a
better dictionary gets another version and another file.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import zstandard

# Trained with zstandard.train_dictionary from 4,000 synthetic receipts of all kinds.
_DICTIONARY = zstandard.ZstdCompressionDict(Path(__file__).with_name("receipts.zdict").read_bytes())
_VERSION = b"\x01"
_LEVEL = 3
_MAX_BYTES = 16_000_000


def pack(raw: bytes) -> bytes:
    """Return the compressed JSON of a receipt."""
    with _PACKING:
        return _VERSION + _PACKER.compress(raw)


def unpack(packed: bytes) -> bytes:
    """Return the JSON of a receipt. Raises ValueError if a later version packed the receipt, or if it is damaged."""
    if packed[:1] != _VERSION:
        raise ValueError(f"receipts packed with dictionary {packed[:1].hex()} need a newer version of the gateway")
    try:
        return zstandard.ZstdDecompressor(_DICTIONARY).decompress(packed[1:], _MAX_BYTES)
    except zstandard.ZstdError as error:
        raise ValueError("a packed receipt is damaged") from error


# Frames omit the dictionary id, because the first byte names the dictionary.
_PACKER = zstandard.ZstdCompressor(_LEVEL, _DICTIONARY, write_dict_id=False)
_PACKING = Lock()  # a compressor serves one thread at a time, and releases the interpreter lock meanwhile
