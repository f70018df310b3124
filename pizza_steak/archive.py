"""Archives of class folders: a zip or a folder, read through its directory and never unpacked.

The layouts that are understood, with or without folders around the whole of them:

    train/<class>/<picture>   beside test/ and one of val/, valid/, validation/; or training/,
                              testing/
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
import posixpath
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pizza_steak.errors import ArchiveError

# What TensorFlow decodes. The suffix only says that a file is meant as a picture: decoding goes by
# its first bytes, so that a PNG named .jpg is read as what it is.
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"})

_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
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
        name = re.sub(r"[^A-Za-z0-9_]+", "_", stem).strip("_") or "archive"
        return f"{name}-{self.fingerprint[:12]}"

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


def read_archive(path: str | os.PathLike[str], *, follow_links: bool = False) -> Archive:
    """Lists the archive at `path`: a zip file or a folder; `~` is the home folder.

    Args:
      path: Where it is.
      follow_links: Whether links to folders are followed; else they are refused.

    Raises:
      ArchiveError: There is no archive there, it has no class folders or only one class, its splits
        have different classes, or its content is hostile.
    """
    path = pathlib.Path(path).expanduser()
    left_out: collections.Counter[str] = collections.Counter()
    pictures = {}
    for name, member, content in _members(path, follow_links):
        kind = _kind_left_out(name)
        if kind is None:
            pictures[name] = member, content
        else:
            left_out[kind] += 1

    splits = collections.defaultdict(list)
    digest = hashlib.sha256()
    root = _root(path, pictures)
    filenames = [name.removeprefix(root) for name in sorted(pictures) if name.startswith(root)]
    left_out["outside the class folders"] = len(pictures) - len(filenames)
    paths = [filename.split("/") for filename in filenames]
    # A class may be called train, beside others; nothing but train/ and test/ are no classes.
    has_splits = any(map(_in_split, paths)) or all(
        parts[0].lower() in _SPLITS for parts in paths if len(parts) > 1
    )
    for filename, parts in zip(filenames, paths, strict=True):
        placed = _place(parts, has_splits)
        if placed is None:
            left_out["outside the class folders"] += 1
            continue
        split, label = placed
        member, content = pictures[root + filename]
        splits[split].append(Picture(filename, label, member))
        digest.update(f"{filename}\0{content}\n".encode())

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


def list_pictures(path: str | os.PathLike[str], *, follow_links: bool = False) -> dict[str, str]:
    """The pictures of a zip file or a folder, whether they are in class folders or not.

    Args:
      path: Where it is.
      follow_links: Whether links to folders are followed; else they are refused.

    Returns:
      Name -> member, sorted by name: the member's name in the zip, or its path below the folder;
      the name is that, tidied.

    Raises:
      ArchiveError: There is no zip file and no folder there, or its content is hostile.
    """
    members = _members(pathlib.Path(path), follow_links)
    return dict(sorted((name, member) for name, member, _ in members if not _kind_left_out(name)))


def _members(path: pathlib.Path, follow_links: bool) -> Iterator[tuple[str, str, str]]:
    """The (name, member, what stands for its content) of every file."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        raise ArchiveError(
            f"archive {path}: {_told(error).lower()}; expected a zip file or a folder"
        ) from error
    if kind == stat.S_IFDIR:
        return _folder_members(path, follow_links)
    if kind == stat.S_IFREG:
        return _zip_members(path)
    raise ArchiveError(f"archive {path}: neither a zip file nor a folder")


def _folder_members(folder: pathlib.Path, follow_links: bool) -> Iterator[tuple[str, str, str]]:
    """The (name, member, what stands for its content) of every file."""

    def fail(error: OSError):
        raise ArchiveError(f"archive {folder}: {error.filename} cannot be read ({_told(error)})")

    for directory, folders, names in os.walk(folder, onerror=fail, followlinks=follow_links):
        for name in (*folders, *names):
            file = pathlib.Path(directory, name)
            if fault := _fault_of_name(name):
                raise ArchiveError(f"archive {folder}: the name {name!r} {fault}; rename it")
            if name in folders:
                if file.is_symlink() and not follow_links:
                    raise ArchiveError(
                        f"archive {folder}: {file.name} is a link to a folder, which is not "
                        "followed; put the folder itself there, or pass --follow_links"
                    )
                if file.is_symlink() and pathlib.Path(directory).resolve().is_relative_to(
                    file.resolve()
                ):
                    raise ArchiveError(
                        f"archive {folder}: {file.name} is a link to a folder around it; remove it"
                    )
                continue
            try:
                status = file.stat()
            except OSError as error:
                fail(error)
            name = file.relative_to(folder).as_posix()
            yield name, name, f"{status.st_size} {status.st_mtime_ns}"


def _zip_members(path: pathlib.Path) -> Iterator[tuple[str, str, str]]:
    """The (name, member, what stands for its content) of every file.

    The name is the member's with what some packers write tidied: `./` in front, backslashes.
    """
    with _open_zip(path) as zip_file:
        seen = set()
        for info in zip_file.infolist():
            name = info.filename.replace("\\", "/")
            if name.endswith("/"):
                continue
            name = posixpath.normpath(name) if name else ""
            fault = _fault(info) or ("stands twice" if name in seen else None)
            if fault:
                raise ArchiveError(
                    f"archive {path}: refused, {info.filename!r} {fault}; pack the folders anew"
                )
            seen.add(name)
            yield name, info.filename, f"{info.file_size} {info.CRC:08x}"


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
        raise ArchiveError(f"archive {path}: cannot be read ({_told(error)})") from error


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
    return _fault_of_name(info.filename)


def _fault_of_name(name: str) -> str | None:
    if not name:
        return "is no name"
    if re.search(r"[\x00-\x1f\x7f]", name):
        return "has a control character"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is no text"
    return None


def _told(error: OSError) -> str:
    return error.strerror or str(error)


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


def _root(path: pathlib.Path, names: Iterable[str]) -> str:
    """The folders around everything, with a slash behind each, or "" where there are none."""
    paths = [name.split("/") for name in names]
    around_splits = set()
    for parts in paths:
        depths = (depth for depth in range(len(parts)) if _in_split(parts[depth:]))
        if (depth := next(depths, None)) is not None:
            around_splits.add("".join(f"{part}/" for part in parts[:depth]))
    if len(around_splits) > 1:
        first, second, *_ = sorted(around_splits)
        raise ArchiveError(
            f"archive {path}: {first or './'} and {second} both hold train/ or test/; "
            "expected one folder that does: pack it alone"
        )
    if around_splits:
        return around_splits.pop()
    root = ""
    while len({parts[0] for parts in paths}) == 1 and max(map(len, paths)) > 2:
        root += f"{paths[0][0]}/"
        paths = [parts[1:] for parts in paths if len(parts) > 1]
    return root


def _in_split(parts: Sequence[str]) -> bool:
    """Whether a path, cut at its slashes, is that of a picture in a class folder of a split."""
    return len(parts) > 2 and parts[0].lower() in _SPLITS


def _place(parts: Sequence[str], has_splits: bool) -> tuple[str, str] | None:
    """The (split, class) of a path, cut at its slashes, or None where it is in no class folder."""
    if not has_splits:
        return ("train", parts[0]) if len(parts) > 1 else None
    return (_SPLITS[parts[0].lower()], parts[1]) if _in_split(parts) else None


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
