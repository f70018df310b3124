"""Reads archives of class folders: a zip, which is never unpacked, a folder, or several of these.

Two layouts are allowed, with or without folders around them:

    train/<class>/<image>     beside test/ and one of val/, valid/, validation/; or other names
                              with these words, such as training_set/ beside test_set/
    <class>/<image>           all images are in the split "train", to be cut later

Folders that mix the two are refused: no class folder is left out.

A pattern such as part-*.zip stands for all that it matches, as if unpacked into one folder. If each
part has a numbered folder around everything, such as part-1/, names do not begin with it.

No archive is trusted: `members` says what makes it refused, before anything is written.
"""

import collections
import dataclasses
import glob
import heapq
import itertools
import operator
import os
import pathlib
import re
import unicodedata
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple, TypeVar

from pizza_steak import members, patterns
from pizza_steak.errors import ArchiveError
from pizza_steak.garbage import without_collections
from pizza_steak.members import Listing, Member, ReadingOptions

_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
_SPLIT = re.compile("|".join(sorted(_SPLITS, key=len, reverse=True)))
_NESTED_SPLIT = re.compile(f"({_SPLIT.pattern})([ _-]?(set|data|images))?")
# What folders around everything are called in parts of a data set; classes are not called so.
_NUMBERED = re.compile(
    r"(?<![a-z])(part|shard|chunk|batch|block|volume|vol|disk|archive|zip|images?|photos?|pictures?"
    r"|dataset|data)[ ._-]*\d+$",
    re.IGNORECASE,
)
# The name of a prepared dataset has 13 letters more, and that of a temporary folder of TFDS 30.
_LONGEST_STEM = 80

_Read = TypeVar("_Read")
# The names of a folder with images and of the folders around it, the outermost first.
_Folder = list[str]


class Picture(NamedTuple):
    """One example of an archive.

    Attributes:
      filename: Path below the archive's root, such as `train/pizza/1001116.jpg`.
      label: Name of the class folder.
      member: Name in the zip, or path below the given folder.
      stamp: As in `members.Member`.
      part: The place of the zip or folder in the archive's `parts`.
    """

    filename: str
    label: str
    member: str
    stamp: tuple[int, ...]
    part: int


