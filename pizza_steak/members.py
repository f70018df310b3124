"""Lists and reads the files of a zip, which is never unpacked, or of a folder; trusts neither.

The names of files that are left out anyway, such as .DS_Store, are not checked. What is wrong with
an image is its `fault`, so that a caller may go on without it. A zip whose directory is damaged or
hostile is refused as a whole.
"""

import array
import collections
import dataclasses
import functools
import hashlib
import importlib.util
import io
import itertools
import os
import pathlib
import posixpath
import re
import stat
import struct
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pizza_steak.errors import ArchiveError, told
from pizza_steak.regular_file import NOT_REGULAR, open_file

_HEIF = frozenset({".heic", ".heif", ".hif"})
# Suffixes of the image formats that Pillow reads. The decoder goes by the first bytes, not by the
# suffix: a PNG named .jpg is read as a PNG.
SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".gif", ".webp", ".avif"),
        *(".tif", ".tiff", ".ppm", *(_HEIF if importlib.util.find_spec("pillow_heif") else ())),
    }
)
_SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
# Folders for resource forks, thumbnails, snapshots and deleted files, of macOS, Synology, QNAP,
# Windows and ext4. Others, such as .thumbnails and .Trashes, begin with a dot.
_SYSTEM_FOLDERS = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
        *("@tmp", "$recycle.bin", "recycler", "system volume information", "lost+found"),
    }
)

# No photograph is larger: 80 million pixels without compression are 240 MB.
_MOST_BYTES = 256 * 2**20
# ImageNet has 1.4 million images.
_MOST_FILES = 2_000_000
# A zip's directory needs 46 bytes a file, a name, and mostly 0 to 36 bytes more.
_MOST_DIRECTORY_BYTES = 200 * _MOST_FILES
# Photographs hardly shrink in a zip. BMPs of renderings may shrink a hundredfold together, and a
# single black one a thousandfold, which is deflate's limit. 1 GB does no harm, however it is
# packed.
_MOST_EXPANSION = 100
_HARMLESS_BYTES = 10**9
_MOST_FOLDERS = 100
_MOST_LETTERS = 4096  # Linux has no longer paths.
_PACKED_WITH = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ"}

LINK_TO_FOLDER = (
    "is a link to a folder, which is not followed; put the folder itself there, or pass "
    "--follow_links"
)
_LINK_OUTSIDE = (
    "is a link to a file outside the folder; put the file itself there, or pass --follow_links"
)

# The end of a zip, APPNOTE.TXT 4.3.14 to 4.3.16.
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
# A member in the directory, 4.3.12, without its name, and the lengths of name, extra and comment.
_ENTRY_BYTES = 46
_ENTRY_LENGTHS = struct.Struct("<28x3H")
# The header of a member's bytes, 4.3.7: its signature and the lengths of name and extra.
_HEADER = struct.Struct("<4s22x2H")
# Members of a directory that zipfile lists at once; it needs 0.7 kB of memory for each.
_LISTED_AT_ONCE = 10_000

# Two changes within one tick of a file system's clock, 2 s on FAT, look like one, as Git knows
# (Documentation/technical/racy-git). So what was young when it was read is read again.
TICK = 2 * 10**9

_PART = 2**18  # Bytes; more photographs are smaller than larger.


@dataclasses.dataclass(frozen=True)
class ReadingOptions:
    """How to read an archive.

    Attributes:
      follow_links: Whether to follow links to folders, and to files outside the folder.
      zip_encoding: Encoding of the names in a zip that does not say it, such as "cp932".
      max_unpacked_gb: Most gigabytes that the images of a zip, or of all zips of a pattern, may
        unpack to; by default 1, or 100 times the size of the zips if that is more.
    """

    follow_links: bool = False
    zip_encoding: str | None = None
    max_unpacked_gb: float | None = None

    @classmethod
    def of(cls, flags: Any) -> "ReadingOptions":
        """Returns the options that the flags of the same names give."""
        return cls(flags.follow_links, flags.zip_encoding, flags.max_unpacked_gb)


class Member(NamedTuple):
    """An image file of a zip or a folder.

    Attributes:
      name: Its path, with slashes, in Unicode's form NFC, without what some packers add.
      member: Its name in the zip, or its path below the folder.
      stamp: In a zip, the size and the CRC-32 of the bytes, where they are in the zip, their packed
        size and method. In a folder, the file's size and its times of modification and change in
        nanoseconds. () if there is a fault.
      fault: Why it must not be read, or "".
    """

    name: str
    member: str
    stamp: tuple[int, ...]
    fault: str = ""


