"""Splits: what names and fractions come to, and how a class is cut."""

import dataclasses
import itertools

import numpy as np
import pytest

from pizza_steak.configuration import parse_fold
from pizza_steak.errors import UserError
from pizza_steak.splits import PURPOSES, Request, cut, parts, plan, shared

BOTH = {"validation": 0.15, "test": 0.15}
COUNTS = {"train": 100, "test": 40}


def digests(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 2**64, (count, 2), dtype=np.uint64)


def sides(labels, hashes, fractions) -> dict[tuple, str]:
    """The split of each image, by its digest."""
    places = cut(np.asarray(labels), hashes, fractions)
    return {
        tuple(hashes[place]): purpose for purpose in PURPOSES for place in places[purpose].tolist()
    }


# How a class is cut.


@pytest.mark.parametrize(
    "test, validation", [*itertools.product([0.01, 0.15, 0.3, 0.49], [0.15, 0.5])]
)
def test_each_class_is_cut_exactly_and_every_image_is_in_one_split(test, validation):
    counts = [3, 4, 7, 20, 61, 500]
    labels = np.repeat(np.arange(len(counts)), counts)
    places = cut(
        labels,
        digests(np.random.default_rng(0), len(labels)),
        {"validation": validation, "test": test},
    )
    assert sorted(np.concatenate([*places.values()])) == list(range(len(labels)))
    for label, count in enumerate(counts):
        found = {purpose: np.sum(labels[rows] == label) for purpose, rows in places.items()}
        assert abs(found["test"] - test * count) <= 1
        assert abs(found["validation"] - validation * count) <= 1
        assert min(found.values()) >= 1


@pytest.mark.parametrize(
    "count, fractions, expected",
    [
        (1, BOTH, (1, 0, 0)),
        (2, BOTH, (1, 0, 1)),
        (3, BOTH, (1, 1, 1)),
        (2, {"validation": 0.15}, (1, 1, 0)),
        (1, {"validation": 0.15}, (1, 0, 0)),
        (3, {"test": 0.9}, (2, 0, 1)),
        (3, {"validation": 0.5, "test": 0.49}, (1, 1, 1)),
        (10, {"validation": 0.5, "test": 0.49}, (1, 4, 5)),
        (20, {"train": 0.5, **BOTH}, (10, 3, 3)),
        (20, {"train": 0.7, **BOTH}, (14, 3, 3)),
    ],
)
def test_small_classes_keep_an_image_for_training(count, fractions, expected):
    places = cut(np.zeros(count, int), digests(np.random.default_rng(0), count), fractions)
    assert tuple(len(places[purpose]) for purpose in PURPOSES) == expected


def test_the_cut_does_not_depend_on_the_order_of_the_rows():
    rng = np.random.default_rng(0)
    labels, hashes = rng.integers(0, 5, 300), digests(rng, 300)
    order = rng.permutation(300)
    assert sides(labels, hashes, BOTH) == sides(labels[order], hashes[order], BOTH)


def test_the_test_split_does_not_depend_on_validation_nor_this_on_the_size_of_the_test_split():
    rng = np.random.default_rng(0)
    labels, hashes = rng.integers(0, 5, 300), digests(rng, 300)
    labels[:3] = 5  # A class with no image to spare.
    expected = cut(labels, hashes, BOTH)
    for fractions in ({"test": 0.15}, {"test": 0.15, "validation": 0.6}):
        np.testing.assert_array_equal(cut(labels, hashes, fractions)["test"], expected["test"])
    for fractions in ({"test": 0.6, "validation": 0.15}, {"train": 0.1, **BOTH}):
        found = cut(labels, hashes, fractions)["validation"]
        np.testing.assert_array_equal(found, expected["validation"])


def test_images_that_are_added_move_few_others():
    moved = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        labels, hashes = rng.integers(0, 3, 1010), digests(rng, 1010)
        before, after = sides(labels[:1000], hashes[:1000], BOTH), sides(labels, hashes, BOTH)
        moved.append(sum(after[image] != split for image, split in before.items()))
    assert np.mean(moved) < 5
    assert max(moved) <= 12


def test_the_same_bytes_are_never_in_two_splits():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        kinds = digests(rng, 120)
        picked = rng.integers(0, 120, 300)
        labels = rng.integers(0, 3, 300)  # Many of them in several classes.
        places = cut(labels, kinds[picked], BOTH)
        contents = [{*picked[rows]} for rows in places.values()]
        assert not any(a & b for a, b in itertools.combinations(contents, 2))
        assert sum(map(len, places.values())) == 300
        assert all(len(rows) > 20 for rows in places.values())


