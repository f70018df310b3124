"""Reads archives of class folders: a zip, which is never unpacked, or a folder.

Two layouts are allowed, with or without folders around them:

    train/<class>/<image>     beside test/ and one of val/, valid/, validation/; or training/,
                              testing/
    <class>/<image>           all images are in the split "train", to be cut later

Folders that mix the two are refused: no class folder is left out.

No archive is trusted. A member that points outside, is a link, is encrypted, appears twice or is
larger than any photograph makes the whole archive refused, before anything is written.
"""

import collections
import dataclasses
import importlib.util
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

_HEIF = frozenset({".heic", ".heif", ".hif"})
# Suffixes of the image formats that Pillow reads. The decoder goes by the first bytes, not by the
# suffix: a PNG named .jpg is read as a PNG.
SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".gif", ".webp", ".avif"),
        *(".tif", ".tiff", ".ppm", *(_HEIF if importlib.util.find_spec("pillow_heif") else ())),
    }
)

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
# What zipfile and its decompressors raise for damaged bytes.
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
      filename: Path below the archive's root, such as `train/pizza/1001116.jpg`.
      label: Name of the class folder.
      member: Name in the zip, or path below the given folder.
      stamp: In a zip, the size and the CRC-32 of the bytes. In a folder, the file's size and its
        times of modification and change in nanoseconds.
    """

    filename: str
    label: str
    member: str
    stamp: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Archive:
    """The listing of an archive, without the images themselves.

    Attributes:
      path: The zip file or the folder.
      classes: The class names, sorted, as `flow_from_directory` sorts them.
      splits: The images by split ("train", "test", "validation"), sorted by class, then name.
      left_out: Number of files that are no examples, by kind (".DS_Store", "__MACOSX", ".txt").
    """

    path: pathlib.Path
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Picture, ...]] = dataclasses.field(repr=False)
    left_out: Mapping[str, int]

    @property
    def stem(self) -> str:
        """The name of the file or folder, in letters, digits and underscores."""
        stem = self.path.stem if self.path.is_file() else self.path.name
        return re.sub(r"[^A-Za-z0-9_]+", "_", stem).strip("_") or "archive"

    def read(self, split: str) -> Iterator[tuple[Picture, bytes]]:
        """Yields each image of a split with its bytes, unchanged.

        Raises:
          ArchiveError: A member is damaged (its bytes do not match its checksum), missing, or not
            the file that was listed.
        """
        if self.path.is_dir():
            for image in self.splits[split]:
                yield image, self.read_file(image)
            return
        with _open_zip(self.path) as zip_file:
            for image in self.splits[split]:
                try:
                    yield image, zip_file.read(image.member)
                except _DAMAGED as error:
                    raise self._damaged(image, error) from error

    def read_file(self, image: Picture) -> bytes:
        """Returns the bytes of one image of a folder.

        Raises:
          ArchiveError: The file cannot be read, or is not the one that was listed.
        """
        path = self.path / image.member
        try:
            encoded = path.read_bytes()
            stamp = _stamp(path.stat())
        except OSError as error:
            raise self._damaged(image, error) from error
        if stamp != image.stamp:
            raise ArchiveError(
                f"archive {self.path}: {image.member} changed while the archive was read; run "
                "the command again when the folder is complete"
            )
        return encoded

    def _damaged(self, image: Picture, error: Exception) -> ArchiveError:
        return ArchiveError(
            f"archive {self.path}: {image.member} cannot be read ({error}); "
            "fetch or pack the archive again"
        )


def read_archive(path: str | os.PathLike[str], *, follow_links: bool = False) -> Archive:
    """Lists the archive at a path.

    Args:
      path: A zip file or a folder; `~` is the home folder.
      follow_links: Whether to follow links to folders; else they are refused.

    Raises:
      ArchiveError: There is no archive, it has no class folders or only one class, its folders are
        ambiguous, its splits have different classes, or its content is hostile.
    """
    path = pathlib.Path(path).expanduser()
    left_out: collections.Counter[str] = collections.Counter()
    images = {}
    for name, member, stamp in _members(path, follow_links):
        kind = _kind_left_out(name)
        if kind is None:
            images[name] = member, stamp
        else:
            left_out[kind] += 1

    images = dict(sorted(images.items()))
    root, has_splits = _layout(path, images)
    splits = collections.defaultdict(list)
    for name, (member, stamp) in images.items():
        filename = name.removeprefix(root)
        placed = _place(filename.split("/"), has_splits) if name.startswith(root) else None
        if placed is None:
            left_out["outside the class folders"] += 1
        else:
            split, label = placed
            splits[split].append(Picture(filename, label, member, stamp))

    classes = _common_classes(path, splits, left_out)
    for listed in splits.values():
        listed.sort(key=lambda image: (image.label, image.filename))
    return Archive(
        path=path,
        classes=classes,
        splits={split: tuple(splits[split]) for split in sorted(splits)},
        left_out=dict(sorted(left_out.items())),
    )


def list_pictures(path: str | os.PathLike[str], *, follow_links: bool = False) -> dict[str, str]:
    """Lists the images of a zip file or a folder, in class folders or not.

    Args:
      path: The zip file or the folder.
      follow_links: Whether to follow links to folders; else they are refused.

    Returns:
      The member of each image by its name, sorted: the member is the name in the zip, or the path
      below the folder; the name is the normalised member.

    Raises:
      ArchiveError: There is no zip file and no folder at the path, or its content is hostile.
    """
    members = _members(pathlib.Path(path), follow_links)
    return dict(sorted((name, member) for name, member, _ in members if not _kind_left_out(name)))


def _members(path: pathlib.Path, follow_links: bool) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yields the name, member and stamp of every file, as `Picture` has them."""
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