@dataclasses.dataclass
class Listing:
    """The files of a zip or a folder.

    Attributes:
      members: The image files, and links and folders that cannot be followed.
      left_out: Number of other files, by kind.
      others: Number of files of other formats by suffix, by folder.
      irregular: Names of pipes, sockets and devices that are named like images.
      size: Size of a zip; 0 for a folder.
      unpacked: Size of all images of a zip; 0 for a folder.
    """

    members: list[Member] = dataclasses.field(default_factory=list)
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    others: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    irregular: list[str] = dataclasses.field(default_factory=list)
    size: int = 0
    unpacked: int = 0

    def folders(self) -> set[str]:
        """Returns the folders of the image files, "" for those in no folder."""
        return {member.name.rpartition("/")[0] for member in self.members}

    def leave_out_of_names(self, around: str) -> None:
        """Takes the folders around everything, such as "photos/", out of all names."""
        self.members = [
            member._replace(name=member.name.removeprefix(around)) for member in self.members
        ]
        self.others = {
            f"{_normal(folder)}/".removeprefix(around).rstrip("/"): kinds
            for folder, kinds in self.others.items()
        }

    def leaves_out(self, name: str) -> bool:
        """Counts a file that is not an example; returns False if it is one."""
        folder, _, file = name.rpartition("/")
        kind = _kind_of_folder(folder) or _kind_of_system_file(file)
        if kind is None and (kind := _kind_of_format(file)) is not None:
            self.others.setdefault(folder, collections.Counter())[kind] += 1
        if kind is not None:
            self.left_out[kind] += 1
        return kind is not None

    def leaves_out_folder(self, name: str) -> bool:
        """Counts a folder as one file if its files are not examples; else returns False."""
        kind = _kind_of_folder(name.rstrip("/"))
        if kind is not None:
            self.left_out[kind] += 1
        return kind is not None


