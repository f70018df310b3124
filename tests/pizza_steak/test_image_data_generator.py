"""Parity with the real ImageDataGenerator, file by file and pixel by pixel."""

import inspect
import io
import itertools
import os
import re
import unicodedata
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import pizza_steak
from pizza_steak.decoding import Format, decode_image
from pizza_steak.errors import ArchiveError, BadImageError, UserError

MODES = ["RGB", "RGBA", "L", "LA", "P", "1"]
# What a folder may hold: folders within a class, names that sort otherwise with and without their
# folder or their case, files that are no pictures.
NAMES = [
    *("b/2.jpg", "b/10.jpg", "b.jpg", "b-x/1.png", "b/c/1.jpg", "z.jpg", "Z.PNG", "a b.jpeg"),
    *("ä.jpg", "1.bmp", "10.JPG", "9.png", "b/c.png", "B/0.jpg", "c/notes.txt", "readme.md"),
]


def encoded(seed, width, height, mode="RGB", file_format="PNG"):
    """A picture of which no two neighbouring pixels are alike, its alpha neither."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "CMYK":
        image = Image.fromarray(pixels, "CMYK")
    else:
        image = Image.fromarray(pixels).convert(mode)
    file = io.BytesIO()
    image.save(file, file_format)
    return file.getvalue()


def file_format(name):
    suffix = os.path.splitext(name)[1].lower().replace("jpg", "jpeg")
    return suffix[1:] if suffix in (".jpeg", ".png", ".bmp") else None


@pytest.fixture(scope="module")
def food(make_archive):
    """A folder of three classes with pictures of many sizes."""
    layout = {}
    for seed, (label, name) in enumerate(itertools.product(["pizza", "Steak", "a-b"], NAMES)):
        width, height = 5 + 7 * seed % 31, 6 + 5 * seed % 29
        kind = file_format(name)
        content = encoded(seed, width, height, "RGB", kind) if kind else b"no picture"
        layout[f"{label}/{name}"] = content
    return make_archive(layout, as_zip=False)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """`flow_from_directory` with a data_dir of this module's."""
    data_dir = tmp_path_factory.mktemp("data_dir")
    return lambda *args, **options: pizza_steak.flow_from_directory(
        *args, **{"data_dir": data_dir} | options
    )


def arguments(function):
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.default) for parameter in parameters][1:]


def test_arguments_are_those_of_image_data_generator():
    kind = tf.keras.preprocessing.image.ImageDataGenerator
    _, *flowing = arguments(kind.flow_from_directory)  # Without `directory`, which ours has first.
    generating = arguments(kind.__init__)
    assert arguments(pizza_steak.flow_from_directory)[: len(flowing + generating)] == [
        *flowing,
        *generating,
    ]


def by_keras(directory, *, generator=(), **options):
    made = tf.keras.preprocessing.image.ImageDataGenerator(**dict(generator))
    return made.flow_from_directory(directory, **options)


@pytest.fixture
def set_data_format():
    """Sets Keras's own: ImageDataGenerator fails where it is only given to itself."""
    yield keras.config.set_image_data_format
    keras.config.set_image_data_format("channels_last")


def batches(iterator):
    """One epoch of a DirectoryIterator or a Dataset, as arrays."""
    for batch in itertools.islice(iterator, len(iterator)):
        yield tf.nest.map_structure(np.asarray, batch)


def assert_same(batch, expected):
    for part, part_expected in zip(tf.nest.flatten(batch), tf.nest.flatten(expected), strict=True):
        np.testing.assert_array_equal(part, part_expected)
        assert part.dtype == part_expected.dtype


