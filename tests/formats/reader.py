"""Reads a store of the NVMe tier as docs/formats/segment.md and record.md describe it.

Written from those pages alone, to check them and the daemon against each other. Of the index, which
is RocksDB, it reads nothing: a record that only a note calls erased counts as live here.

    python tests/formats/reader.py DIRECTORY      prints one JSON object
"""

import dataclasses
import functools
import json
import pathlib
import re
import struct
import sys

import numpy

BLOCK = 4096
PIECE = 1 << 20
MAJOR = 2


# CRC32C, RFC 3720: reflected, begun with and inverted by all ones.


@functools.cache
def crc_table() -> numpy.ndarray:
    table = numpy.arange(256, dtype=numpy.uint32)
    for _ in range(8):
        table = numpy.where(table & 1, (table >> 1) ^ numpy.uint32(0x82F63B78), table >> 1)
    return table.astype(numpy.uint32)


def advance(register: numpy.ndarray) -> numpy.ndarray:
    """Over one byte that has been XORed into it."""
    return (register >> 8) ^ crc_table()[register & 255]


@functools.cache
def zeros_table(count: int) -> list[list[int]]:
    """What each byte of a register becomes over `count` zero bytes."""
    values = numpy.arange(256, dtype=numpy.uint32)
    registers = numpy.stack([values << shift for shift in (0, 8, 16, 24)])
    for _ in range(count):
        registers = advance(registers)
    return registers.tolist()


