"""Archives of class folders: a zip or a folder, read through its directory and never unpacked.

The layouts that are understood, with or without one root folder around them:

    train/<class>/<picture>   beside test/ and one of val/, valid/, validation/
    <class>/<picture>         everything is the split "train", to be cut by split strings

Nothing of an archive is trusted: a member that leaves it, is a link, is encrypted, stands twice or
claims to be larger than any photograph makes the whole archive refused before a byte is written.
"""

import collections
import dataclasses
import hashlib
import lzma
import os
import pathlib
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping

from pizza_steak.errors import ArchiveError

# What TensorFlow decodes. The suffix only says that a file is meant as a picture: decoding goes by
# its first bytes, so that a PNG named .jpg is read as what it is.
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"})

_SPLITS = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
_SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
_MOST_BYTES = 256 * 2**20
# What zipfile and its decompressors raise for bytes that they cannot make sense of.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """One example of an archive.

    Attributes:
      filename: Its path below the archive's root, such as `train/pizza/1001116.jpg`.
      label: The name of its class folder.
      member: Its name in the zip, or its path below the folder that was given.
    """

    filename: str
    label: str
    member: str


@dataclasses.dataclass(frozen=True)
class Archive:
    """The listing of an archive: what is in it, not the pictures themselves.

    Attributes:
      path: The zip file or the folder.
      classes: The names of the class folders, sorted, as `flow_from_directory` sorts them.
      splits: The pictures by split ("train", "test", "validation"), sorted by class, then name.
      left_out: How many files are no examples, by kind (".DS_Store", "__MACOSX", ".txt", ...).
      fingerprint: Hexadecimal digest of every picture's name, size and content (a zip's checksums;
        in a folder, the time of the last change stands for the content, so that starting a run does
        not read every picture).
    """

    path: pathlib.Path
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Picture, ...]] = dataclasses.field(repr=False)
    left_out: Mapping[str, int]
    fingerprint: str

    @property
    def name(self) -> str:
        """A name for what was read: the file's own and a part of the fingerprint."""
        stem = self.path.stem if self.path.is_file() else self.path.name
        return f"{re.sub(r'[^A-Za-z0-9_]+', '_', stem).strip('_')}-{self.fingerprint[:12]}"

    def read(self, split: str) -> Iterator[tuple[Picture, bytes]]:
        """Yields each picture of `split` with its bytes as they are in the archive.

        Raises:
          ArchiveError: A member is damaged (its bytes do not match its checksum) or gone.
        """
        if self.path.is_dir():
            for picture in self.splits[split]:
                try:
                    yield picture, (self.path / picture.member).read_bytes()
                except OSError as error:
                    raise self._damaged(picture, error) from error
            return
        with _open_zip(self.path) as zip_file:
            for picture in self.splits[split]:
                try:
                    yield picture, zip_file.read(picture.member)
                except _DAMAGED as error:
                    raise self._damaged(picture, error) from error

    def _damaged(self, picture: Picture, error: Exception) -> ArchiveError:
        return ArchiveError(
            f"archive {self.path}: {picture.member} cannot be read ({error}); "
            "fetch or pack the archive again"
        )


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Lists the archive at `path`: a zip file or a folder; `~` is the home folder.

    Raises:
      ArchiveError: There is no archive there, it has no class folders or only one class, its splits
        have different classes, or its content is hostile.
    """
    path = pathlib.Path(path).expanduser()
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        raise ArchiveError(
            f"archive {path}: {error.strerror.lower()}; expected a zip file or a folder"
        ) from error
    if kind == stat.S_IFDIR:
        members = _folder_members(path)
    elif kind == stat.S_IFREG:
        members = _zip_members(path)
    else:
        raise ArchiveError(f"archive {path}: neither a zip file nor a folder")

    left_out: collections.Counter[str] = collections.Counter()
    pictures = {}
    for member, content in members:
        kind = _kind_left_out(member)
        if kind is None:
            pictures[member] = content
        else:
            left_out[kind] += 1

    splits = collections.defaultdict(list)
    digest = hashlib.sha256()
    root = _root(pictures)
    filenames = {
        member: member[len(root) :]
        for member in sorted(pictures)
        if member.lower().startswith(root)
    }
    left_out["outside the class folders"] = len(pictures) - len(filenames)
    has_splits = any(name.split("/")[0].lower() in _SPLITS for name in filenames.values())
    for member, filename in filenames.items():
        placed = _place(filename, has_splits)
        if placed is None:
            left_out["outside the class folders"] += 1
            continue
        split, label = placed
        splits[split].append(Picture(filename, label, member))
        digest.update(f"{filename}\0{pictures[member]}\n".encode())

    classes = _common_classes(path, splits, sum(left_out.values()))
    for split in splits.values():
        split.sort(key=lambda picture: (picture.label, picture.filename))
    return Archive(
        path=path,
        classes=classes,
        splits={split: tuple(splits[split]) for split in sorted(splits)},
        left_out={kind: count for kind, count in sorted(left_out.items()) if count},
        fingerprint=digest.hexdigest(),
    )


def _folder_members(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    def fail(error: OSError):
        raise ArchiveError(f"archive {folder}: {error.filename} cannot be read ({error.strerror})")

    for directory, folders, names in os.walk(folder, onerror=fail):
        for name in (*folders, *names):
            file = pathlib.Path(directory, name)
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise ArchiveError(
                    f"archive {folder}: the name {name!r} is no text; rename it"
                ) from error
            if name in folders:
                if file.is_symlink():
                    raise ArchiveError(
                        f"archive {folder}: {file.name} is a link to a folder, which is not "
                        "followed; put the folder itself there"
                    )
                continue
            try:
                status = file.stat()
            except OSError as error:
                fail(error)
            yield file.relative_to(folder).as_posix(), f"{status.st_size} {status.st_mtime_ns}"


def _zip_members(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    with _open_zip(path) as zip_file:
        seen = set()
        for info in zip_file.infolist():
            if info.is_dir():
                continue
            fault = _fault(info) or ("stands twice" if info.filename in seen else None)
            if fault:
                raise ArchiveError(
                    f"archive {path}: refused, {info.filename!r} {fault}; pack the folders anew"
                )
            seen.add(info.filename)
            yield info.filename, f"{info.file_size} {info.CRC:08x}"


def _open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        with path.open("rb") as file:
            truncated = file.read(2) == b"PK"
        what = "a truncated or damaged zip" if truncated else "not a zip file"
        raise ArchiveError(
            f"archive {path}: {what}; expected a zip of class folders, or the folder itself"
        ) from error
    except OSError as error:
        raise ArchiveError(f"archive {path}: cannot be read ({error.strerror})") from error


def _fault(info: zipfile.ZipInfo) -> str | None:
    """What is wrong with a member of a zip, or None."""
    if re.match(r"[/\\]|[A-Za-z]:", info.filename) or ".." in re.split(r"[/\\]", info.filename):
        return "points outside the archive"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a symbolic link"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.file_size > _MOST_BYTES:
        return f"claims {info.file_size:,} bytes, more than a picture's {_MOST_BYTES:,}"
    return None


def _kind_left_out(member: str) -> str | None:
    """Why a file cannot be an example, or None where it can."""
    path = pathlib.PurePosixPath(member)
    if "__MACOSX" in path.parts:
        return "__MACOSX"
    if path.name.lower() in _SYSTEM_FILES or path.name.startswith("._"):
        return path.name if path.name.lower() in _SYSTEM_FILES else "._*"
    if any(part.startswith(".") for part in path.parts):
        return "hidden"
    suffix = path.suffix.lower()
    return None if suffix in SUFFIXES else suffix or "without suffix"


def _root(members: Iterable[str]) -> str:
    """The one folder around everything, with its slash, or "" where there is none."""
    paths = [member.lower().split("/") for member in members]
    if any(parts[0] in _SPLITS for parts in paths):
        return ""
    tops = {parts[0] for parts in paths}
    around_splits = {parts[0] for parts in paths if parts[1:2] and parts[1] in _SPLITS}
    if len(around_splits) == 1:
        tops = around_splits
    if len(tops) != 1 or max(map(len, paths)) < 3:
        return ""
    return f"{tops.pop()}/"


def _place(filename: str, has_splits: bool) -> tuple[str, str] | None:
    """The (split, class) of a file, or None where it is in no class folder."""
    *folders, _ = filename.split("/")
    if not has_splits:
        folders.insert(0, "train")
    if len(folders) < 2 or folders[0].lower() not in _SPLITS:
        return None
    return _SPLITS[folders[0].lower()], folders[1]


def _common_classes(
    path: pathlib.Path, splits: Mapping[str, Iterable[Picture]], others: int
) -> tuple[str, ...]:
    """The sorted classes, the same in every split, at least two."""
    by_split = {split: {p.label for p in pictures} for split, pictures in splits.items()}
    classes = set().union(*by_split.values())
    if not classes:
        raise ArchiveError(
            f"archive {path}: no class folders with pictures (found {others} other files); "
            "expected train/<class>/<image> and test/<class>/<image>, or <class>/<image>"
        )
    if len(classes) == 1:
        raise ArchiveError(
            f"archive {path}: one class only, {classes.pop()!r}; expected two class folders or more"
        )
    for split, found in by_split.items():
        if missing := sorted(classes - found):
            where = next(other for other in by_split if missing[0] in by_split[other])
            raise ArchiveError(
                f"archive {path}: class {missing[0]!r} is in {where}/ but not in {split}/; "
                "expected the same class folders in every split"
            )
    return tuple(sorted(classes))
