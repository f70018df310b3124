"""Which images are trained on, validated on and tested on: named, or cut by class and content.

A split is named by a TFDS split string, such as `train[:80%]`, or it is a fraction. A fraction is
cut out of the images of the split `train`, in each class by a hash of the images' bytes: the test
split has the lowest hashes, validation the highest, training those between them. So the cut is the
same in every process and on every machine, the test split does not depend on the size of the
validation split, and images that are added move few others.
"""

import dataclasses
import math
import types
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds

from pizza_steak.errors import UserError

PURPOSES = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for, as the flags of these names say it.

    Attributes:
      train_split: A split string, a fraction such as "0.5", or None: all of `train` that validation
        and test do not take.
      validation_split: A split string, a fraction, "none" for no validation, or None: the split
        `validation` if there is one, else `validation_fraction`.
      test_split: A split string, a fraction, or None: the split `test` if there is one, else
        `test_fraction`.
      validation_fraction: Above 0 and below 1.
      test_fraction: Above 0 and below 1.
    """

    train_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    validation_fraction: float = 0.15
    test_fraction: float = 0.15


@dataclasses.dataclass(frozen=True)
class Plan:
    """A request for certain splits and counts: all that can be said before an image is read.

    Attributes:
      texts: What each split is, for people, by its purpose; without "validation" if there is none.
      named: Rows of the splits that have a name, by their purpose.
      fractions: Fractions of `base` of the splits that are cut, by their purpose.
      base: The rows that are cut.
    """

    texts: Mapping[str, str]
    named: Mapping[str, np.ndarray]
    fractions: Mapping[str, float]
    base: np.ndarray

    def rows(self, labels: np.ndarray, digests: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the rows of each split, by its purpose.

        Args:
          labels: int array of shape (N,), of all rows.
          digests: uint64 array of shape (N, 2), hashes of the images' bytes.

        Raises:
          UserError: A split gets no image.
        """
        places = cut(labels[self.base], digests[self.base], self.fractions)
        found = {purpose: self.base[places[purpose]] for purpose in ("train", *self.fractions)}
        if "train" in self.named:
            taken = [found[purpose] for purpose in self.fractions]
            found["train"] = _without(self.named["train"], taken)
        found = self.named | found
        for purpose, text in self.texts.items():
            if not found[purpose].size:
                flag = f"--{purpose}_split"
                raise UserError(
                    f"{flag}: {text} comes to no image: each class has too few different ones; "
                    + (f"pass {flag}=none" if purpose == "validation" else f"pass another {flag}")
                )
        return {purpose: found[purpose] for purpose in self.texts}


def plan(request: Request, counts: Mapping[str, int], name: str) -> Plan:
    """Finds out what each split is.

    Args:
      request: What is asked for.
      counts: The number of images of each split that is there, by its name.
      name: Of what has these splits, for people.

    Raises:
      UserError: A split string is wrong, fractions leave nothing, or there is nothing to cut.
    """
    asked = {purpose: _asked(request, purpose, counts) for purpose in PURPOSES}
    fractions = {purpose: part for purpose, part in asked.items() if isinstance(part, float)}
    _check_fractions(request, fractions)
    named = {
        purpose: rows(part, counts, f"--{purpose}_split", name)
        for purpose, part in asked.items()
        if isinstance(part, str)
    }
    train = rows("train", counts, "--train_split", name) if "train" in counts else np.arange(0)
    base = train[np.isin(train, named.get("train", train))]
    whole = "train" if len(base) == len(train) else asked["train"]
    tested = [purpose for purpose in ("validation", "test") if asked[purpose] is not None]
    others = [p for p in tested if p in named and np.isin(named[p], base).any()]
    base = _without(base, [named[purpose] for purpose in others])
    from_base = [purpose for purpose in PURPOSES if purpose in fractions]
    if asked["train"] is None:
        from_base.append("train")
    if from_base and not base.size:
        raise UserError(
            f"--{from_base[0]}_split: no images of train are left to cut it out of ({name} has "
            f"{_said(counts)}); pass a split string, such as --{from_base[0]}_split={min(counts)}"
        )
    texts = {p: f"{100 * part:.4g} % of {_less(whole, others)}" for p, part in fractions.items()}
    texts |= {purpose: asked[purpose] for purpose in named}
    if asked["train"] is None:
        texts["train"] = _less("train", [p for p in tested if p in fractions or p in others])
    elif "train" in named:
        texts["train"] = _less(asked["train"], [p for p in tested if p in fractions])
    texts = {purpose: texts[purpose] for purpose in PURPOSES if purpose in texts}
    return Plan(texts, named, fractions, base)


def rows(spec: str, counts: Mapping[str, int], flag: str = "split", name: str = "") -> np.ndarray:
    """Returns the rows of a TFDS split string such as `train`, `train[:80%]` or `train+test`.

    Args:
      spec: The split string.
      counts: The number of images of each split, by its name. Rows number the images of all splits,
        split after split by name.
      flag: What the split string was given as, for people.
      name: Of what has these splits, for people.

    Returns:
      int64 array, in the order of the split string.

    Raises:
      UserError: There is no such split, it cannot be read as a split string, or it is empty.
    """
    names = sorted(counts)
    infos = {split: types.SimpleNamespace(num_examples=counts[split]) for split in names}
    starts = dict(zip(names, np.cumsum([0, *(counts[split] for split in names)]), strict=False))
    try:
        parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise UserError(f"{flag}={spec!r}: {name} has {_said(counts)}; {_remedy(flag)}") from error
    found = []
    for part in parts:
        start, split = starts[part.splitname], counts[part.splitname]
        stop = split if part.to is None else part.to
        found.append(start + np.arange(part.from_ or 0, stop, dtype=np.int64))
    if not sum(map(len, found)):
        raise UserError(f"{flag}={spec!r}: holds no images; expected at least one")
    return np.concatenate(found)


