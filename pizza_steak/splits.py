"""Chooses the images of training, validation and test: by name, or cut by class and content.

A split is named by a TFDS split string, such as `train[:80%]`, or it is a fraction. A fraction is
cut out of the split `train`, in each class by a hash of the images' bytes: the test split gets the
lowest hashes, validation the highest, training the rest. So the cut is the same in every process
and on every machine, the test split does not depend on the size of the validation split, and added
images move few others.
"""

import dataclasses
import math
import types
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds

from pizza_steak.configuration import parse_fold
from pizza_steak.errors import FlagError, UserError

PURPOSES = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Request:
    """The requested splits, as given by the flags of these names.

    Attributes:
      train_split: A split string, a fraction such as "0.5", or None: all of `train` that validation
        and test do not take.
      validation_split: A split string, a fraction, "none" for no validation, or None: the split
        `validation` if there is one, else `validation_fraction`.
      test_split: A split string, a fraction, or None: the split `test` if there is one, else
        `test_fraction`.
      validation_fraction: Above 0 and below 1.
      test_fraction: Above 0 and below 1.
      validation_fold: "1/4" to "4/4": validation gets that one of four parts of the training
        images, and training the rest and the validation images; or "3/7", or None.
    """

    train_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    validation_fraction: float = 0.15
    test_fraction: float = 0.15
    validation_fold: str | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The splits as far as they are known before images are read.

    Attributes:
      texts: Description of each split, by purpose; without "validation" if there is none.
      named: Rows of the named splits, by purpose.
      fractions: Fraction of `base` for each split that is cut, by purpose.
      base: The rows to cut.
      fold: The number of the part of the training images that validates, and the number of parts.
    """

    texts: Mapping[str, str]
    named: Mapping[str, np.ndarray]
    fractions: Mapping[str, float]
    base: np.ndarray
    fold: tuple[int, int] | None = None

    def rows(self, labels: np.ndarray, digests: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the rows of each split, by purpose.

        Args:
          labels: int array of shape (N,), class indices of all rows.
          digests: uint64 array of shape (N, 2), hashes of the images' bytes.

        Raises:
          UserError: A split gets no images.
        """
        places = cut(labels[self.base], digests[self.base], self.fractions)
        found = {purpose: self.base[places[purpose]] for purpose in ("train", *self.fractions)}
        if "train" in self.named:
            taken = [found[purpose] for purpose in self.fractions]
            found["train"] = _without(self.named["train"], taken)
        found = {**self.named, **found}
        if self.fold:
            number, count = self.fold
            train = found["train"]
            validates = parts(labels[train], digests[train], count) == number - 1
            found["train"] = np.sort(np.concatenate([train[~validates], found["validation"]]))
            found["validation"] = train[validates]
        for purpose, text in self.texts.items():
            if not found[purpose].size:
                flag = f"--{purpose}_split"
                if self.fold and purpose != "test":
                    raise UserError(
                        f"--validation_fold: {text} comes to no image; expected fewer parts"
                    )
                raise UserError(
                    f"{flag}: {text} comes to no image: each class has too few different ones; "
                    + (f"pass {flag}=none" if purpose == "validation" else f"pass another {flag}")
                )
        return {purpose: found[purpose] for purpose in self.texts}


def plan(request: Request, counts: Mapping[str, int], name: str) -> Plan:
    """Plans each split.

    Args:
      request: The requested splits.
      counts: The number of images of each existing split, by name.
      name: Name of the dataset, for messages.

    Raises:
      UserError: A split string is wrong, fractions leave no images, or there is nothing to cut.
    """
    asked = {purpose: _asked(request, purpose, counts) for purpose in PURPOSES}
    fractions = {purpose: part for purpose, part in asked.items() if isinstance(part, float)}
    _check_fractions(request, fractions)
    strings = {purpose: part for purpose, part in asked.items() if isinstance(part, str)}
    named = {
        purpose: rows(part, counts, f"--{purpose}_split", name) for purpose, part in strings.items()
    }
    train = rows("train", counts, "--train_split", name) if "train" in counts else np.arange(0)
    base = train[np.isin(train, named.get("train", train))]
    whole = "train" if len(base) == len(train) else strings["train"]
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
    texts |= strings
    if asked["train"] is None:
        texts["train"] = _less("train", [p for p in tested if p in fractions or p in others])
    elif "train" in named:
        texts["train"] = _less(strings["train"], [p for p in tested if p in fractions])
    texts = {purpose: texts[purpose] for purpose in PURPOSES if purpose in texts}
    fold = parse_fold(request.validation_fold)
    if fold:
        if "validation" not in texts:
            raise UserError(
                f"--validation_fold={request.validation_fold}: without validation images, there is "
                "nothing to exchange; expected a --validation_split"
            )
        part = "part {} of {} of {}".format(*fold, texts["train"])
        texts |= {"train": f"{texts['train']}+{texts['validation']} less validation"}
        texts |= {"validation": part}
    return Plan(texts, named, fractions, base, fold)