def _folder_members(
    folder: pathlib.Path, follow_links: bool
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yields the name, member and stamp of every file, as `Picture` has them."""

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
            yield name, name, _stamp(status)


def _zip_members(path: pathlib.Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yields the name, member and stamp of every file, as `Picture` has them.

    The name is the member's without what some packers write: a leading `./`, backslashes.
    """
    with _open_zip(path) as zip_file:
        seen = set()
        for info in zip_file.infolist():
            name = info.filename.replace("\\", "/")
            if name.endswith("/"):
                continue
            name = posixpath.normpath(name) if name else ""
            fault = _fault(info) or ("appears twice" if name in seen else None)
            if fault:
                raise ArchiveError(
                    f"archive {path}: refused, {info.filename!r} {fault}; pack the folders again"
                )
            seen.add(name)
            yield name, info.filename, (info.file_size, info.CRC)


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
    """Returns what is wrong with a member of a zip, or None."""
    if re.match(r"[/\\]|[A-Za-z]:", info.filename) or ".." in re.split(r"[/\\]", info.filename):
        return "points outside the archive"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a symbolic link"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.file_size > _MOST_BYTES:
        return f"claims {info.file_size:,} bytes, more than the {_MOST_BYTES:,} allowed"
    return _fault_of_name(info.filename)


def _fault_of_name(name: str) -> str | None:
    if not name:
        return "is empty"
    if re.search(r"[\x00-\x1f\x7f]", name):
        return "has a control character"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return None


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _told(error: OSError) -> str:
    return error.strerror or str(error)


def _kind_left_out(member: str) -> str | None:
    """Returns why a file is no example, or None if it is one."""
    path = pathlib.PurePosixPath(member)
    if "__MACOSX" in path.parts:
        return "__MACOSX"
    if path.name.lower() in _SYSTEM_FILES or path.name.startswith("._"):
        return path.name if path.name.lower() in _SYSTEM_FILES else "._*"
    if any(part.startswith(".") for part in path.parts):
        return "hidden"
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return None
    if suffix in _HEIF:
        return f"{suffix} (pip install pillow-heif reads them)"
    return suffix or "without suffix"


def _layout(path: pathlib.Path, names: Iterable[str]) -> tuple[str, bool]:
    """Returns the folders around everything, each followed by a slash, and whether splits follow.

    Raises:
      ArchiveError: Some folders are splits and others would be classes.
    """
    root = ""
    paths = [name.split("/") for name in names]
    while True:
        below = collections.defaultdict(list)
        for folder, *rest in paths:
            if rest:
                below[folder].append(rest)
        if any(map(_in_split, paths)):
            _check_splits(path, root, below)
            return root, True
        wraps = len(below) == 1 and any(len(rest) > 1 for rests in below.values() for rest in rests)
        if not wraps:
            break
        ((folder, paths),) = below.items()
        root += f"{folder}/"
    _check_classes(path, root, below)
    return root, all(folder.lower() in _SPLITS for folder in below)


def _check_splits(path: pathlib.Path, root: str, below: Mapping[str, list[list[str]]]) -> None:
    """Refuses folders if only some of them hold the class folders of a split."""
    classes = {
        folder: {rest[0] for rest in rests if _in_split([folder, *rest])}
        for folder, rests in below.items()
    }
    split = min(folder for folder in classes if classes[folder])
    others = [folder for folder in classes if not classes[folder]]
    if not others:
        return
    named = _listed(f"{root}{folder}/" for folder in others)
    if all(folder.lower() in _SPLITS for folder in others):
        raise ArchiveError(
            f"archive {path}: class folders in {root}{split}/ ({_listed(classes[split])}) but none "
            f"in {named}; sort the images there into class folders, or move {named} elsewhere"
        )
    would_be = "a class of its own" if len(others) == 1 else "classes of their own"
    raise ArchiveError(
        f"archive {path}: {root}{split}/ holds class folders ({_listed(classes[split])}), beside "
        f"{named}, which would be {would_be}; if {root}{split}/ is a split, move {named} elsewhere "
        "or into it; if it is a class, rename it"
    )


def _check_classes(path: pathlib.Path, root: str, below: Mapping[str, list[list[str]]]) -> None:
    """Refuses class folders if one of them holds a split."""
    for folder, rests in below.items():
        for rest in rests:
            for depth in range(len(rest)):
                if _in_split(rest[depth:]):
                    split = root + "/".join([folder, *rest[: depth + 1]])
                    others = _listed(f"{root}{other}/" for other in below if other != folder)
                    raise ArchiveError(
                        f"archive {path}: {split}/ holds class folders ({rest[depth + 1]}), beside "
                        f"{others}; if it is a split, move {others} elsewhere; if {root}{folder}/ "
                        f"is a class, rename {split}/"
                    )


def _in_split(parts: Sequence[str]) -> bool:
    """Returns whether the parts of a path lead to an image in a class folder of a split."""
    return len(parts) > 2 and parts[0].lower() in _SPLITS


def _place(parts: Sequence[str], has_splits: bool) -> tuple[str, str] | None:
    """Returns the (split, class) of a path's parts, or None if it is in no class folder."""
    if not has_splits:
        return ("train", parts[0]) if len(parts) > 1 else None
    return (_SPLITS[parts[0].lower()], parts[1]) if _in_split(parts) else None


def _common_classes(
    path: pathlib.Path, splits: Mapping[str, list[Picture]], left_out: Mapping[str, int]
) -> tuple[str, ...]:
    """Returns the sorted classes, the same in every split, at least two."""
    by_split = {split: {p.label for p in images} for split, images in splits.items()}
    classes = sorted(set().union(*by_split.values()))
    found = ", ".join(f"{count} {kind}" for kind, count in left_out.items())
    others = f" (left out: {found})" if found else ""
    if not classes:
        raise ArchiveError(
            f"archive {path}: no class folders with images{others}; sort the images into "
            "<class>/<image>, or into train/<class>/<image> and test/<class>/<image>"
        )
    if len(classes) == 1:
        raise ArchiveError(
            f"archive {path}: one class only, {classes[0]!r}{others}; add a folder with images of "
            "another class beside it"
        )
    for split, labels in by_split.items():
        if missing := [name for name in classes if name not in labels]:
            where = next(other for other in by_split if missing[0] in by_split[other])
            # The folders' own names: Test/, not test/.
            there, here = (splits[name][0].filename.split("/")[0] for name in (where, split))
            missing = [name for name in missing if name in by_split[where]]
            raise ArchiveError(
                f"archive {path}: classes in {there}/ but not in {here}/: {_listed(missing)}; add "
                f"images to {_listed(f'{here}/{name}/' for name in missing)}, or remove "
                f"{_listed(f'{there}/{name}/' for name in missing)}"
            )
    return tuple(classes)


def _listed(names: Iterable[str]) -> str:
    """Returns the sorted names as text, at most four."""
    names = sorted(names)
    if len(names) > 4:
        names[3:] = [f"{len(names) - 3} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