@dataclasses.dataclass(frozen=True)
class Archive:
    """The listing of an archive, without the images themselves.

    Attributes:
      path: The zip file or the folder, or a pattern.
      parts: The zips and folders that the archive consists of; `path` alone if it is no pattern.
      options: How it was read.
      state: What tells each part from another one at the same path, and from itself after a change;
        () if one is so young that a change might go unnoticed. That of a folder is not known here:
        see `contents.open_archive`.
      classes: The class names, sorted, as `flow_from_directory` sorts them.
      counts: The number of images by split.
      splits: The images by split ("train", "test", "validation"), sorted by class, then name.
      left_out: Number of files that are no examples, by kind (".DS_Store", "__MACOSX", ".txt").
      warnings: What may surprise: a folder without images, a pipe named like an image.
    """

    path: pathlib.Path
    parts: tuple[pathlib.Path, ...]
    options: ReadingOptions
    state: tuple[tuple[int | str, ...], ...]
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    splits: Mapping[str, tuple[Picture, ...]] = dataclasses.field(repr=False)
    left_out: Mapping[str, int]
    warnings: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """The name of the file or folder, in letters, digits and underscores."""
        stem = self.path.name if self.path.is_dir() else self.path.stem
        return re.sub(r"[^A-Za-z0-9_]+", "_", stem)[:_LONGEST_STEM].strip("_") or "archive"

    def read(self, split: str) -> Iterator[tuple[Picture, bytes]]:
        """Yields each image of a split with its bytes, unchanged; part after part.

        Raises:
          ArchiveError: A member is damaged (its bytes do not match its checksum), missing, or not
            the file that was listed.
        """
        images = sorted(self.splits[split], key=operator.attrgetter("part"))
        for part, of_part in itertools.groupby(images, key=operator.attrgetter("part")):
            if self.parts[part].is_dir():
                for image in of_part:
                    yield image, self.read_file(image)
                continue
            with members.open_zip(self.parts[part]) as zip_file:
                for image in of_part:
                    yield image, self.read_member(zip_file, image)

    def read_member(self, zip_file: BinaryIO, image: Picture) -> bytes:
        """Returns the bytes of one image of a zip, which `members.open_zip` opened.

        Raises:
          ArchiveError: As `read`.
        """
        try:
            return members.read_member(zip_file, image.member, image.stamp)
        except zipfile.BadZipFile as error:
            raise self._damaged(image, error) from error

    def read_file(self, image: Picture) -> bytes:
        """Returns the bytes of one image of a folder.

        Raises:
          ArchiveError: The file cannot be read, or is not the one that was listed.
        """
        return self._of_file(image, members.read_file)

    def checksum_file(self, image: Picture) -> int:
        """Returns the CRC-32 of one image of a folder.

        Raises:
          ArchiveError: As `read_file`.
        """
        return self._of_file(image, members.checksum_file)

    def _of_file(
        self, image: Picture, read: Callable[[str], tuple[_Read, tuple[int, ...]]]
    ) -> _Read:
        folder = self.parts[image.part]
        try:
            found, stamp = read(os.path.join(folder, image.member))
        except OSError as error:
            raise self._damaged(image, error) from error
        if stamp != image.stamp:
            raise ArchiveError(
                f"archive {folder}: {image.member} changed while the archive was read; run "
                "the command again when the folder is complete"
            )
        return found

    def _damaged(self, image: Picture, error: Exception) -> ArchiveError:
        return ArchiveError(
            f"archive {self.parts[image.part]}: {image.member} cannot be read ({error}); "
            "fetch or pack the archive again"
        )