@pytest.mark.parametrize("values", [1, 2, 12, 40])
@pytest.mark.parametrize("count", [0, 1, 200])
def test_digests_are_the_same_if_both_halves_are(values, count):
    rng = np.random.default_rng(values)
    hashes, others = rng.integers(0, values, (2, max(count, 1), 2)).astype(np.uint64)
    there = {*map(tuple, others[:count].tolist())}
    expected = sum(tuple(one) in there for one in hashes.tolist())
    assert shared(hashes, others[:count]) == expected
    assert shared(others[:count], hashes[:0]) == 0
    places = cut(np.zeros(len(hashes), int), hashes, BOTH)
    sides = [{*map(tuple, hashes[rows].tolist())} for rows in places.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == len({*map(tuple, hashes.tolist())})


@pytest.mark.parametrize("seed", range(20))
def test_parts_keep_equal_digests_together_and_no_others(seed):
    digests = np.random.default_rng(seed).integers(0, 3, (40, 2), np.uint64)
    found = parts(np.zeros(40, int), digests, 40)
    for one, part in zip(digests, found, strict=True):
        together = {tuple(digest) for digest in digests[found == part]}
        assert together == {tuple(one)}
    order = sorted(set(map(tuple, digests)))
    firsts = [found[(digests == digest).all(axis=1)][0] for digest in order]
    assert firsts == sorted(firsts)


def test_bytes_of_two_classes_go_where_the_first_class_puts_them():
    rng = np.random.default_rng(0)
    first, second = digests(rng, 40), digests(rng, 40)
    expected = sides(np.zeros(40), first, BOTH)
    second[:10] = first[:10]
    found = sides(np.repeat([0, 1], 40), np.concatenate([first, second]), BOTH)
    assert {image: found[image] for image in expected} == expected


def test_duplicates_are_counted_as_images():
    rng = np.random.default_rng(0)
    hashes = np.concatenate([np.repeat(digests(rng, 100), 2, axis=0), digests(rng, 800)])
    places = cut(np.zeros(1000, int), hashes, BOTH)
    assert abs(len(places["test"]) - 150) <= 1
    assert abs(len(places["validation"]) - 150) <= 1


# How the training images are divided into parts.


def parts_of(labels, hashes, count) -> dict[tuple, int]:
    """The part of each image, by its digest."""
    found = parts(np.asarray(labels), hashes, count)
    return {tuple(one): int(part) for one, part in zip(hashes, found, strict=True)}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_parts_hold_as_many_images_of_each_class(count):
    counts = [1, 3, 4, 7, 20, 61, 500]
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(1).shuffle(labels)
    found = parts(labels, digests(np.random.default_rng(0), len(labels)), count)
    assert (found.shape, found.dtype) == (labels.shape, np.int64)
    assert {*found.tolist()} == {*range(count)}
    for label, total in enumerate(counts):
        sizes = np.bincount(found[labels == label], minlength=count)
        assert sizes.sum() == total
        assert max(abs(sizes - total / count)) <= 1


def test_parts_do_not_depend_on_the_order_of_the_rows():
    rng = np.random.default_rng(0)
    labels, hashes = rng.integers(0, 5, 300), digests(rng, 300)
    order = rng.permutation(300)
    expected = parts_of(labels, hashes, 4)
    assert parts_of(labels, hashes, 4) == expected
    assert parts_of(labels[order], hashes[order], 4) == expected


def test_the_part_of_an_image_does_not_depend_on_other_classes():
    rng = np.random.default_rng(0)
    labels, hashes = rng.integers(0, 3, 300), digests(rng, 300)
    expected = parts_of(labels, hashes, 4)
    alone = labels == 1
    found = parts_of(labels[alone], hashes[alone], 4)
    assert found == {tuple(one): expected[tuple(one)] for one in hashes[alone]}


def test_the_same_bytes_are_never_in_two_parts():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        kinds, picked = digests(rng, 120), rng.integers(0, 120, 300)
        labels = rng.integers(0, 3, 300)  # Many of them in several classes.
        found = parts(labels, kinds[picked], 4)
        contents = [{*picked[found == part]} for part in range(4)]
        assert not any(a & b for a, b in itertools.combinations(contents, 2))
        assert min(np.bincount(found, minlength=4)) > 40


def test_bytes_of_two_classes_are_in_the_part_of_the_first_class():
    rng = np.random.default_rng(0)
    first, second = digests(rng, 40), digests(rng, 40)
    expected = parts_of(np.zeros(40, int), first, 4)
    second[:10] = first[:10]
    found = parts_of(np.repeat([0, 1], 40), np.concatenate([first, second]), 4)
    assert {image: found[image] for image in expected} == expected


def test_duplicates_count_as_images_in_parts():
    rng = np.random.default_rng(0)
    hashes = np.concatenate([np.repeat(digests(rng, 100), 5, axis=0), digests(rng, 500)])
    sizes = np.bincount(parts(np.zeros(1000, int), hashes, 4))
    assert max(abs(sizes - 250)) <= 5


@pytest.mark.parametrize("text, expected", [(None, None), ("1/4", (1, 4)), ("1/1", (1, 1))])
def test_a_fold_is_a_part_of_several(text, expected):
    assert parse_fold(text) == expected


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "a", "", "1", "1/", "/4", "1/0", "0/0", "-1/4", "1/4/4", "1.5/4", " 1/4"]
)
def test_what_is_no_fold_is_told(text):
    with pytest.raises(ValueError, match="expected a part such as 1/4, and up to 4/4") as caught:
        parse_fold(text)
    assert repr(text) in str(caught.value)