def list_members(path: pathlib.Path, options: ReadingOptions) -> Listing:
    """Lists the files of a zip or a folder.

    Raises:
      ArchiveError: There is neither at the path, or it is damaged or hostile.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ArchiveError(
            f"archive {path}: {told(error).lower()}; expected a zip file or a folder"
        ) from error
    if stat.S_ISDIR(status.st_mode):
        return _list_folder(path, options.follow_links)
    if stat.S_ISREG(status.st_mode):
        return _list_zip(path, status.st_size, options)
    raise ArchiveError(f"archive {path}: neither a zip file nor a folder")


def state_of_zip(path: pathlib.Path) -> tuple[int, ...]:
    """Returns the size, the times of modification and change, and the inode of a zip.

    Returns:
      () for a folder, for a zip that changed just now, and if there is no file at the path.
    """
    now = time.time_ns()
    try:
        status = path.stat()
    except OSError:
        return ()
    state = (*_stamp(status), status.st_ino)
    return state if stat.S_ISREG(status.st_mode) and _is_old(status, now) else ()


def state_of_folder(path: pathlib.Path) -> tuple[str, ...]:
    """Returns a digest of the names, sizes and times of all files in a folder.

    It takes little longer than the system needs to tell them, and no memory for each file.

    Returns:
      () if a file changed just now, if there is a link, which may lead anywhere, or a folder that
      cannot be read, and if there is no folder at the path.
    """
    now = time.time_ns()
    digest = hashlib.sha256()
    root = os.fspath(path)
    waiting = [root]
    try:
        while waiting:
            folder = waiting.pop()
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
            told = [f"{len(entries)} in {folder[len(root) :]}"]
            for entry in entries:
                if entry.is_symlink():
                    return ()
                if entry.is_dir():
                    waiting.append(entry.path)
                    continue
                status = os.stat(entry.path)
                if not _is_old(status, now):
                    return ()
                told.append(f"{entry.name}\0{status.st_mode} {_stamp(status)}")
            digest.update(os.fsencode("\0".join(told)))
    except OSError:
        return ()
    return (digest.hexdigest(),)


def _is_old(status: os.stat_result, now: int) -> bool:
    return max(status.st_mtime_ns, status.st_ctime_ns) < now - TICK


def read_file(path: str | os.PathLike[str]) -> tuple[bytes, tuple[int, ...]]:
    """Returns the bytes of a file and its stamp.

    Raises:
      OSError: It cannot be read, is no regular file, or is larger than any image.
    """
    with _open_image(path) as file:
        encoded = file.read(os.fstat(file.fileno()).st_size + 1)
        return encoded, _stamp(os.fstat(file.fileno()))


def checksum_file(path: str | os.PathLike[str]) -> tuple[int, tuple[int, ...]]:
    """Returns the CRC-32 of a file, of which only a part is in memory at once, and its stamp.

    Raises:
      OSError: As `read_file`.
    """
    checksum = 0
    with _open_image(path) as file:
        while part := file.read(_PART):
            checksum = zlib.crc32(part, checksum)
        return checksum, _stamp(os.fstat(file.fileno()))


def _open_image(path: str | os.PathLike[str]) -> BinaryIO:
    file = open_file(path)
    if fault := _fault_of_size(os.fstat(file.fileno()).st_size):
        file.close()
        raise OSError(fault)
    return file


def open_zip(path: pathlib.Path) -> BinaryIO:
    """Opens a zip, to read members that were listed.

    Raises:
      ArchiveError: It cannot be opened.
    """
    try:
        return open_file(path)
    except OSError as error:
        raise ArchiveError(f"archive {path}: cannot be read ({told(error)})") from error


def read_member(zip_file: BinaryIO, member: str, stamp: tuple[int, ...]) -> bytes:
    """Returns the bytes of a member of a zip, and never unpacks more than were listed.

    The directory of the zip is not read again.

    Args:
      zip_file: The zip, as of `open_zip`.
      member: As in `Member`.
      stamp: As in `Member`.

    Raises:
      zipfile.BadZipFile: It is damaged, or not the member that was listed.
    """
    size, checksum, start, packed_size, method = stamp
    try:
        zip_file.seek(start)
        signature, *lengths = _HEADER.unpack(zip_file.read(_HEADER.size))
        name = zip_file.read(lengths[0])
        names = name.decode("cp437"), name.decode(errors="replace")
        if signature != b"PK\3\4" or member not in names:
            raise zipfile.BadZipFile("not the file that was listed")
        zip_file.seek(lengths[1], os.SEEK_CUR)
        if method == zipfile.ZIP_STORED:
            encoded = zip_file.read(min(packed_size, size))
        else:
            encoded = _inflated(zip_file, packed_size, size)
    except (OSError, zlib.error, struct.error) as error:
        raise zipfile.BadZipFile(str(error)) from error
    if len(encoded) != size:
        raise zipfile.BadZipFile("its bytes end early")
    if zlib.crc32(encoded) != checksum:
        raise zipfile.BadZipFile("its bytes do not match its CRC-32")
    return encoded


def _inflated(file: BinaryIO, packed_size: int, most: int) -> bytes:
    """Returns the first bytes, at most `most`, of what was packed with Deflate."""
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    parts = []
    while most and not decompressor.eof and (packed := file.read(min(packed_size, _PART))):
        parts.append(decompressor.decompress(packed, most))
        packed_size -= len(packed)
        most -= len(parts[-1])
    return b"".join(parts)


def _list_folder(root: pathlib.Path, follow_links: bool) -> Listing:
    listing = Listing()
    real_root = os.path.realpath(root)
    waiting = [("", frozenset({real_root}))]
    while waiting:
        below, around = waiting.pop()
        try:
            with os.scandir(root / below) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            if not below:
                raise ArchiveError(
                    f"archive {root}: cannot be read ({told(error)}); expected a folder that "
                    "you may read"
                ) from error
            if not listing.leaves_out_folder(below):
                fault = f"cannot be read ({told(error)}); change its permissions, or remove it"
                listing.members.append(Member(below, below, (), fault))
            continue
        for entry in entries:
            place = f"{below}{entry.name}"
            link = entry.is_symlink()
            if _is_folder(entry):
                if not link:
                    waiting.append((f"{place}/", around))
                elif listing.leaves_out_folder(place):
                    pass
                elif not follow_links:
                    listing.members.append(Member(place, place, (), LINK_TO_FOLDER))
                elif (target := os.path.realpath(root / place)) in around or _is_within(
                    root / below, target
                ):
                    fault = "is a link to a folder around it; remove it"
                    listing.members.append(Member(place, place, (), fault))
                else:
                    waiting.append((f"{place}/", around | {target}))
            elif not listing.leaves_out(place):
                try:
                    status = os.stat(entry.path)
                    outside = link and not follow_links and not _is_within(root / place, real_root)
                except OSError as error:
                    fault = f"cannot be read ({told(error)}); remove it, or mend it"
                    listing.members.append(Member(place, place, (), fault))
                    continue
                if not stat.S_ISREG(status.st_mode):
                    listing.irregular.append(place)
                    listing.left_out[NOT_REGULAR] += 1
                    continue
                fault = _fault_of_name(place) or _fault_of_size(status.st_size)
                if outside:
                    fault = _LINK_OUTSIDE
                stamp = () if fault else _stamp(status)
                listing.members.append(Member(_normal(place), place, stamp, fault))
    return listing


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # Such as a link to itself.
        return False


def _is_within(path: pathlib.Path, folder: str) -> bool:
    """Returns whether a file or folder, or the one that it is a link to, is in a real folder."""
    return pathlib.Path(os.path.realpath(path)).is_relative_to(folder)


def _list_zip(path: pathlib.Path, size: int, options: ReadingOptions) -> Listing:
    listing = Listing(size=size)
    parts, start = _directory(path)
    places = array.array("q")  # The start and the end of each member.
    seen = set()
    for info in _entries(path, parts):
        # The local header has this name too, else the member is not read.
        end = info.header_offset + _HEADER.size + len(info.orig_filename) + info.compress_size
        if end > start:
            raise _overlap(path, info)
        places.extend((info.header_offset, end))
        try:
            name, fault = _name(info, options.zip_encoding), ""
        except UnicodeError:
            name, fault = info.orig_filename, _fault_of_encoding(options.zip_encoding)
        if _OUTSIDE.search(name):
            raise ArchiveError(
                f"archive {path}: refused, {shown(name)} points outside the archive; pack the "
                "folders again"
            )
        if name.endswith("/"):
            continue
        if "//" in name or "./" in name:
            name = posixpath.normpath(name)
        if listing.leaves_out(name):
            continue
        member = info.orig_filename
        if member in seen:
            fault = "appears twice; pack the folders again"
        seen.add(member)
        fault = fault or _fault_of_member(info) or _fault_of_name(name)
        place = info.header_offset, info.compress_size, info.compress_type
        stamp = () if fault else (info.file_size, info.CRC, *place)
        listing.members.append(Member(_normal(name), member, stamp, fault))
        listing.unpacked += info.file_size
    _check_overlap(path, parts, np.array(places).reshape(-1, 2))
    check_unpacked(path, [listing], options)
    return listing


def check_unpacked(
    path: pathlib.Path, listings: Sequence[Listing], options: ReadingOptions
) -> None:
    """Refuses zips whose images together would unpack to more than the options allow."""
    size = sum(listing.size for listing in listings)
    unpacked = sum(listing.unpacked for listing in listings)
    allowed: float = max(_HARMLESS_BYTES, _MOST_EXPANSION * size)
    if options.max_unpacked_gb is not None:
        allowed = options.max_unpacked_gb * 10**9
    if unpacked > allowed:
        raise ArchiveError(
            f"archive {path}: refused, {size:,} bytes claim to unpack to {unpacked:,}, more than "
            f"the {allowed:,.0f} allowed; if you trust the archive, pass "
            f"--max_unpacked_gb={-(-unpacked // 10**9)}"
        )


def _entries(path: pathlib.Path, parts: Iterable[bytes]) -> Iterator[zipfile.ZipInfo]:
    """Yields what a zip says of each member, given its directory as `_directory` returns it."""
    for part in parts:
        try:
            with zipfile.ZipFile(io.BytesIO(part)) as zip_file:
                infos = zip_file.infolist()
            if len(infos) != _END.unpack(part[-_END.size :])[3]:
                raise zipfile.BadZipFile("it holds another end record")
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise _not_sound(path) from error
        yield from infos


def _not_sound(path: pathlib.Path) -> ArchiveError:
    with path.open("rb") as file:
        truncated = file.read(2) == b"PK"
    what = "a truncated or damaged zip" if truncated else "not a zip file"
    return ArchiveError(
        f"archive {path}: {what}; expected a zip of class folders, or the folder itself"
    )


def _directory(path: pathlib.Path) -> tuple[list[bytes], int]:
    """Returns the directory of a zip, in parts, and where it starts in the file.

    Each part is a directory of its own, so that zipfile lists some members at a time.

    Raises:
      ArchiveError: It is damaged or not a zip, or it has too many files, or there is more in the
        file than one zip.
    """
    try:
        with open_file(path) as file:
            directory, start, count, bits = _read_directory(path, file)
        parts = []
        found = 0
        while directory:
            number = end = 0
            while number < _LISTED_AT_ONCE and end < len(directory):
                end += _ENTRY_BYTES + sum(_ENTRY_LENGTHS.unpack_from(directory, end))
                number += 1
            if end > len(directory):
                raise zipfile.BadZipFile("the directory ends early")
            after = _END.pack(b"PK\5\6", 0, 0, number, number, end, 0, 0)
            parts.append(b"".join((directory[:end], after)))
            directory = directory[end:]
            found += number
    except (zipfile.BadZipFile, struct.error) as error:
        raise _not_sound(path) from error
    except OSError as error:
        raise ArchiveError(f"archive {path}: cannot be read ({told(error)})") from error
    # zipfile ignores the number. One wrong bit in the length of a name would hide files.
    if found % 2**bits != count:
        raise ArchiveError(
            f"archive {path}: a damaged zip, {found:,} files are listed but its end says "
            f"{count:,}; fetch or pack the archive again"
        )
    return parts, start


def _read_directory(path: pathlib.Path, file: BinaryIO) -> tuple[memoryview, int, int, int]:
    """Reads the directory of a zip.

    Returns:
      The directory, where it starts, the number of files that the end of the zip says, and how many
      bits of the number are there.

    Raises:
      ArchiveError: There are too many files, or more in the file than one zip.
      zipfile.BadZipFile: It is not a zip.
    """
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - 2**16 - _END.size - _LOCATOR_64.size - _END_64.size)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + _END.size:
        raise zipfile.BadZipFile("no end record")
    _, disk, first_disk, _, count, length, offset, _ = _END.unpack_from(tail, at)
    end, bits = start + at, 16  # The Finder packs more files than that, and without Zip64.
    at_locator = at - _LOCATOR_64.size
    if at_locator >= _END_64.size and tail[at_locator : at_locator + 4] == b"PK\6\7":
        at -= _LOCATOR_64.size + _END_64.size
        signature, _, _, _, disk, first_disk, _, count, length, offset = _END_64.unpack_from(
            tail, at
        )
        if signature != b"PK\6\6":
            raise zipfile.BadZipFile("no Zip64 end record")
        end, bits = start + at, 64
    if disk or first_disk:
        raise ArchiveError(f"archive {path}: one part of a zip in several; join the parts")
    if length > _MOST_DIRECTORY_BYTES:
        raise _too_many(path)
    if offset + length > end:
        raise zipfile.BadZipFile("the directory is not in the file")
    if offset + length < end:
        raise ArchiveError(
            f"archive {path}: refused, {end - offset - length:,} bytes lie around its "
            "directory, as in two zips in one file or in a damaged one; pack the folders again"
        )
    file.seek(offset)
    directory = file.read(length)
    # Before zipfile makes an object of each. A name with this signature counts twice.
    if directory.count(b"PK\1\2") > _MOST_FILES:
        raise _too_many(path)
    return memoryview(directory), offset, count, bits


def _too_many(path: pathlib.Path) -> ArchiveError:
    return ArchiveError(
        f"archive {path}: refused, its directory is larger than one of {_MOST_FILES:,} files; pack "
        "several zips and pass a pattern of them, or if you trust the archive, unpack it and pass "
        "the folder"
    )


def _check_overlap(path: pathlib.Path, parts: Iterable[bytes], places: np.ndarray) -> None:
    """Refuses a zip whose members share bytes: a few megabytes would unpack to terabytes.

    See David Fifield, A better zip bomb, 2019.

    Args:
      path: The zip.
      parts: Its directory.
      places: int64 array of shape (N, 2), the start and the end of each of N members.
    """
    order = np.argsort(places[:, 0], kind="stable")
    starts, ends = places[order].T
    if len(shared := np.flatnonzero(ends[:-1] > starts[1:])):
        raise _overlap(path, next(itertools.islice(_entries(path, parts), order[shared[0]], None)))


def _overlap(path: pathlib.Path, info: zipfile.ZipInfo) -> ArchiveError:
    return ArchiveError(
        f"archive {path}: refused, the bytes of {shown(info.filename)} overlap those of other "
        "files; pack the folders again"
    )


def _name(info: zipfile.ZipInfo, encoding: str | None) -> str:
    """Returns the name of a member, decoded, with slashes between folders.

    zipfile takes names for cp437 unless a flag says UTF-8. But the Finder writes UTF-8 without the
    flag, and Windows the encoding of its country. In some of these, a backslash may be the second
    byte of a letter.

    Raises:
      UnicodeError: It is not in the encoding.
    """
    name = info.orig_filename
    if not name.isascii() and not info.flag_bits & 0x800:
        name = name.encode("cp437").decode(encoding or "utf-8")
    # As Info-ZIP's unzip does. On Unix a backslash is a letter like any other.
    if info.create_system == 0 and "/" not in name:
        name = name.replace("\\", "/")
    return name


def _fault_of_encoding(encoding: str | None) -> str:
    if encoding:
        return f"is not a name in {encoding}; pass another --zip_encoding"
    return (
        "is a name in an encoding that the zip does not say; pass that of the computer that packed "
        "it, such as --zip_encoding=cp932 for Japanese Windows, or pack the folders again"
    )


def _normal(name: str) -> str:
    """Returns a name in Unicode's form NFC; macOS writes accents as letters of their own."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _fault_of_member(info: zipfile.ZipInfo) -> str:
    """Returns what is wrong with a member of a zip, apart from its name, or ""."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a symbolic link; pack the file itself"
    if kind not in (0, stat.S_IFREG):
        return "is not a regular file; pack the folders again without it"
    if info.flag_bits & 0x1:
        return "is encrypted; pack the folders again without a password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = _PACKED_WITH.get(info.compress_type, f"method {info.compress_type}")
        return f"is packed with {method}; pack the folders again with Deflate, the usual method"
    return _fault_of_size(info.file_size)


def _fault_of_size(size: int) -> str:
    if size > _MOST_BYTES:
        return f"has {size:,} bytes, more than the {_MOST_BYTES:,} allowed for an image"
    return ""


# An absolute path, a path of a drive, or a folder called "..".
_OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.($|[/\\])")

# Control characters, line separators, and marks that reorder the letters around them.
_MISLEADING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def _fault_of_name(name: str) -> str:
    if not name:
        return "is empty; pack the folders again"
    if not name.isprintable() and _MISLEADING.search(name):
        return "has a control character in its name; rename it"
    if len(name) > _MOST_LETTERS:
        return f"has more than {_MOST_LETTERS:,} letters in its path; rename it"
    if name.count("/") > _MOST_FOLDERS:
        return f"lies in more than {_MOST_FOLDERS} folders; move it"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode; rename it"
    return ""


def shown(name: str) -> str:
    """Returns a name in quotes, its middle left out if it is long."""
    return repr(name if len(name) <= 100 else f"{name[:50]}…{name[-49:]}")


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@functools.lru_cache(maxsize=2**14)
def _kind_of_folder(folder: str) -> str | None:
    """Returns why no file in a folder is an example, or None."""
    for part in folder.split("/"):
        if part.lower() in _SYSTEM_FOLDERS:
            return part
        if part.startswith("."):
            return "hidden"
    return None


def _kind_of_system_file(file: str) -> str | None:
    if file.lower() in _SYSTEM_FILES:
        return file
    if file.startswith("._"):
        return "._*"
    return "hidden" if file.startswith(".") else None


def _kind_of_format(file: str) -> str | None:
    """Returns the kind of a file that is not an image, by its suffix, or None."""
    start = file.rfind(".")
    suffix = file[start:].lower() if start >= 0 else ""
    if suffix in SUFFIXES:
        return None
    if suffix in _HEIF:
        return f"{suffix} (pip install pillow-heif reads them)"
    # Any other text may be long, misleading, or different for every file.
    return suffix if re.fullmatch(r"\.\w{1,12}", suffix) else "without suffix"