def crc32c(data: bytes) -> int:
    """Of lanes side by side, which are then joined."""
    lane = max(64, 1 << (max(len(data), 1).bit_length() // 2))
    register = 0xFFFFFFFF
    whole = len(data) // lane * lane
    if whole:
        columns = numpy.frombuffer(data, numpy.uint8, whole).reshape(-1, lane).T
        lanes = numpy.zeros(columns.shape[1], dtype=numpy.uint32)
        for column in columns:
            lanes = advance(lanes ^ column)
        zeros = zeros_table(lane)
        for value in lanes.tolist():
            register = value ^ (zeros[0][register & 255] ^ zeros[1][register >> 8 & 255]
                                ^ zeros[2][register >> 16 & 255] ^ zeros[3][register >> 24])
    table = crc_table()
    for byte in data[whole:]:
        register = (register >> 8) ^ int(table[(register ^ byte) & 255])
    return register ^ 0xFFFFFFFF


assert crc32c(b"123456789") == 0xE3069283


class Unreadable(Exception):
    """Bytes are not what the format says."""


def check_header(header: bytes, magic: bytes) -> bytes:
    """The store id of what begins as all headers do."""
    if header[:8] != magic:
        raise Unreadable(f"no {magic.decode()}")
    major, _, crc = struct.unpack_from("<HHI", header, 8)
    if major != MAJOR:
        raise Unreadable(f"{magic.decode()} of major {major}")
    if crc32c(header[:12] + bytes(4) + header[16:]) != crc:
        raise Unreadable(f"{magic.decode()} does not check")
    return header[16:32]


def up(value: int, unit: int) -> int:
    return (value + unit - 1) // unit * unit


@dataclasses.dataclass
class Thing:
    """The object that a record is of."""

    key: bytes
    flags: int
    tokens: int
    grains: int
    lifetime: int
    payload_bytes: int
    decoded_bytes: int


def parse_object(at: bytes) -> Thing:
    key, _, _, kind, flags, codec, _, tokens, grains, _, lifetime, payload, decoded = struct.unpack_from(
        "<32s32s32sBBHIIIIB3xII", at)
    if codec > 1 or kind not in (1, 2, 3, 4) or lifetime > 2:
        raise Unreadable(f"codec {codec}, kind {kind}, class {lifetime}")
    if tokens > 4096 or grains > 256:
        raise Unreadable(f"{tokens} tokens, {grains} grains")
    if payload % 64 or not 64 <= payload <= 2**32 - 64:
        raise Unreadable(f"payload of {payload} bytes")
    if (decoded != 0) != (codec == 1) or decoded % 64 or 0 < decoded <= payload:
        raise Unreadable(f"codec {codec}, {decoded} bytes decoded")
    return Thing(key, flags, tokens, grains, lifetime, payload, decoded)


@dataclasses.dataclass
class Record:
    offset: int
    header_bytes: int
    sequence: int
    thing: Thing
    state: str = "live"  # live, unnamed (by the footer), torn, damaged
    pieces: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)

    def end(self) -> int:
        return self.offset + self.header_bytes + up(self.thing.payload_bytes, BLOCK)


def pieces_of(ends: tuple[int, ...]) -> list[tuple[int, int]]:
    pieces, begin = [], 0
    for end in ends:
        if end < begin:
            raise Unreadable("a part ends before it begins")
        pieces += [(at, min(at + PIECE, end)) for at in range(begin, end, PIECE)]
        begin = up(end, 64)
    return pieces


@dataclasses.dataclass
class Segment:
    file: str
    id: int
    data: bytes
    generation: int = 0
    state: str = "clean"  # clean, open, sealed, of another store
    footer: bool = False
    records: list[Record] = dataclasses.field(default_factory=list)


def parse_record(segment: Segment, offset: int, store_id: bytes) -> Record:
    """The record whose header begins there, its payload not yet checked."""
    data = segment.data
    if data[offset:offset + 8] != b"TRCRECRD":
        raise Unreadable("no record")
    (header_bytes, count) = struct.unpack_from("<II", data, offset + 184)
    if header_bytes % BLOCK or not BLOCK <= header_bytes <= 5 * BLOCK:
        raise Unreadable(f"header of {header_bytes} bytes")
    header = data[offset:offset + header_bytes]
    if len(header) < header_bytes or check_header(header, b"TRCRECRD") != store_id:
        raise Unreadable("a header of another store, or cut short")
    segment_id, parts, generation, sequence = struct.unpack_from("<IIQQ", header, 32)
    if segment_id != segment.id or (segment.generation and generation != segment.generation):
        raise Unreadable(f"of segment {segment_id}, generation {generation}")
    thing = parse_object(header[56:184])
    if not 1 <= parts <= 440 or header_bytes != up(192 + 4 * parts + 4 * count, BLOCK):
        raise Unreadable(f"{parts} parts, {count} pieces in {header_bytes} bytes")
    ends = struct.unpack_from(f"<{parts}I", header, 192)
    pieces = pieces_of(ends)
    if len(pieces) != count or up(ends[-1], 64) != thing.payload_bytes:
        raise Unreadable("the parts do not cover the payload")
    crcs = struct.unpack_from(f"<{count}I", header, 192 + 4 * parts)
    record = Record(offset, header_bytes, sequence, thing)
    record.pieces = [(begin, end, crc) for (begin, end), crc in zip(pieces, crcs)]
    return record


def is_whole(segment: Segment, record: Record) -> bool:
    if record.end() > len(segment.data):
        return False
    base = record.offset + record.header_bytes
    return all(crc32c(segment.data[base + begin:base + end]) == crc
               for begin, end, crc in record.pieces)


def scan(segment: Segment, store_id: bytes) -> dict[int, Record]:
    records, offset = {}, BLOCK
    while offset + BLOCK <= len(segment.data):
        try:
            record = parse_record(segment, offset, store_id)
        except Unreadable:
            offset += BLOCK
            continue
        whole = is_whole(segment, record)
        record.state = "live" if whole else "torn"
        records[offset] = record
        offset = record.end() if whole else offset + record.header_bytes
    return records


def parse_entries(entries: bytes, count: int) -> list[Record]:
    named, at = [], 0
    while at < len(entries):
        if at + 144 > len(entries):
            raise Unreadable("an entry ends behind the entries")
        place, header_blocks, _, filters, sequence = struct.unpack_from("<IBBHQ", entries, at)
        thing = parse_object(entries[at + 16:at + 144])
        if place < 1 or not 1 <= header_blocks <= 5 or filters >= max(thing.grains, 1):
            raise Unreadable(f"entry at {at}")
        named.append(Record(place * BLOCK, header_blocks * BLOCK, sequence, thing))
        at += up(144 + 2 * filters, 8)
    if at != len(entries) or len(named) > count:
        raise Unreadable("entries of another length")
    return named


class Store:
    def __init__(self, directory: str | pathlib.Path):
        self.directory = pathlib.Path(directory)
        self.problems: list[tuple[str, int, str]] = []
        self.superblocks: dict[str, dict] = {}
        for name in ("superblock", "superblock.copy"):
            try:
                self.superblocks[name] = self.read_superblock(name)
            except (Unreadable, OSError) as error:
                self.problems.append((name, 0, str(error)))
        if not self.superblocks:
            raise Unreadable(f"{directory} has no superblock that checks")
        newest = max(self.superblocks.values(), key=lambda copy: copy["epoch"])
        self.store_id: bytes = newest["store_id"]
        self.segments = [self.read_segment(path)
                         for path in sorted((self.directory / "segments").iterdir())
                         if re.fullmatch(r"seg-[0-9a-f]{8}\.tseg", path.name)]

    def read_superblock(self, name: str) -> dict:
        block = (self.directory / name).read_bytes()[:BLOCK]
        store_id = check_header(block, b"TRCSUPER")
        epoch, segment_bytes, budget, budget_time, closed = struct.unpack_from("<QQQQB", block, 32)
        if (name == "superblock") != (epoch % 2 == 1):
            raise Unreadable(f"epoch {epoch} in {name}")
        return {"store_id": store_id, "epoch": epoch, "segment_bytes": segment_bytes,
                "budget_bytes": budget, "budget_time_us": budget_time, "closed": closed == 1}

    def read_segment(self, path: pathlib.Path) -> Segment:
        data = path.read_bytes()
        segment = Segment(f"segments/{path.name}", int(path.name[4:12], 16),
                          data[:len(data) // BLOCK * BLOCK])
        self.read_header(segment)
        if segment.state == "of another store":
            return segment
        named = self.read_footer(segment)
        records = scan(segment, self.store_id)
        if named is not None:
            self.compare(segment, named, records)
            segment.state = "sealed"
        elif records:
            segment.state = "open"
        segment.records = [record for _, record in sorted(records.items())]
        return segment

    def read_header(self, segment: Segment) -> None:
        try:
            block = segment.data[:BLOCK]
            store_id = check_header(block, b"TRCSEGMT")
            if store_id != self.store_id:
                segment.state = "of another store"
                return
            segment_id, _, generation, length = struct.unpack_from("<IIQQ", block, 32)
            if segment_id != segment.id:
                raise Unreadable(f"header of segment {segment_id}")
            segment.generation = generation
            if len(segment.data) != length:
                self.problems.append((segment.file, min(len(segment.data), length),
                                      f"{len(segment.data)} bytes, its header says {length}"))
        except Unreadable as error:
            self.problems.append((segment.file, 0, str(error)))
            generations = []
            for offset in range(BLOCK, len(segment.data), BLOCK):
                try:
                    parse_record(segment, offset, self.store_id)
                    generations += struct.unpack_from("<Q", segment.data, offset + 40)
                except Unreadable:
                    pass
            segment.generation = max(generations, default=1)

    def read_footer(self, segment: Segment) -> list[Record] | None:
        """What it names; None without one of this generation that checks."""
        at = len(segment.data) - BLOCK
        block = segment.data[at:]
        if at < BLOCK or block[:8] != b"TRCFOOTR":
            return None
        try:
            store_id = check_header(block, b"TRCFOOTR")
            segment_id, count, generation, length, crc = struct.unpack_from("<IIQQI", block, 32)
            if (store_id, segment_id, generation) != (self.store_id, segment.id,
                                                      segment.generation):
                return None  # of an earlier generation
            begin = at - up(length, BLOCK)
            entries = segment.data[max(begin, 0):max(begin, 0) + length]
            if begin < BLOCK or crc32c(entries) != crc:
                raise Unreadable("the footer's entries do not check")
            named = parse_entries(entries, count)
        except Unreadable as error:
            self.problems.append((segment.file, at, str(error)))
            return None
        segment.footer = True
        return named

    def compare(self, segment: Segment, named: list[Record], records: dict[int, Record]) -> None:
        """What a footer names against what is there."""
        offsets = {record.offset for record in named}
        for record in records.values():
            if record.state == "live" and record.offset not in offsets:
                record.state = "unnamed"
        for record in named:
            there = records.get(record.offset)
            if there is None or (there.thing.key, there.sequence) != (record.thing.key,
                                                                      record.sequence):
                record.state = "damaged"
                records[record.offset] = record
                self.problems.append((segment.file, record.offset, "no such record"))
            elif there.state == "torn":
                there.state = "damaged"
                self.problems.append((segment.file, record.offset, "the payload does not check"))

    def as_dict(self) -> dict:
        return {
            "store_id": self.store_id.hex(),
            "superblocks": [{**copy, "file": name, "store_id": copy["store_id"].hex()}
                            for name, copy in self.superblocks.items()],
            "segments": [{
                "file": segment.file, "id": segment.id, "generation": segment.generation,
                "state": segment.state, "footer": segment.footer, "bytes": len(segment.data),
                "records": [{
                    "key": record.thing.key.hex(), "offset": record.offset, "state": record.state,
                    "header_bytes": record.header_bytes, "sequence": record.sequence,
                    "payload_bytes": record.thing.payload_bytes,
                    "decoded_bytes": record.thing.decoded_bytes,
                } for record in segment.records],
            } for segment in self.segments],
            "problems": [{"file": file, "offset": offset, "what": what}
                         for file, offset, what in self.problems],
        }


if __name__ == "__main__":
    print(json.dumps(Store(sys.argv[1]).as_dict(), indent=2))