# What names and fractions come to.


def rows_of(request: Request, counts=COUNTS) -> dict[str, np.ndarray]:
    """The rows of each split of an archive with two classes and no duplicates."""
    count = sum(counts.values())
    return plan(request, counts, "food").rows(
        np.arange(count) % 2, digests(np.random.default_rng(0), count)
    )


# Rows are numbered split after split by name: test has 0 to 39, train 40 to 139.
@pytest.mark.parametrize(
    "request_, counts, texts, sizes",
    [
        (
            Request(),
            {"train": 100},
            ("train less validation and test", "15 % of train", "15 % of train"),
            (68, 16, 16),
        ),
        (Request(), COUNTS, ("train less validation", "15 % of train", "test"), (84, 16, 40)),
        (Request(), COUNTS | {"validation": 9}, ("train", "validation", "test"), (100, 9, 40)),
        (
            Request(test_split="0.2", validation_split="none"),
            COUNTS,
            ("train less test", None, "20 % of train"),
            (80, None, 20),
        ),
        (
            Request("train", "test"),
            COUNTS,
            ("train", "test", "test"),
            (100, 40, 40),
        ),
        (
            Request(validation_split="test"),
            COUNTS,
            ("train", "test", "test"),
            (100, 40, 40),
        ),
        (
            Request("train[:80%]", "train[80%:]"),
            COUNTS,
            ("train[:80%]", "train[80%:]", "test"),
            (80, 20, 40),
        ),
        (
            Request(test_split="train[90%:]"),
            COUNTS,
            ("train less validation and test", "15 % of train less test", "train[90%:]"),
            (76, 14, 10),
        ),
        (
            Request("train+validation", "none"),
            {"train": 100, "validation": 9},
            ("train+validation less test", None, "15 % of train"),
            (93, None, 16),
        ),
        (
            Request("train[:50%]"),
            {"train": 100},
            ("train[:50%] less validation and test", *["15 % of train[:50%]"] * 2),
            (34, 8, 8),
        ),
        (
            Request("0.1", "0.2"),
            COUNTS,
            ("10 % of train", "20 % of train", "test"),
            (10, 20, 40),
        ),
    ],
)
def test_what_is_named_is_taken_and_what_is_missing_is_cut_out(request_, counts, texts, sizes):
    expected = {p: text for p, text in zip(PURPOSES, texts, strict=True) if text}
    assert plan(request_, counts, "food").texts == expected
    found = {purpose: len(rows) for purpose, rows in rows_of(request_, counts).items()}
    assert found == {p: size for p, size in zip(PURPOSES, sizes, strict=True) if size}


@pytest.mark.parametrize(
    "request_, counts",
    [
        (Request(), {"train": 100}),
        (Request(), COUNTS),
        (Request(test_split="train[90%:]"), COUNTS),
        (Request("train", "0.2", "0.3"), COUNTS),
        (Request("0.3"), {"train": 100}),
    ],
)
def test_what_is_cut_is_disjoint_from_all_else(request_, counts):
    rows = np.concatenate([*rows_of(request_, counts).values()])
    assert len(np.unique(rows)) == len(rows)


def test_the_winner_of_a_search_is_tested_on_the_same_images():
    counts = {"train": 100, "validation": 9}
    trials = rows_of(Request(), counts)
    winner = rows_of(Request("train+validation", "none"), counts)
    np.testing.assert_array_equal(trials["test"], winner["test"])
    assert {*winner["train"]} == {*trials["train"], *trials["validation"]}


