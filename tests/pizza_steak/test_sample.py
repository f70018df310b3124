import collections
import hashlib
import io

import numpy as np
import pytest
from PIL import Image


def encoded(records, split):
    rows = records.rows(split)
    return dict(
        zip(map(records.filenames.__getitem__, rows), records.read(rows).numpy(), strict=True)
    )


@pytest.mark.parametrize(("split", "count"), [("train", 120), ("test", 40)])
def test_counts_of_each_class(sample_records, split, count):
    labels = sample_records.labels[sample_records.rows(split)]
    assert collections.Counter(labels.tolist()) == {0: count, 1: count}
    assert sample_records.classes == ("pizza", "steak")


def test_pictures_are_jpegs_of_many_sizes_and_none_is_there_twice(sample_records):
    pictures = encoded(sample_records, "train+test")
    images = [Image.open(io.BytesIO(content)) for content in pictures.values()]
    assert {image.format for image in images} == {"JPEG"}
    assert len({image.size for image in images}) > 250
    assert all(180 <= max(image.size) <= 448 for image in images)
    landscape = np.mean([image.width > image.height for image in images])
    assert 0.3 < landscape < 0.7
    pixels = {hashlib.sha256(image.convert("RGB").tobytes()).digest() for image in images}
    assert len(pixels) == len(pictures)


@pytest.mark.slow
def test_another_process_renders_the_same_bytes(sample_records, run_python):
    code = """
import hashlib
from pizza_steak import sample
for filename, label, encoded in sample.pictures("test"):
    print(filename, hashlib.sha256(encoded).hexdigest())
"""
    rendered = dict(line.split() for line in run_python(code).splitlines())
    expected = encoded(sample_records, "test")
    assert rendered == {
        name: hashlib.sha256(content).hexdigest() for name, content in expected.items()
    }


def mean_colours(records, split):
    pictures = encoded(records, split).values()
    return np.array([np.asarray(Image.open(io.BytesIO(file))).mean((0, 1)) for file in pictures])


def logistic_regression(features, labels, steps=50):
    """Weights of a lightly regularised logistic regression, by Newton's method."""
    weights = np.zeros(features.shape[1])
    for _ in range(steps):
        probabilities = 1 / (1 + np.exp(-features @ weights))
        curvature = features.T * (probabilities * (1 - probabilities)) @ features
        gradient = features.T @ (probabilities - labels) + 1e-3 * weights
        weights -= np.linalg.solve(curvature + 1e-3 * np.eye(len(weights)), gradient)
    return weights


def test_the_mean_colour_does_not_give_the_class_away(sample_records):
    train, test = (mean_colours(sample_records, split) for split in ("train", "test"))
    centre, spread = train.mean(0), train.std(0)
    train, test = (
        np.column_stack([np.ones(len(colours)), (colours - centre) / spread])
        for colours in (train, test)
    )
    labels = {
        split: sample_records.labels[sample_records.rows(split)] for split in ("train", "test")
    }
    weights = logistic_regression(train, labels["train"])
    assert np.mean((train @ weights > 0) == labels["train"]) > 0.45  # It did learn.
    assert np.mean((test @ weights > 0) == labels["test"]) < 0.75