def find_parts(path: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Returns the zips and folders that match a pattern, sorted.

    Returns:
      The path itself if it exists, or if it is not a pattern.

    Raises:
      ArchiveError: Nothing matches the pattern.
    """
    if not glob.has_magic(os.fspath(path)):
        return (path,)
    if found := patterns.matches(path, recursive=True):
        return tuple(sorted(found))
    raise ArchiveError(
        f"archive {path}: nothing matches this pattern; expected zip files or a folder"
    )


@without_collections()  # A listing stays: it would take a third more time.
def read_archive(path: str | os.PathLike[str], options: ReadingOptions | None = None) -> Archive:
    """Lists the archive at a path.

    Args:
      path: A zip file or a folder, or a pattern of zips and folders that are one data set; `~` is
        the home folder.
      options: How to read it.

    Raises:
      ArchiveError: There is no archive, it has no class folders or only one class, its folders are
        ambiguous, its splits have different classes, or its content is hostile.
    """
    path = pathlib.Path(path).expanduser()
    options = options or ReadingOptions()
    parts = find_parts(path)
    states = tuple(map(members.state_of_zip, parts))
    listings = [members.list_members(part, options) for part in parts]
    members.check_unpacked(path, listings, options)
    _check_members(parts, listings)
    if len(parts) > 1:
        _leave_out_numbered_folders(path, listings)

    folders = sorted(set().union(*(listing.folders() for listing in listings)))
    layout = _layout(path, [folder.split("/") for folder in folders if folder])
    places = {folder: layout.place(folder) for folder in folders}
    splits = collections.defaultdict(list)
    left_out: collections.Counter[str] = collections.Counter()
    for listing in listings:
        left_out.update(listing.left_out)
    for member, part in _taken(parts, listings):
        folder, _, file = member.name.rpartition("/")
        if place := places[folder]:
            filename = member.name if place.folder == folder else f"{place.folder}/{file}"
            picture = Picture(filename, place.label, member.member, member.stamp, part)
            splits[place.split].append(picture)
        else:
            left_out["outside the class folders"] += 1

    classes = _common_classes(path, splits, left_out)
    for listed in splits.values():
        listed.sort(key=operator.attrgetter("label", "filename"))
    return Archive(
        path=path,
        parts=parts,
        options=options,
        state=states if all(states) else (),
        classes=classes,
        counts={split: len(splits[split]) for split in sorted(splits)},
        splits={split: tuple(splits[split]) for split in sorted(splits)},
        left_out=dict(sorted(left_out.items())),
        warnings=(
            *_alike(classes),
            *_lost_folders(layout, classes, listings),
            *_irregular([name for listing in listings for name in listing.irregular]),
        ),
    )


def _leave_out_numbered_folders(path: pathlib.Path, listings: Sequence[Listing]) -> None:
    """Takes the folder around everything in each part out of the names, if these are numbered.

    Raises:
      ArchiveError: The folders may be around everything, or may be classes.
    """
    folders = [(listing, listing.folders() - {""}) for listing in listings]
    listings = [listing for listing, names in folders if names]
    trees = [[name.split("/") for name in names] for _, names in folders if names]
    level = 0
    while True:
        tops = [{folder[level] for folder in tree if len(folder) > level} for tree in trees]
        inner = [
            {folder[level + 1] for folder in tree if len(folder) > level + 1} for tree in trees
        ]
        names = set().union(*tops)
        if not names or _splits_among(names):
            return
        if not all(len(own) == 1 and below for own, below in zip(tops, inner, strict=True)):
            return _check_inner(path, tops, inner)
        if len(names) > 1:
            break
        level += 1  # All parts are in the same folder, which `_layout` leaves out.
    have_images = any(len(folder) == level + 1 for tree in trees for folder in tree)
    numbered = all(map(_NUMBERED.search, names))
    if have_images and not numbered:
        return  # These are classes.
    if have_images or not numbered:
        named = _listed(f"{name}/" for name in names)
        raise ArchiveError(
            f"archive {path}: {named} may be classes, or folders around the classes of each part; "
            "if they are classes, pack the parts again with a folder train/ around them; if not, "
            "pack the parts again without them"
        )
    for listing, tree in zip(listings, trees, strict=True):
        around = "".join(f"{name}/" for name in tree[0][: level + 1])
        listing.leave_out_of_names(around)


def _check_inner(
    path: pathlib.Path, tops: Sequence[Collection[str]], inner: Sequence[Collection[str]]
) -> None:
    """Refuses a part with one folder around those that other parts have without it."""
    for own, below in zip(tops, inner, strict=True):
        others = set().union(*tops) - set(own)
        if len(own) == 1 and (twice := others & set(below)):
            (around,) = own
            raise ArchiveError(
                f"archive {path}: some parts hold {_listed(f'{name}/' for name in twice)}, and "
                f"others {_listed(f'{around}/{name}/' for name in twice)}; pack the parts again, "
                f"all with or all without {around}/"
            )


def _check_members(parts: Sequence[pathlib.Path], listings: Sequence[Listing]) -> None:
    """Refuses images that must not be read."""
    for part, listing in zip(parts, listings, strict=True):
        if faulty := [member for member in listing.members if member.fault]:
            first = min(faulty, key=operator.attrgetter("name"))
            raise ArchiveError(f"archive {part}: {members.shown(first.member)} {first.fault}")


def _taken(
    parts: Sequence[pathlib.Path], listings: Sequence[Listing]
) -> Iterator[tuple[Member, int]]:
    """Yields the images of all parts, sorted by name, and takes them out of the listings.

    Yields:
      An image and the place of its part.

    Raises:
      ArchiveError: Two images have the same name.
    """

    def taken(listing: Listing, part: int) -> Iterator[tuple[Member, int]]:
        listing.members.sort(key=operator.attrgetter("name"), reverse=True)
        while listing.members:
            yield listing.members.pop(), part

    images = [taken(listing, part) for part, listing in enumerate(listings)]
    before, part_before = None, 0
    for member, part in heapq.merge(*images, key=lambda image: image[0].name):
        if before and before.name == member.name:
            fault = "appears twice, maybe with its accents written in another way; rename one"
            if part != part_before:
                fault = f"is in {parts[part_before]} too; remove one of them, or rename it"
            raise ArchiveError(f"archive {parts[part]}: {members.shown(member.member)} {fault}")
        yield member, part
        before, part_before = member, part


@dataclasses.dataclass(frozen=True)
class _Place:
    """What a folder is for: a split, a class, and the folder in the filenames of its images."""

    split: str
    label: str
    folder: str


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Which folders are splits and classes.

    Attributes:
      root: The folders around everything.
      splits: The split of each folder in the root; None if these folders are classes.
      doubled: Splits with one more folder of their name around the classes, as in train/train/.
    """

    root: _Folder
    splits: Mapping[str, str] | None
    doubled: Collection[str] = ()

    def place(self, folder: str) -> _Place | None:
        """Returns what a folder is for, or None if it is in no class folder."""
        parts = folder.split("/")
        level = len(self.root)
        if not folder or parts[:level] != self.root or len(parts) == level:
            return None
        if self.splits is None:
            return _Place("train", parts[level], "/".join(parts[level:]))
        top, *below = parts[level:]
        if top in self.doubled:
            below = below[1:]
        if top not in self.splits or not below:
            return None
        return _Place(self.splits[top], below[0], "/".join([top, *below]))


def _layout(path: pathlib.Path, folders: Collection[_Folder]) -> _Layout:
    """Returns the layout of the folders with images.

    Raises:
      ArchiveError: Some folders are splits and others would be classes.
    """
    root: _Folder = []
    while True:
        level = len(root)
        below: dict[str, list[_Folder]] = collections.defaultdict(list)
        for folder in folders:
            if len(folder) > level:
                below[folder[level]].append(folder)
        splits = _splits_among(below)
        around = "".join(f"{name}/" for name in root)
        classes = {
            name: {folder[level + 1] for folder in found if len(folder) > level + 1}
            for name, found in below.items()
        }
        if any(classes[name] for name in splits):
            _check_splits(path, around, splits, classes)
            doubled = {
                name
                for name in splits
                if classes[name] == {name} and any(len(f) > level + 2 for f in below[name])
            }
            return _Layout(root, splits, doubled)
        if len(below) != 1 or not any(classes.values()):
            break
        ((name, folders),) = below.items()
        root = [*root, name]
    _check_classes(path, around, below)
    return _Layout(root, splits if below.keys() <= splits.keys() else None)


def _splits_among(names: Iterable[str]) -> dict[str, str]:
    """Returns the splits of folders beside each other, by their names.

    train/ is a split, and seg_train/ is one beside seg_test/.
    """
    alike: dict[tuple[str, str], dict[str, str]] = collections.defaultdict(dict)
    for name in names:
        if found := _SPLIT.search(name.lower()):
            start, end = found.span()
            alike[name[:start].lower(), name[end:].lower()][name] = _SPLITS[found[0]]
    return {
        name: split
        for around, splits in alike.items()
        if around == ("", "") or len(set(splits.values())) > 1
        for name, split in splits.items()
    }


def _check_splits(
    path: pathlib.Path,
    root: str,
    splits: Mapping[str, str],
    below: Mapping[str, Collection[str]],
) -> None:
    """Refuses folders if only some of them hold the class folders of a split."""
    split = min(folder for folder in splits if below[folder])
    others = [folder for folder in below if folder not in splits or not below[folder]]
    if not others:
        return
    named = _listed(f"{root}{folder}/" for folder in others)
    if splits.keys() >= set(others):
        raise ArchiveError(
            f"archive {path}: class folders in {root}{split}/ ({_listed(below[split])}) but none "
            f"in {named}; sort the images there into class folders, or move {named} elsewhere"
        )
    would_be = "a class of its own" if len(others) == 1 else "classes of their own"
    raise ArchiveError(
        f"archive {path}: {root}{split}/ holds class folders ({_listed(below[split])}), beside "
        f"{named}, which would be {would_be}; if {root}{split}/ is a split, move {named} elsewhere "
        "or into it; if it is a class, rename it"
    )


def _check_classes(path: pathlib.Path, root: str, below: Mapping[str, list[_Folder]]) -> None:
    """Refuses class folders if one of them holds a split, or if they hold the same folders."""
    level = root.count("/")
    names = {name for folders in below.values() for folder in folders for name in folder}
    nested = {name for name in names if _NESTED_SPLIT.fullmatch(name.lower())}
    for top, folders in below.items():
        for folder in folders if nested else ():
            for depth in range(level + 1, len(folder) - 1):
                if folder[depth] in nested:
                    split = "/".join(folder[: depth + 1])
                    others = _listed(f"{root}{other}/" for other in below if other != top)
                    raise ArchiveError(
                        f"archive {path}: {split}/ holds class folders ({folder[depth + 1]}), "
                        f"beside {others}; if it is a split, move {others} elsewhere; if "
                        f"{root}{top}/ is a class, rename {split}/"
                    )
    held = {
        top: {folder[-1] for folder in folders}
        for top, folders in below.items()
        if all(len(folder) > level + 1 for folder in folders)  # A split has no images of its own.
    }
    counts = collections.Counter(name for names in held.values() for name in names)
    common = {name for name, count in counts.items() if count > 1}
    alike = [top for top, names in held.items() if len(names & common) > 1]
    if len(alike) > 1:
        outer = _listed(f"{root}{top}/" for top in alike)
        raise ArchiveError(
            f"archive {path}: {outer} hold folders of the same names ({_listed(common)}); if "
            f"these are the classes, rename {outer} to train/, test/ or val/; if {outer} are the "
            "classes, move them into a folder train/"
        )


def _common_classes(
    path: pathlib.Path, splits: Mapping[str, list[Picture]], left_out: Mapping[str, int]
) -> tuple[str, ...]:
    """Returns the sorted classes, the same in every split, at least two."""
    by_split = {split: {p.label for p in images} for split, images in splits.items()}
    classes = sorted(set().union(*by_split.values()))
    found = _counted(left_out)
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
            if alike := _alike(labels | set(missing)):
                raise ArchiveError(f"archive {path}: {alike[0]}; give them the same name")
            raise ArchiveError(
                f"archive {path}: classes in {there}/ but not in {here}/: {_listed(missing)}; add "
                f"images to {_listed(f'{here}/{name}/' for name in missing)}, or remove "
                f"{_listed(f'{there}/{name}/' for name in missing)}"
            )
    return tuple(classes)


def _alike(labels: Collection[str]) -> list[str]:
    """Returns what is said of classes whose names people, or other file systems, confuse."""
    spellings: dict[str, list[str]] = collections.defaultdict(list)
    for label in labels:
        letters = unicodedata.normalize("NFKC", label).lower()
        visible = "".join(letter for letter in letters if unicodedata.category(letter) != "Cf")
        spellings[" ".join(visible.split())].append(label)
    return [
        f"the class folders {_listed(map(members.shown, named))} differ only in capitals, blanks "
        "or invisible letters"
        for named in spellings.values()
        if len(named) > 1
    ]


def _lost_folders(
    layout: _Layout, classes: Collection[str], listings: Sequence[Listing]
) -> list[str]:
    """Returns a warning for each folder that would be a class if it had images."""
    lost: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    others = itertools.chain.from_iterable(listing.others.items() for listing in listings)
    for folder, kinds in others:
        place = layout.place(unicodedata.normalize("NFC", folder))
        if place and place.label not in classes:
            lost[place.label].update(kinds)
    return [
        f"the folder {members.shown(label)} is not a class, because it has no images "
        f"({_counted(kinds)})"
        for label, kinds in sorted(lost.items())
    ]


def _irregular(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"left out {_listed(map(members.shown, names))}, because images must be regular files"]


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _listed(names: Iterable[str]) -> str:
    """Returns the sorted names as text, at most four."""
    names = sorted(names)
    if len(names) > 4:
        names[3:] = [f"{len(names) - 3} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
