"""Zips that are damaged at random or forged field by field, and what must hold when one is read."""

import dataclasses
import io
import pathlib
import struct
import zipfile
import zlib
from typing import BinaryIO

from hypothesis import strategies as st

from pizza_steak import members
from pizza_steak.archive import ReadingOptions, read_archive
from pizza_steak.errors import ArchiveError

_NAMES = ("train/pizza/1.jpg", "train/steak/2.jpg", "test/pizza/3.jpg", "test/steak/4.jpg")
_OTHERS = ("train/", "train/pizza/.DS_Store", "__MACOSX/train/pizza/._1.jpg", "README.txt")
_SIGNATURES = (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7")
# Of the fields after each signature, the offset and the width in bytes.
_FIELDS = {
    b"PK\1\2": [
        *((4, 2), (6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2)),
        *((34, 2), (38, 4), (42, 4), (46, 1), (47, 1)),
    ],
    b"PK\3\4": [(4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 1)],
    b"PK\5\6": [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)],
    b"PK\6\6": [(4, 8), (16, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 8)],
    b"PK\6\7": [(4, 4), (8, 8), (16, 4)],
}
_VALUES = (0, 1, 2, 8, 9, 12, 14, 45, 46, 0x2F, 0x5C, 0x7F, 0xFF, 0x800, 0x7FFF, 0xFFFF)
_VALUES += (2**28, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


def _zip(compression: int, comment: bytes = b"", streamed: bool = False, **names: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(_Stream(buffer) if streamed else buffer, "w", compression) as zip_file:
        for name in (*_NAMES, *_OTHERS):
            content = b"" if name.endswith("/") else name[::-1].encode() * 9
            with zip_file.open(name, "w", force_zip64=streamed) as file:
                file.write(content)
        zip_file.comment = comment
    packed = buffer.getvalue()
    for old, new in names.items():
        packed = packed.replace(old.encode(), new)
    return packed


class _Stream(io.RawIOBase):
    """Cannot seek: zipfile writes the sizes after the bytes."""

    def __init__(self, buffer: io.BytesIO):
        self._buffer = buffer

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        return self._buffer.write(data)


def _with_zip_64_end(packed: bytes) -> bytes:
    at = len(packed) - 22
    _, _, _, _, count, size, offset, _ = struct.unpack("<4s4H2LH", packed[at:])
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
    return packed[:at] + record + locator + packed[at:]


SOUND = (
    _zip(zipfile.ZIP_STORED),
    _zip(zipfile.ZIP_DEFLATED),
    _zip(zipfile.ZIP_DEFLATED, b"a comment"),
    _zip(zipfile.ZIP_DEFLATED, streamed=True),
    _with_zip_64_end(_zip(zipfile.ZIP_STORED)),
    _zip(zipfile.ZIP_STORED, steak="ソ-".encode("cp932") + b"ab"),
)


@dataclasses.dataclass(frozen=True)
class _Edit:
    """Changes bytes: `forge` a field after a signature, or what `kind` says at a place.

    Attributes:
      kind: "forge", "set", "flip", "cut", "insert", "copy" or "end".
      place: Where, a fraction of the length.
      other: Another place.
      value: What is written.
      signature: The fields of which record are forged.
    """

    kind: str
    place: float
    other: float
    value: int
    signature: bytes

    def apply(self, packed: bytes) -> bytes:
        at, other = (int(place * len(packed)) for place in (self.place, self.other))
        if self.kind == "forge":
            starts = _starts(packed, self.signature)
            if not starts:
                return packed
            start = starts[int(self.place * len(starts))]
            fields = _FIELDS[self.signature]
            offset, width = fields[int(self.other * len(fields))]
            value = (self.value % 2 ** (8 * width)).to_bytes(width, "little")
            return packed[: start + offset] + value + packed[start + offset + width :]
        if self.kind == "set":
            return packed[:at] + bytes([self.value % 256]) + packed[at + 1 :]
        if self.kind == "flip":
            flipped = bytes([packed[at] ^ 1 << self.value % 8]) if packed else b""
            return packed[:at] + flipped + packed[at + 1 :]
        if self.kind == "cut":
            return packed[: min(at, other)] + packed[max(at, other) :]
        if self.kind == "insert":
            return packed[:at] + bytes(self.value % 300) + packed[at:]
        if self.kind == "copy":
            return packed[:at] + packed[other : other + self.value % 300] + packed[at:]
        return packed[: max(at, 1)]


def _starts(packed: bytes, signature: bytes) -> list[int]:
    starts, at = [], packed.find(signature)
    while at >= 0:
        starts.append(at)
        at = packed.find(signature, at + 1)
    return starts


_PLACES = st.floats(0, 1, exclude_max=True)
_EDITS = st.builds(
    _Edit,
    # Most changes of the length are refused at once.
    st.sampled_from([*["forge"] * 8, *["flip", "set"] * 3, "cut", "insert", "copy", "end"]),
    _PLACES,
    _PLACES,
    st.sampled_from(_VALUES) | st.integers(0, 2**32),
    st.sampled_from(_SIGNATURES),
)
INPUTS = st.tuples(st.sampled_from(SOUND), st.lists(_EDITS, min_size=1, max_size=5))


def edited(packed: bytes, edits: list[_Edit]) -> bytes:
    for edit in edits:
        packed = edit.apply(packed)
    return packed


def read(path: pathlib.Path) -> str:
    """Reads a zip in every way; returns why it is refused, or "read".

    Raises:
      AssertionError: What was read is not what the listing says.
      Exception: Any but an ArchiveError.
    """
    told = "read"
    for options in (ReadingOptions(), ReadingOptions(zip_encoding="cp932")):
        try:
            archive = read_archive(path, options)
            for split in archive.splits:
                for image, encoded in archive.read(split):
                    assert (len(encoded), zlib.crc32(encoded)) == image.stamp[:2]
        except ArchiveError as error:
            told = str(error)
            assert "\n" not in told
            assert told.startswith(f"archive {path}: ")
        try:
            listing = members.list_members(path, options)
            with members.open_zip(path) as zip_file:
                for member in listing.members:
                    if not member.fault:
                        _read_member(zip_file, member)
        except ArchiveError:
            pass
    return told


def _read_member(zip_file: BinaryIO, member: members.Member) -> None:
    try:
        encoded = members.read_member(zip_file, member.member, member.stamp)
    except zipfile.BadZipFile:
        return
    assert (len(encoded), zlib.crc32(encoded)) == member.stamp[:2]
