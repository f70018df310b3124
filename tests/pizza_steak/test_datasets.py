"""`pizza_steak.load`: training, validation and test images, as Datasets that keep their names."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_runs import SIZE, layout, pictures, train_and_test

import pizza_steak
from pizza_steak import input_pipeline, progress_bar, records

TRAINING = 24


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data_dir")


@pytest.fixture
def load(archive, data_dir):
    def load(**arguments):
        arguments = {"archive": archive, "image_size": SIZE, "batch_size": 5} | arguments
        return pizza_steak.load(data_dir=data_dir, **arguments)

    return load


def passes(dataset, count=1):
    """The images of so many passes, as bytes in the order of the pass."""
    return [
        [image.tobytes() for images, _ in dataset.as_numpy_iterator() for image in images]
        for _ in range(count)
    ]


def test_a_pass_has_each_image_once_with_its_label(load):
    data = load(test_split="test", validation_split="0.25")
    for name, folder, count in (("test", "test", 6), ("train", "train", 9)):
        images, labels = map(np.concatenate, zip(*getattr(data, name), strict=True))
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        for label, shade in enumerate(data.class_names):
            found = {image.tobytes() for image in images[labels == label]}
            expected = {image.tobytes() for image in pictures(f"{folder}/{shade}", 12)}
            assert len(found) == count == (labels == label).sum()
            assert found <= expected
    assert data.sizes == {"train": 18, "validation": 6, "test": 12}
    assert (data.class_names, data.image_shape) == (("dark", "light"), (SIZE, SIZE, 3))
    assert max(images.numpy().max() for images, _ in data.train) > 200


def test_splits_share_no_image(load):
    data = load()
    train, validation, test = (
        set(*passes(split)) for split in (data.train, data.validation, data.test)
    )
    assert not (train & validation or train & test or validation & test)


def test_fit_makes_a_pass_an_epoch_each_with_its_own_order(load):
    data, seen = load(validation_split="none"), []

    def note(images):
        seen.extend(image.tobytes() for image in images)
        return images

    noted = data.train.map(
        lambda images, labels: (
            tf.ensure_shape(tf.numpy_function(note, [images], tf.uint8), images.shape),
            labels,
        )
    )
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`shuffle=True` was passed")  # Of Keras.
        history = model.fit(noted, epochs=5, verbose=0)
    assert len(history.epoch) == 5
    assert len(seen) == 5 * TRAINING
    orders = [tuple(seen[start : start + TRAINING]) for start in range(0, len(seen), TRAINING)]
    assert len({*orders}) == 5
    assert len({frozenset(order) for order in orders}) == 1


def test_fit_does_not_warn(load):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load()
        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
        model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(data.train, validation_data=data.validation, verbose=0)
    assert [str(one.message) for one in caught if "shuffle" in str(one.message)] == []


def test_the_order_is_that_of_a_training_with_the_same_seed(load, archive, data_dir):
    prepared = records.prepare(archive=archive, data_dir=data_dir)
    rows = prepared.rows("train")
    expected = [
        prepared.labels[
            input_pipeline.batch_rows(
                tf.constant(step, tf.int64), tf.constant(rows), 5, seed=7, shuffle=True
            )
        ].tolist()
        for step in range(10)
    ]
    data = load(seed=7, validation_split="none")
    assert [labels.numpy().tolist() for _ in range(2) for _, labels in data.train] == expected


def test_validation_and_test_keep_their_order(load):
    data = load()
    for dataset in (data.validation, data.test):
        first, second = passes(dataset, 2)
        assert first == second


def test_a_look_at_the_first_batch_is_no_pass(load):
    data, other = load(), load()
    for _ in range(3):
        data.show_batch()
    assert passes(data.train, 2) == passes(other.train, 2)


def test_show_batch_draws_the_first_images_under_their_class_names(load):
    data, other = load(), load()
    images, labels = next(iter(other.train))
    (axes,) = data.show_batch(count=4).axes
    assert [text.get_text() for text in axes.texts] == [data.class_names[n] for n in labels[:4]]
    for drawn, image, text in zip(axes.images, images[:4], axes.texts, strict=True):
        np.testing.assert_array_equal(drawn.get_array(), image)
        left, right, _, top = drawn.get_extent()
        assert left < text.get_position()[0] < right
        assert 0 < top - text.get_position()[1] < 0.1  # Inches.
    assert len(data.show_batch("test").axes[0].images) == 5


def test_a_notebook_shows_the_figure(load):
    assert load().show_batch()._repr_png_().startswith(b"\x89PNG")


def test_the_text_says_what_it_is(load):
    data = load()
    text = repr(data)
    for part in ("shades.zip: 2 classes (dark, light)", "uint8, 0 to 255", "32 x 32 x 3"):
        assert part in text
    for split, dataset in (("train", data.train), ("validation", data.validation)):
        assert f"{split} " in text
        assert repr(dataset) == str(dataset)
        assert repr(dataset).startswith(f"<{split}: {len(dataset)} batches of 5 images")


def test_a_hundred_classes_fit_a_line(make_archive, data_dir):
    names = [f"class_{number:03}" for number in range(100)]
    archive = make_archive([f"{name}/{number}.jpg" for name in names for number in range(3)])
    text = repr(pizza_steak.load(archive, 16, data_dir=data_dir))
    assert "100 classes (class_000, " in text
    assert max(len(line) for line in text.splitlines()) < 80 + len(str(archive))


def test_named_splits_and_classes_are_those_of_the_flags(make_archive, data_dir):
    archive = make_archive(layout(train_and_test("dark", "light", "middle")))
    data = pizza_steak.load(
        archive, (24, 16), classes=["middle", "dark"], validation_split="test", data_dir=data_dir
    )
    assert data.class_names == ("middle", "dark")
    assert data.image_shape == (24, 16, 3)
    images, labels = next(iter(data.test))
    assert images.shape == (12, 24, 16, 3)
    assert [*np.sign(images.numpy().mean((1, 2, 3)) - 80)] == [*(1 - 2 * labels.numpy())]
    assert data.validation is not None


def test_an_image_that_cannot_be_decoded_is_left_out_if_asked(make_archive, data_dir):
    files = layout(train_and_test("dark", "light")) | {"train/dark/broken.png": b"\x89PNG nothing"}
    archive = make_archive(files)
    with pytest.raises(pizza_steak.UserError, match="pass on_bad_image='skip'"):
        pizza_steak.load(archive, SIZE, data_dir=data_dir)
    data = pizza_steak.load(
        archive, SIZE, data_dir=data_dir, on_bad_image="skip", validation_split="none"
    )
    assert data.sizes["train"] == TRAINING


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"archive": "nowhere.zip"}, "archive nowhere.zip: no such file"),
        ({"dataset": "pizza_steak/other", "archive": None}, "dataset 'pizza_steak/other': unknown"),
        ({"validation_split": "dev"}, "^validation_split='dev': .* pass validation_split="),
        ({"test_split": "1.5"}, "^test_split=1.5: expected a fraction"),
        ({"classes": ["dark", "pizza"]}, "class 'pizza': unknown"),
        ({"image_size": 0}, "image_size 0,0: expected whole pixels"),
        ({"image_size": (32, 32.5)}, "image_size 32,32.5: expected whole pixels"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number"),
        ({"color_mode": "cmyk"}, "color_mode='cmyk': expected one of 'rgb'"),
        ({"interpolation": "best"}, "interpolation='best': expected one of"),
        ({"decoded_cache": "ram"}, "decoded_cache='ram': expected one of"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_argument(load, arguments, message):
    with pytest.raises(pizza_steak.UserError, match=message) as caught:
        load(**arguments)
    assert len(str(caught.value).splitlines()) == 1
    assert "--" not in str(caught.value)


def test_an_unknown_split_is_not_drawn(load):
    with pytest.raises(pizza_steak.UserError, match="split='dev': expected one of 'train'"):
        load().show_batch("dev")


def test_there_is_no_progress_bar_in_a_pipe():
    with progress_bar.progress_bar(3) as bar:
        assert bar.disable