@pytest.mark.parametrize(
    ("classes", "subset", "validation_split"),
    [
        (None, None, 0.0),
        (["pizza", "Steak"], None, 0.3),
        (["a-b"], "training", 0.0),
        (["pizza", "a-b", "Steak"], "training", 0.3),
        *((None, subset, split) for subset in ("training", "validation") for split in (0.29, 0.5)),
    ],
)
def test_files_and_labels_are_listed_as_there(food, flow, classes, subset, validation_split):
    options = {"classes": classes, "subset": subset, "target_size": (4, 6), "batch_size": 4}
    expected = by_keras(food, generator={"validation_split": validation_split}, **options)
    found = flow(food, validation_split=validation_split, **options)
    assert isinstance(found, tf.data.Dataset)
    assert found.filenames == expected.filenames
    assert found.filepaths == expected.filepaths
    assert list(found.class_indices.items()) == list(expected.class_indices.items())
    for name in ("classes", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    for name in ("samples", "n", "num_classes", "batch_size", "image_shape", "target_size"):
        assert getattr(found, name) == getattr(expected, name), name
    assert len(found) == len(expected)


def test_gif_and_webp_are_read_too(make_archive, flow, picture, capsys):
    layout = {"a/notes.txt": b"", "b/notes.txt": b""}
    for label, suffix in itertools.product("ab", ("png", "gif", "webp")):
        file = io.BytesIO()
        picture(0, 8, 8).save(file, suffix)
        layout[f"{label}/1.{suffix}"] = file.getvalue()
    found = flow(make_archive(layout, as_zip=False), (8, 8))
    assert found.filenames == ["a/1.gif", "a/1.png", "a/1.webp", "b/1.gif", "b/1.png", "b/1.webp"]
    told = capsys.readouterr().out
    assert told == "Found 6 images belonging to 2 classes (left out: 2 .txt).\n"


@pytest.mark.parametrize(
    ("class_mode", "dtype"),
    [
        *((mode, None) for mode in ("categorical", "binary", "sparse", "input", None)),
        *(("categorical", dtype) for dtype in ("float64", "float16", "uint8")),
    ],
)
def test_batches_are_those_of_image_data_generator(food, flow, class_mode, dtype):
    options = {"class_mode": class_mode, "target_size": (9, 4), "batch_size": 11, "shuffle": False}
    options["classes"] = ["pizza", "a-b"]
    expected = by_keras(food, generator={"dtype": dtype}, **options)
    found = flow(food, dtype=dtype, **options)
    for batch, batch_expected in zip(batches(found), batches(expected), strict=True):
        assert_same(batch, batch_expected)


@pytest.fixture(scope="module")
def odd(make_archive):
    """Pictures of every mode, with odd sizes, as PNG and, where it has the mode, JPEG."""
    kinds = [(mode, "png") for mode in MODES] + [(mode, "jpeg") for mode in ("RGB", "L", "CMYK")]
    layout = {}
    for seed, (label, (mode, kind)) in enumerate(itertools.product("ab", kinds)):
        for number, (width, height) in enumerate([(1, 1), (37, 21), (13, 64), (101, 99)]):
            layout[f"{label}/{mode}{number}.{kind}"] = encoded(seed, width, height, mode, kind)
    return make_archive(layout, as_zip=False)


@pytest.mark.parametrize("color_mode", ["rgb", "grayscale", "rgba"])
@pytest.mark.parametrize(
    "options",
    [
        {"target_size": (32, 32)},
        {"target_size": (17, 45), "keep_aspect_ratio": True},
        {"target_size": (50, 11), "data_format": "channels_first"},
    ],
    ids=["square", "cropped", "channels_first"],
)
def test_pixels_are_those_of_image_data_generator(odd, flow, color_mode, options, set_data_format):
    options = {"color_mode": color_mode, "class_mode": None, "shuffle": False, **options}
    found = flow(odd, **options)
    data_format = options.pop("data_format", "channels_last")
    set_data_format(data_format)
    expected = by_keras(odd, **options)
    assert found.image_shape == expected.image_shape
    for images, images_expected in zip(batches(found), batches(expected), strict=True):
        assert_same(images, images_expected)


def test_cropping_takes_pillows_pixels_whatever_the_sizes():
    random = np.random.default_rng(0)
    for _ in range(100):
        width, height = random.integers(1, 300, 2)
        size = tuple(map(int, random.integers(1, 250, 2)))
        content = encoded(0, width, height)
        image = keras.utils.load_img(
            io.BytesIO(content), target_size=size, keep_aspect_ratio=True, interpolation="nearest"
        )
        pixels = decode_image(content, Format(size, "nearest", "crop"))
        assert np.count_nonzero(pixels != np.asarray(image)) == 0, (width, height, size)


@pytest.mark.parametrize(
    ("aspect_ratio", "interpolation"),
    [
        (None, "bicubic"),
        ("crop_to_aspect_ratio", "bilinear"),
        ("pad_to_aspect_ratio", "bilinear"),
    ],
)
def test_resized_as_by_image_dataset_from_directory(
    make_archive, flow, aspect_ratio, interpolation
):
    sizes = [(37, 21), (13, 64), (101, 99), (20, 30), (64, 48)]
    layout = {
        f"{label}/{seed}.png": encoded(seed, *size)
        for label in "ab"
        for seed, size in enumerate(sizes)
    }
    folder = make_archive(layout, as_zip=False)
    options = {"shuffle": False, "interpolation": interpolation}
    if aspect_ratio:
        options[aspect_ratio] = True
    for size in [(32, 24), (15, 15)]:
        (expected,) = keras.utils.image_dataset_from_directory(
            folder, label_mode=None, image_size=size, verbose=False, **options
        )
        (images,) = batches(flow(folder, size, class_mode=None, **options))
        assert np.abs(images - np.clip(expected, 0, 255)).max() <= 0.5


@pytest.mark.parametrize(("name", "same"), [("box", "area"), ("lanczos", "lanczos3")])
def test_pillows_names_stand_for_tensorflows(food, flow, name, same):
    named, expected = (
        next(batches(flow(food, (9, 9), shuffle=False, interpolation=interpolation)))
        for interpolation in (name, same)
    )
    assert_same(named, expected)


def center_roots(image):
    np.sqrt(image, out=image)  # It may write into its argument.
    return image.astype(np.float64) - image.mean(axis=0, keepdims=True)


@pytest.mark.filterwarnings("ignore:This ImageDataGenerator specifies")
@pytest.mark.filterwarnings("ignore:Please import `affine_transform`")
@pytest.mark.parametrize(
    ("data_format", "generator"),
    [
        ("channels_last", {"rescale": 1 / 255}),
        ("channels_last", {"samplewise_center": True}),
        ("channels_first", {"samplewise_std_normalization": True, "rescale": 1 / 255}),
        ("channels_last", {"preprocessing_function": center_roots, "rescale": 3}),
        ("channels_first", {"preprocessing_function": center_roots, "samplewise_center": True}),
        ("channels_last", {"brightness_range": (0.5, 0.5)}),
        ("channels_first", {"zoom_range": (0.7, 0.7)}),
        ("channels_last", {"zoom_range": (1.7, 1.7), "fill_mode": "constant", "cval": 77}),
        ("channels_last", {"zoom_range": (1.9, 1.9), "fill_mode": "wrap", "rescale": 0.1}),
        ("channels_last", {"zoom_range": (1.3, 1.3), "interpolation_order": 0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_processing_is_that_of_image_data_generator(
    food, flow, data_format, generator, set_data_format
):
    options = {"target_size": (12, 17), "class_mode": None, "shuffle": False, "batch_size": 50}
    images = next(batches(flow(food, **options, **generator, data_format=data_format)))
    set_data_format(data_format)
    expected = next(batches(by_keras(food, generator=generator, **options)))
    # It cuts fractions off when it changes the brightness.
    tolerance = 1 if "brightness_range" in generator else 0.01
    np.testing.assert_allclose(images, expected, rtol=1e-5, atol=tolerance)


@pytest.mark.filterwarnings("ignore:This ImageDataGenerator specifies")
@pytest.mark.parametrize(
    ("subset", "name"),
    [
        (None, "featurewise_std_normalization"),
        ("training", "zca_whitening"),
        ("validation", "featurewise_std_normalization"),
        ("validation", "zca_whitening"),
    ],
)
def test_statistics_are_of_the_training_pictures(make_archive, flow, name, subset):
    layout = {f"{c}/{n}.png": encoded([ord(c), n], 3, 2) for c in "ab" for n in range(40)}
    folder = make_archive(layout, as_zip=False)
    options = {"target_size": (2, 3), "class_mode": None, "shuffle": False, "batch_size": 80}
    generator = {name: True, "rescale": 1 / 255, "validation_split": 0.25}
    expected = by_keras(folder, generator=generator, subset=subset, **options)
    measured = by_keras(
        folder, subset=subset and "training", **options, generator={"validation_split": 0.25}
    )
    expected.image_data_generator.fit(next(measured))
    images = next(batches(flow(folder, **options, **generator, subset=subset)))
    np.testing.assert_allclose(images, next(expected), rtol=1e-3, atol=1e-4)


def flat_pictures(count):
    """Pictures of one colour each, so that a pixel tells which one it is."""
    contents = {}
    for number in range(count):
        file = io.BytesIO()
        Image.new("L", (4, 4), number).save(file, "PNG")
        contents[f"{'ab'[number % 2]}/{number:03}.png"] = file.getvalue()
    return contents


@pytest.fixture(scope="module")
def numbered(make_archive):
    return make_archive(flat_pictures(50), as_zip=False)


def order(dataset):
    """Which pictures of `numbered` one epoch shows."""
    shown = [images[:, 0, 0, 0] for images, _ in batches(dataset)]
    return np.concatenate(shown).astype(int).tolist()


class Recorder(keras.Model):
    """Trains as any model does, and notes which pictures come in which order."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1, activation="sigmoid")
        self.seen = []

    def call(self, images):
        return self.dense(keras.layers.Flatten()(images))

    def train_step(self, data):
        images, labels = data
        self.seen += images.numpy()[:, 0, 0, 0].astype(int).tolist()
        np.testing.assert_array_equal(labels, images[:, 0, 0, 0] % 2)
        return super().train_step(data)


@pytest.mark.parametrize("steps_per_epoch", [False, True])
def test_fit_sees_another_order_each_epoch(numbered, flow, steps_per_epoch):
    options = {"target_size": (4, 4), "class_mode": "binary", "batch_size": 20, "seed": 5}
    train, validation = flow(numbered, **options), flow(numbered, **options, shuffle=False)
    model = Recorder()
    model.compile("sgd", "binary_crossentropy", run_eagerly=True)
    steps = {"steps_per_epoch": len(train), "validation_steps": len(validation)}
    history = model.fit(
        train,
        epochs=3,
        validation_data=validation,
        verbose=0,
        shuffle=False,
        **steps if steps_per_epoch else {},
    ).history
    epochs = np.reshape(model.seen, (3, 50)).tolist()
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert len(history["val_loss"]) == 3

    again = flow(numbered, **options)
    assert [order(again) for _ in range(3)] == epochs
    other = flow(numbered, **options | {"seed": 6})
    assert order(other) not in epochs


def test_fit_without_ado(food, flow):
    train = flow(
        food, (16, 16), rescale=1 / 255, rotation_range=20, subset="training", validation_split=0.3
    )
    validation = flow(food, (16, 16), rescale=1 / 255, subset="validation", validation_split=0.3)
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")])
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(train, epochs=2, validation_data=validation, verbose=0).history
    assert np.isfinite(history["val_loss"]).all()
    assert model.predict(validation, verbose=0).shape == (validation.samples, 3)


def test_without_a_seed_numpys_generator_draws_one(numbered, flow):
    orders = []
    for numpy_seed in (1, 1, 2):
        np.random.seed(numpy_seed)
        orders.append(order(flow(numbered, (4, 4))))
    assert orders[0] == orders[1] != orders[2]


def test_unshuffled_epochs_are_all_in_the_order_of_the_files(numbered, flow):
    dataset = flow(numbered, (4, 4), shuffle=False, batch_size=7)
    expected = [*range(0, 50, 2), *range(1, 50, 2)]
    assert [order(dataset), order(dataset)] == [expected, expected]


def test_augmented_pixels_depend_on_seed_epoch_and_example_alone(food, flow):
    def epochs(**options):
        dataset = flow(
            food, (16, 16), class_mode=None, rotation_range=90, zoom_range=0.5, **options
        )
        for _ in range(2):
            yield sorted(image.tobytes() for images in batches(dataset) for image in images)

    first, second = epochs(seed=1, batch_size=7)
    assert not set(first) & set(second)
    assert list(epochs(seed=1, batch_size=5, shuffle=False)) == [first, second]
    assert not set(first) & set(next(epochs(seed=2)))


@pytest.mark.parametrize(
    ("options", "axis"), [({"horizontal_flip": True}, 2), ({"vertical_flip": True}, 1)]
)
def test_half_of_the_pictures_are_flipped(food, flow, options, axis):
    shown = {"target_size": (8, 8), "class_mode": None, "shuffle": False, "batch_size": 99}
    (plain,), (varied,) = batches(flow(food, **shown)), batches(flow(food, **shown, **options))
    kept = (varied == plain).all(axis=(1, 2, 3))
    flipped = (varied == np.flip(plain, axis)).all(axis=(1, 2, 3))
    assert (kept | flipped).all()
    assert 8 < kept.sum() < len(plain) - 8


def test_zips_are_read_like_folders(food, flow, tmp_path):
    with zipfile.ZipFile(tmp_path / "food.zip", "w") as zip_file:
        for path in filter(os.path.isfile, food.rglob("*")):
            for split in ("train", "test"):
                zip_file.write(path, f"{split}/{path.relative_to(food)}")
    options = {"target_size": (6, 6), "shuffle": False}
    expected = flow(food, **options)
    found = flow(tmp_path / "food.zip" / "test", **options)
    assert found.filenames == expected.filenames
    for batch, batch_expected in zip(batches(found), batches(expected), strict=True):
        assert_same(batch, batch_expected)
    for wrong in ("food.zip", "food.zip/tset"):
        one_line = rf"no class folders there; expected {tmp_path}/food.zip/test or \S*zip/train$"
        with pytest.raises(UserError, match=one_line):
            flow(tmp_path / wrong)


@pytest.mark.parametrize("inside", ["train", "food", "food/train"])
def test_a_directory_is_the_folder_that_holds_the_class_folders(make_archive, flow, inside):
    folder = make_archive([f"{inside}/{label}/1.jpg" for label in "ab"], as_zip=False)
    with pytest.raises(UserError, match=f"expected {folder}/{inside}$"):
        flow(folder)
    found = flow(folder / inside, (8, 8))
    assert found.filenames == ["a/1.jpg", "b/1.jpg"]
    assert all(map(os.path.exists, found.filepaths))


def test_a_directory_may_be_a_split_with_another_name(make_archive, flow):
    layout = [f"{top}/{top}/{c}/1.jpg" for top in ("seg_train", "seg_test") for c in ("á", "b")]
    decomposed = [unicodedata.normalize("NFD", name) for name in layout]  # As on macOS.
    folder = make_archive(decomposed, as_zip=False)
    for top in ("seg_train", "seg_test"):
        found = flow(folder / top / top, (8, 8))
        assert found.filenames == ["b/1.jpg", "á/1.jpg"]
        assert found.class_indices == {"b": 0, "á": 1}
        assert all(map(os.path.exists, found.filepaths))
    with pytest.raises(UserError, match=rf"{folder}/seg_test/seg_test or .*/seg_train/seg_train$"):
        flow(folder)
    found = flow(make_archive(decomposed) / "seg_test", (8, 8))
    assert found.filenames == ["b/1.jpg", "á/1.jpg"]


def test_a_folder_with_train_and_test_is_not_one_of_classes(make_archive, flow):
    layout = [f"{split}/{label}/1.jpg" for split in ("train", "test") for label in "ab"]
    folder = make_archive(layout, as_zip=False)
    with pytest.raises(UserError, match=f"expected {folder}/test or {folder}/train$"):
        flow(folder)


@pytest.mark.parametrize("inside", ["", "food/", "train/", "food/train/"])
def test_of_a_zip_that_holds_one_directory_the_name_is_enough(make_archive, flow, inside):
    found = flow(make_archive([f"{inside}{label}/1.jpg" for label in "ab"]), (8, 8))
    assert found.filenames == ["a/1.jpg", "b/1.jpg"]


def test_what_is_made_can_be_looked_at(food, flow, tmp_path):
    dataset = flow(
        food,
        (10, 12),
        class_mode=None,
        seed=3,
        zoom_range=0.5,
        rescale=1 / 255,
        save_to_dir=tmp_path / "preview",
        save_prefix="made",
        data_format="channels_first",
    )
    images = np.concatenate(list(batches(dataset)))
    saved = {}
    for path in (tmp_path / "preview").iterdir():
        index = re.fullmatch(r"made_(\d+)_\d{1,7}\.png", path.name)[1]
        saved[int(index)] = np.asarray(Image.open(path)).tobytes()
    assert sorted(saved) == list(range(dataset.samples))
    made = [
        np.asarray(keras.utils.array_to_img(image, "channels_first")).tobytes() for image in images
    ]
    assert sorted(saved.values()) == sorted(made)
    plain = flow(food, (10, 12), shuffle=False, save_to_dir=tmp_path / "plain", save_format="bmp")
    list(plain)
    (path,) = (tmp_path / "plain").glob("_7_*.bmp")
    pixels = keras.utils.array_to_img(next(iter(plain))[0][7])
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(pixels))


def test_broken_pictures_are_named_or_left_out(make_archive, flow, jpeg):
    layout = {f"{label}/{n}.jpg": jpeg(n) for label in "ab" for n in range(4)}
    layout["a/1.jpg"] = b"<html>404</html>"
    folder = make_archive(layout, as_zip=False)
    with pytest.raises(BadImageError, match=r"a/1\.jpg"):
        flow(folder, (8, 8))
    found = flow(folder, (8, 8), on_bad_image="skip", validation_split=0.5, subset="validation")
    assert found.filenames == ["a/0.jpg", "b/0.jpg", "b/1.jpg"]  # Cut first, then left out.
    assert len(np.concatenate([labels for _, labels in batches(found)])) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_size": 64}, "target_size=64: expected a height and a width"),
        ({"target_size": (64, 0)}, "target_size=0: expected a whole number from 1"),
        ({"target_size": (6.5, 6)}, "target_size=6.5: expected a whole number"),
        ({"color_mode": "bgr"}, "color_mode='bgr': expected one of 'rgb', 'grayscale', 'rgba'"),
        ({"classes": ["pizza", "soup"]}, "class 'soup': unknown; expected some of Steak, a-b"),
        ({"classes": ["pizza", "pizza"]}, "classes pizza, pizza: expected each once"),
        ({"class_mode": "raw"}, "class_mode='raw': expected one of 'categorical'"),
        ({"class_mode": "binary"}, "class_mode 'binary': the images have 3 classes"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number from 1"),
        ({"batch_size": None}, "batch_size=None: expected a whole number from 1"),
        ({"seed": -1}, "seed=-1: expected a whole number from 0"),
        ({"save_to_dir": "{food}/pizza/z.jpg"}, "z.jpg: File exists; expected a folder"),
        ({"save_to_dir": "/tmp", "save_format": "docx"}, "save_format='docx': expected a suffix"),
        ({"subset": "both"}, "subset='both': expected one of 'training', 'validation', None"),
        ({"subset": "validation"}, "subset='validation': expected a validation_split above 0"),
        ({"subset": "validation", "validation_split": 0.01}, "no images"),
        ({"validation_split": 1.0}, "validation_split=1.0: expected 0 or a fraction below 1"),
        ({"interpolation": "hamming"}, "'hamming': TensorFlow has no such method"),
        ({"interpolation": "cubic"}, "interpolation='cubic': expected one of 'bilinear'"),
        ({"keep_aspect_ratio": True, "pad_to_aspect_ratio": True}, "without cropping"),
        ({"data_format": "NCHW"}, "data_format='NCHW': expected one of"),
        ({"dtype": "float31"}, "dtype='float31': expected a number type"),
        ({"dtype": "string"}, "dtype='string': expected a number type"),
        ({"zca_whitening": True}, "expected at most 12,288"),
        (
            {"preprocessing_function": np.mean},
            r"returned shape \(\) for an image of \(256, 256, 3\)",
        ),
        ({"decoded_cache": "ram"}, "decoded_cache='ram': expected one of 'disk'"),
        ({"on_bad_image": "pass"}, "on_bad_image='pass': expected one of 'fail', 'skip'"),
        ({"interpolation_order": 3}, "interpolation_order=3: expected 0"),
        ({"rotation_range": np.nan}, "rotation_range=nan: expected a finite number"),
        ({"zoom_range": [1]}, r"zoom_range=\[1\]: expected a finite number or a pair"),
        ({"fill_mode": "mirror"}, "fill_mode='mirror': expected one of"),
        ({"cval": 3}, "expected fill_mode='constant'"),
        ({"brightness_range": 0.2}, "brightness_range=0.2: expected a pair"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_makes_no_sense_is_one_line(food, flow, options, message):
    options = {
        name: value.format(food=food) if isinstance(value, str) else value
        for name, value in options.items()
    }
    with pytest.raises((UserError, ValueError), match=message) as raised:
        flow(food, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"rotation_range": 1},
        *({f"{side}_shift_range": 0.1} for side in ("width", "height")),
        {"shear_range": 1},
        {"zoom_range": 0.1},
        {"horizontal_flip": True},
        {"vertical_flip": True},
        {"brightness_range": (0.9, 1.1)},
        {"channel_shift_range": 1},
    ],
    ids="".join,
)
def test_validation_pictures_are_not_augmented(food, flow, options):
    with pytest.raises(UserError, match="validation images are not augmented"):
        flow(food, validation_split=0.3, subset="validation", **options)


def test_one_class_is_refused(make_archive, flow):
    with pytest.raises(ArchiveError, match="one class only, 'pizza'"):
        flow(make_archive(["pizza/1.jpg"], as_zip=False))


@pytest.mark.slow
def test_tensorflow_is_not_imported_with_the_package(run_python):
    code = "import sys, pizza_steak; print('tensorflow' in sys.modules)"
    assert run_python(code, fresh=True) == "False\n"


def test_a_name_that_the_package_has_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'pizza_steak' has no attribute 'flow'"):
        _ = pizza_steak.flow