@pytest.mark.parametrize(
    "request_, counts, message",
    [
        (
            Request(test_split="test"),
            {"train": 180},
            "--test_split='test': food has only train (180 images); pass --test_split=0.15 to cut "
            "15 % out of train, or a slice such as 'train[80%:]'",
        ),
        (Request("train["), COUNTS, "--train_split='train[': food has test (40 images), train"),
        (Request("train[:1shard]"), COUNTS, "--train_split='train[:1shard]': food has "),
        (Request("train[:0]"), COUNTS, "--train_split='train[:0]': holds no images"),
        (Request("1.5"), COUNTS, "--train_split=1.5: expected a fraction above 0 and below 1"),
        (Request(test_split="nan"), COUNTS, "--test_split=nan: expected a fraction"),
        (Request(test_fraction=0.0), COUNTS, "--test_fraction=0: expected a fraction above 0"),
        (Request(validation_fraction=1.0), COUNTS, "--validation_fraction=1: expected a fraction"),
        (
            Request(validation_fraction=0.5, test_fraction=0.5),
            {"train": 9},
            "--validation_fraction=0.5 and --test_fraction=0.5: leave nothing to train on",
        ),
        (
            Request(validation_split="0.4", test_fraction=0.7),
            {"train": 9},
            "--validation_split=0.4 and --test_fraction=0.7: leave nothing to train on",
        ),
        (Request(), {"test": 9}, "--validation_split: no images of train are left to cut it out"),
        (Request("test"), COUNTS, "--validation_split: no images of train are left"),
        (Request(test_split="train", validation_split="none"), COUNTS, "--train_split: no images"),
    ],
)
def test_what_cannot_be_is_one_line_before_an_image_is_read(request_, counts, message):
    with pytest.raises(UserError) as caught:
        plan(request_, counts, "food")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_fractions_that_are_not_used_may_be_large():
    assert len(rows_of(Request(validation_fraction=0.9))["train"]) == 10


def test_a_split_without_an_image_is_named():
    with pytest.raises(
        UserError, match=r"--validation_split: 15 % of train comes to no image: .*=none$"
    ):
        rows_of(Request(), {"train": 4})


# Folds.


@pytest.mark.parametrize(
    "request_, counts",
    [
        (Request(), {"train": 100}),
        (Request(), COUNTS),
        (Request(), COUNTS | {"validation": 9}),
        (Request("0.3"), {"train": 100}),
        (Request("train[:80%]", "train[80%:]"), COUNTS),
        (Request(test_split="train[90%:]"), COUNTS),
    ],
)
@pytest.mark.parametrize("count", [1, 3, 4])
def test_over_all_folds_each_image_validates_once(request_, counts, count):
    names = [None, *(f"{number}/{count}" for number in range(1, count + 1))]
    folds = [rows_of(dataclasses.replace(request_, validation_fold=name), counts) for name in names]
    seen = sorted([*folds[0]["train"], *folds[0]["validation"]])
    assert sorted(np.concatenate([fold["validation"] for fold in folds])) == seen
    for fold in folds:
        assert sorted([*fold["train"], *fold["validation"]]) == seen
        np.testing.assert_array_equal(fold["test"], folds[0]["test"])
    for fold in folds[1:]:
        assert {*folds[0]["validation"]} <= {*fold["train"]}
        np.testing.assert_array_equal(fold["train"], np.sort(fold["train"]))


def test_a_fold_is_the_part_of_the_training_images_with_its_number():
    labels, hashes = np.arange(100) % 2, digests(np.random.default_rng(0), 100)
    train = plan(Request(), {"train": 100}, "food").rows(labels, hashes)["train"]
    found = parts(labels[train], hashes[train], 4)
    for number in range(4):
        fold = plan(Request(validation_fold=f"{number + 1}/4"), {"train": 100}, "food")
        validation = fold.rows(labels, hashes)["validation"]
        np.testing.assert_array_equal(validation, train[found == number])


@pytest.mark.parametrize(
    "request_, counts, train, validation",
    [
        (
            Request(validation_fold="2/4"),
            COUNTS,
            "train less validation+15 % of train less validation",
            "part 2 of 4 of train less validation",
        ),
        (
            Request(validation_fold="1/3"),
            COUNTS | {"validation": 9},
            "train+validation less validation",
            "part 1 of 3 of train",
        ),
    ],
)
def test_the_texts_of_a_fold_name_its_part(request_, counts, train, validation):
    texts = plan(request_, counts, "food").texts
    assert (texts["train"], texts["validation"]) == (train, validation)
    assert texts["test"] == "test"
    assert list(texts) == list(PURPOSES)


def test_a_fold_needs_validation_images_to_exchange():
    with pytest.raises(UserError) as caught:
        plan(Request(validation_split="none", validation_fold="1/4"), COUNTS, "food")
    assert str(caught.value) == (
        "--validation_fold=1/4: without validation images, there is nothing to exchange; expected "
        "a --validation_split"
    )


def test_more_parts_than_images_are_told_with_their_flag():
    with pytest.raises(UserError, match="--validation_fold") as caught:
        rows_of(Request(validation_fold="1/999"), {"train": 100})
    assert "--validation_split" not in str(caught.value)
