"""Receipts as compressed JSON: a Zstandard frame (RFC 8878) with a dictionary of what receipts have in common.

The first byte names the dictionary. A dictionary never changes once receipts have been written with it: a better one
gets another number and a file of its own.
"""

from __future__ import annotations

from pathlib import Path

from backports import zstd

# Trained by load_tests/receipt_dictionary.py.
_DICTIONARY = zstd.ZstdDict(Path(__file__).with_name("receipts.zdict").read_bytes())
_VERSION = b"\x01"
_MAX_BYTES = 16_000_000
_PARAMETER = zstd.CompressionParameter
_OPTIONS: dict[int, int] = {
    _PARAMETER.compression_level: 3,
    _PARAMETER.checksum_flag: 0,  # the database has its own
    _PARAMETER.dict_id_flag: 0,  # the first byte names it
}


def pack(raw: bytes) -> bytes:
    """Return the JSON of a receipt in compressed form."""
    return _VERSION + _PACKER.compress(raw, _PACKER.FLUSH_FRAME)


def unpack(packed: bytes) -> bytes:
    """Return the JSON of a receipt. Raises ValueError where a later version wrote it, or where it is damaged."""
    if packed[:1] != _VERSION:
        raise ValueError(f"receipts packed with dictionary {packed[0]} need a newer version of the gateway")
    try:
        unpacker = zstd.ZstdDecompressor(zstd_dict=_DICTIONARY)
        raw = unpacker.decompress(packed[1:], _MAX_BYTES)
    except zstd.ZstdError as error:
        raise ValueError("a packed receipt is damaged") from error
    if not unpacker.eof:
        raise ValueError("a packed receipt is damaged")
    return raw


# Its methods hold a lock, so threads may share it.
_PACKER = zstd.ZstdCompressor(options=_OPTIONS, zstd_dict=_DICTIONARY)