def fraction(text: str) -> float | None:
    """Returns the number that a text is; None for a split string."""
    try:
        return float(text)
    except ValueError:
        return None


def cut(
    labels: np.ndarray, digests: np.ndarray, fractions: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Cuts images into splits: each class by itself, in the order of the digests.

    Each class of three different images or more gets one into each split, one of two images gets
    them into the training and the test split (or, where that is not cut, validation). The same
    bytes are never in two splits: bytes of several classes go where the first of these puts them.

    Args:
      labels: int array of shape (N,).
      digests: uint64 array of shape (N, 2).
      fractions: Of each class, by purpose; without "train", that gets all that is left.

    Returns:
      For each of `PURPOSES`, the places of its images, rising.
    """
    if not labels.size:
        return {purpose: np.arange(0) for purpose in PURPOSES}
    # A content is one of the different digests, numbered in their order.
    contents = np.unique(digests, axis=0, return_inverse=True)[1].reshape(-1)
    owners = np.full(contents.max() + 1, labels.max(), labels.dtype)
    np.minimum.at(owners, contents, labels)
    sizes = np.bincount(contents[labels == owners[contents]])
    by_owner = np.argsort(owners, kind="stable")
    purposes = np.full(len(owners), -1)
    for class_contents in np.split(by_owner, np.flatnonzero(np.diff(owners[by_owner])) + 1):
        train, validation, test = _cut_class(sizes[class_contents], fractions)
        purposes[class_contents[train]] = PURPOSES.index("train")
        purposes[class_contents[validation]] = PURPOSES.index("validation")
        purposes[class_contents[test]] = PURPOSES.index("test")
    found = purposes[contents]
    return {purpose: np.flatnonzero(found == code) for code, purpose in enumerate(PURPOSES)}


def shared(digests: np.ndarray, others: np.ndarray) -> int:
    """Returns how many of the images have the same bytes as one of the others.

    Args:
      digests: uint64 array of shape (N, 2).
      others: uint64 array of shape (M, 2).
    """
    both = np.concatenate([digests, others])
    contents = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
    return int(np.isin(contents[: len(digests)], contents[len(digests) :]).sum())


def _cut_class(sizes: np.ndarray, fractions: Mapping[str, float]) -> tuple[slice, slice, slice]:
    """Returns which contents of a class are for training, validation and test.

    Args:
      sizes: How many images have each content, in the order of the digests.
      fractions: As `cut` takes them.
    """
    count, images = len(sizes), sizes.sum()
    test = validation = 0
    if "test" in fractions and count > 1:
        # Two are left even if no validation split is cut: the test split is the same without it.
        test = _nearest(sizes, fractions["test"] * images, max(1, count - 2))
    if "validation" in fractions and count - test > 1:
        validation = _nearest(sizes[::-1], fractions["validation"] * images, count - test - 1)
    end = count - validation
    train = end - test
    if "train" in fractions:
        train = _nearest(sizes[test:end], fractions["train"] * images, train)
    return slice(test, test + train), slice(end, count), slice(0, test)


def _nearest(sizes: np.ndarray, images: float, most: int) -> int:
    """Returns how many of the first contents come nearest to so many images: 1 to `most`."""
    totals = np.cumsum(sizes[:most])
    return 1 + int(np.abs(totals - math.floor(images + 0.5)).argmin())


def _asked(request: Request, purpose: str, counts: Collection[str]) -> str | float | None:
    """Returns a split string, a fraction, or None: for training, all that is left, else none."""
    flag = f"{purpose}_split"
    text = getattr(request, flag)
    if text is None:
        if purpose == "train":
            return None
        return purpose if purpose in counts else getattr(request, f"{purpose}_fraction")
    if purpose == "validation" and text == "none":
        return None
    part = fraction(text)
    if part is not None and not 0 < part < 1:
        raise UserError(
            f"--{flag}={text}: expected a fraction above 0 and below 1, or a split string such as "
            "'train[:80%]'"
        )
    return text if part is None else part


def _check_fractions(request: Request, fractions: Mapping[str, float]) -> None:
    for purpose in ("validation", "test"):
        part = getattr(request, f"{purpose}_fraction")
        if not 0 < part < 1:
            raise UserError(
                f"--{purpose}_fraction={part:g}: expected a fraction above 0 and below 1"
            )
    left = 1 - sum(fractions.values())
    if left < -1e-9 or ("train" not in fractions and left < 1e-9):
        flags = []
        for purpose, part in fractions.items():
            kind = "fraction" if getattr(request, f"{purpose}_split") is None else "split"
            flags.append(f"--{purpose}_{kind}={part:g}")
        raise UserError(
            f"{' and '.join(flags)}: leave nothing to train on; expected less than 1 in all"
        )


def _without(found: np.ndarray, taken: Sequence[np.ndarray]) -> np.ndarray:
    return found[~np.isin(found, np.concatenate(taken))] if taken else found


def _less(text: str, purposes: Sequence[str]) -> str:
    return f"{text} less {' and '.join(purposes)}" if purposes else text


def _said(counts: Mapping[str, int]) -> str:
    said = ", ".join(f"{split} ({count:,} images)" for split, count in sorted(counts.items()))
    return said if len(counts) > 1 else f"only {said}"


def _remedy(flag: str) -> str:
    if flag in ("--validation_split", "--test_split"):
        return f"pass {flag}=0.15 to cut 15 % out of train, or a slice such as 'train[80%:]'"
    return "expected one of these or a slice of one, such as 'train[:80%]'"