def rows(spec: str, counts: Mapping[str, int], flag: str = "split", name: str = "") -> np.ndarray:
    """Returns the rows of a TFDS split string such as `train`, `train[:80%]` or `train+test`.

    Args:
      spec: The split string.
      counts: The number of images of each split, by name. Rows number the images of all splits,
        split after split by name.
      flag: The flag of the split string, for messages.
      name: Name of the dataset, for messages.

    Returns:
      int64 array, in the order of the split string.

    Raises:
      UserError: The split does not exist, is empty, or is no split string.
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
    """Returns the value of a number, or None for a split string."""
    try:
        return float(text)
    except ValueError:
        return None


def cut(
    labels: np.ndarray, digests: np.ndarray, fractions: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Cuts images into splits, each class separately, in the order of the digests.

    A class of three or more different images has one in each split. A class of two has them in the
    training and the test split (or validation, if no test split is cut). The same bytes are never
    in two splits: bytes that several classes have follow the first of these classes.

    Args:
      labels: int array of shape (N,), class indices.
      digests: uint64 array of shape (N, 2), hashes of the images' bytes.
      fractions: Fractions of each class, by purpose; without "train", training gets the rest.

    Returns:
      For each of `PURPOSES`, the indices of its images, increasing.
    """
    if not labels.size:
        return {purpose: np.arange(0) for purpose in PURPOSES}
    contents, sizes, classes = _contents(labels, digests)
    purposes = np.full(len(sizes), -1)
    for class_contents in classes:
        train, validation, test = _cut_class(sizes[class_contents], fractions)
        purposes[class_contents[train]] = PURPOSES.index("train")
        purposes[class_contents[validation]] = PURPOSES.index("validation")
        purposes[class_contents[test]] = PURPOSES.index("test")
    found = purposes[contents]
    return {purpose: np.flatnonzero(found == code) for code, purpose in enumerate(PURPOSES)}


def parts(labels: np.ndarray, digests: np.ndarray, count: int) -> np.ndarray:
    """Returns which of `count` parts of equal size each image is in, 0 to `count` - 1.

    Each class is divided separately, in the order of the digests. The same bytes are never in two
    parts, as with `cut`.

    Args:
      labels: int array of shape (N,), class indices; N is at least 1.
      digests: uint64 array of shape (N, 2), hashes of the images' bytes.
      count: The number of parts.
    """
    contents, sizes, classes = _contents(labels, digests)
    found = np.zeros(len(sizes), np.int64)
    for class_contents in classes:
        middles = np.cumsum(sizes[class_contents]) - sizes[class_contents] / 2
        found[class_contents] = middles * count // sizes[class_contents].sum()
    return found[contents]


def _contents(
    labels: np.ndarray, digests: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Numbers the different digests, in their order.

    Returns:
      The number of each image's content; the number of images of each content in its class, which
      is the first class that has it; and the contents of each class.
    """
    contents = _numbers(digests)
    owners = np.full(contents.max() + 1, labels.max(), labels.dtype)
    np.minimum.at(owners, contents, labels)
    sizes = np.bincount(contents[labels == owners[contents]])
    by_owner = np.argsort(owners, kind="stable")
    classes = np.split(by_owner, np.flatnonzero(np.diff(owners[by_owner])) + 1)
    return contents, sizes, classes


def _numbers(digests: np.ndarray) -> np.ndarray:
    """Returns the number of each digest among the different ones, in their order."""
    firsts, seconds = np.ascontiguousarray(digests.T)
    order = np.argsort(firsts)  # To sort by both takes five times as long.
    in_order = firsts[order]
    differs = np.ones(len(digests), bool)
    differs[1:] = in_order[1:] != in_order[:-1]
    equal = np.flatnonzero(~differs)
    if (seconds[order[equal]] != seconds[order[equal - 1]]).any():
        order = np.lexsort((seconds, firsts))
        differs[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    numbers = np.empty(len(digests), np.int64)
    numbers[order] = np.cumsum(differs) - 1
    return numbers


def shared(digests: np.ndarray, others: np.ndarray) -> int:
    """Returns how many images have the same bytes as one of the others.

    Args:
      digests: uint64 array of shape (N, 2).
      others: uint64 array of shape (M, 2).
    """
    # NumPy's sort takes a hundredth of the time of its functions for sets.
    firsts = np.sort(np.concatenate([digests[:, 0], others[:, 0]]))
    repeated = firsts[:-1][firsts[1:] == firsts[:-1]]
    if not len(repeated):
        return 0

    def candidates(digests: np.ndarray) -> np.ndarray:
        places = np.searchsorted(repeated[:-1], digests[:, 0])
        return digests[repeated[places] == digests[:, 0]]

    digests, others = candidates(digests), candidates(others)
    contents = _numbers(np.concatenate([digests, others]))
    return int(np.isin(contents[: len(digests)], contents[len(digests) :]).sum())


def _cut_class(sizes: np.ndarray, fractions: Mapping[str, float]) -> tuple[slice, slice, slice]:
    """Returns the slices of a class's contents for training, validation and test.

    Args:
      sizes: Number of images of each content, in the order of the digests.
      fractions: As for `cut`.
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
    """Returns how many of the first contents hold the nearest to `images` images, 1 to `most`."""
    totals = np.cumsum(sizes[:most])
    return 1 + int(np.abs(totals - math.floor(images + 0.5)).argmin())


def _asked(request: Request, purpose: str, counts: Collection[str]) -> str | float | None:
    """Returns a split string, a fraction, or None: the rest for training, else no split."""
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
        raise FlagError(
            f"--{flag}={text}: expected a fraction above 0 and below 1, or a split string such as "
            "'train[:80%]'"
        )
    return text if part is None else part


def _check_fractions(request: Request, fractions: Mapping[str, float]) -> None:
    for purpose in ("validation", "test"):
        part = getattr(request, f"{purpose}_fraction")
        if not 0 < part < 1:
            raise FlagError(
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
