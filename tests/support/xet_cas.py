"""
The storage behind Xet, as far as `hf_xet` needs it: xorbs (packed chunks), shards (which chunks make up which file), and
reconstructions (where a reader finds them).

Files are put together from their chunks when a shard arrives and have to have the sha256 that it names, so a client that
packs wrongly is refused here. Chunk and xorb hashes are believed, tokens are not looked at, and nothing is deduplicated
across clients.
"""

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


RECORD = 48  # bytes of every record of a shard
CHUNK_HEADER = 8  # version, 3 bytes packed size, scheme, 3 bytes size
PLAIN, LZ4, GROUPED_LZ4 = 0, 1, 2


@dataclass(frozen=True)
class Segment:
    """Chunks `start` to `end` (excluded) of a xorb."""

    xorb: str
    size: int
    start: int
    end: int


def _hash(record: bytes) -> str:
    """Xet writes a hash as four little-endian words."""
    return "".join(record[i : i + 8][::-1].hex() for i in range(0, 32, 8))


def _files(shard: bytes) -> Iterator[tuple[str, str, list[Segment]]]:
    """Hash, sha256 and segments of every file in a shard; the list of files ends with a hash of ones."""
    at = RECORD
    while shard[at : at + 32] != b"\xff" * 32:
        name = _hash(shard[at:])
        flags, count = struct.unpack_from("<II", shard, at + 32)
        at += RECORD
        records = [shard[at + RECORD * i : at + RECORD * (i + 1)] for i in range(count)]
        segments = [Segment(_hash(record), *struct.unpack_from("<III", record, 36)) for record in records]
        at += RECORD * count * (2 if flags & 1 << 31 else 1)  # range hashes follow
        if not flags & 1 << 30:
            raise ValueError(f"file {name} comes without its sha256")
        yield name, _hash(shard[at:]), segments
        at += RECORD


def _chunks(xorb: bytes) -> Iterator[tuple[int, int]]:
    """First byte and end of each chunk, header included, up to the footer."""
    at = 0
    while at < len(xorb) and xorb[at : at + 7] != b"XETBLOB":
        end = at + CHUNK_HEADER + int.from_bytes(xorb[at + 1 : at + 4], "little")
        yield at, end
        at = end


def _unpack(chunk: bytes) -> bytes:
    scheme, size = chunk[4], int.from_bytes(chunk[5:8], "little")
    if scheme == PLAIN:
        return chunk[CHUNK_HEADER:]
    plain = pa.decompress(chunk[CHUNK_HEADER:], size, codec="lz4").to_pybytes()
    if scheme == LZ4:
        return plain
    if scheme != GROUPED_LZ4:
        raise ValueError(f"unknown compression {scheme}")
    # Bytes 0, 4, 8, ... first, then 1, 5, 9, ...
    grouped, mixed, at = np.frombuffer(plain, np.uint8), np.empty(size, np.uint8), 0
    for i in range(4):
        part = mixed[i::4]
        part[:] = grouped[at : at + len(part)]
        at += len(part)
    return mixed.tobytes()


class XetCas:
    """
    Attributes:
        names (`dict`): sha256 of every complete file -> its Xet hash.
    """

    def __init__(self) -> None:
        self.xorbs: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self._segments: dict[str, list[Segment]] = {}

    def add_shard(self, shard: bytes) -> dict[str, bytes]:
        """Take note of the shard's files; returns their contents by sha256."""
        contents = {}
        for name, sha256, segments in _files(shard):
            content = b"".join(self._content(segment) for segment in segments)
            if hashlib.sha256(content).hexdigest() != sha256:
                raise ValueError(f"the chunks of {name} do not make a file of sha256 {sha256}")
            self._segments[name], self.names[sha256], contents[sha256] = segments, name, content
        return contents

    def _content(self, segment: Segment) -> bytes:
        xorb = self.xorbs[segment.xorb]
        return b"".join(_unpack(xorb[a:z]) for a, z in list(_chunks(xorb))[segment.start : segment.end])

    def reconstruction(self, name: str, wanted: str | None, url: str) -> dict | None:
        """Where the bytes `wanted` (an HTTP range) of a file are, or None when they are past its end."""
        segments = self._segments[name]
        size = sum(segment.size for segment in segments)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "bytes=0-")
        first, last = int(match[1]), int(match[2] or size)
        if first >= size:
            return None
        terms, places, at, skip = [], {}, 0, 0
        for segment in segments:
            if at + segment.size > first and at <= last:
                skip = skip if terms else first - at
                chunks = {"start": segment.start, "end": segment.end}
                terms.append({"hash": segment.xorb, "unpacked_length": segment.size, "range": chunks})
                ends = list(_chunks(self.xorbs[segment.xorb]))
                span = {"start": ends[segment.start][0], "end": ends[segment.end - 1][1] - 1}
                place = {"range": chunks, "url": f"{url}/{segment.xorb}", "url_range": span}
                if place not in places.setdefault(segment.xorb, []):
                    places[segment.xorb].append(place)
            at += segment.size
        return {"offset_into_first_range": skip, "terms": terms, "fetch_info": places}
