import hashlib
import pathlib
import subprocess
import sys
import zipfile

import pytest
import tensorflow_datasets as tfds

from pizza_steak import pizza_steak_dataset_builder as dataset_builder
from pizza_steak import records
from pizza_steak.archive import read_archive
from pizza_steak.errors import ArchiveError, UserError

PUBLISHED = [
    f"pizza_steak/{split}/{label}/{number}.jpg"
    for split, count in {"train": 6, "test": 2}.items()
    for label in ("pizza", "steak")
    for number in range(count)
]
URL, MIRROR = dataset_builder._URLS


@pytest.fixture(scope="class")
def dummy_data(make_archive, request):
    request.cls.EXAMPLE_DIR = make_archive(PUBLISHED, name="pizza_steak").parent


@pytest.mark.usefixtures("dummy_data")
class PhotosTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = dataset_builder.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["photos"]
    SPLITS = {"train": 12, "test": 4}


@pytest.mark.usefixtures("dummy_data")
class SampleTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = dataset_builder.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["sample"]
    SPLITS = {"train": 240, "test": 80}


def test_records_hold_the_bytes_of_the_archive(make_records, jpeg):
    names = [f"{split}/{label}/0.png" for split in ("train", "val") for label in ("10", "9", "a")]
    layout = {name: jpeg(seed) for seed, name in enumerate(names)}
    builder = make_records(layout).builder
    datasets = builder.as_dataset(decoders={"image": tfds.decode.SkipDecoding()})
    assert set(datasets) == {"train", "validation"}
    label_name = builder.info.features["label"].int2str
    found = {}
    for example in tfds.as_numpy(datasets["train"].concatenate(datasets["validation"])):
        filename = example["filename"].decode()
        found[filename] = example["image"]
        assert label_name(example["label"]) == filename.split("/")[1]
    assert found == layout


def _offline(monkeypatch):
    def refuse(self, url):
        raise ConnectionError(f"no network for {url}")

    monkeypatch.setattr(tfds.download.DownloadManager, "download", refuse)


def _traces(data_dir):
    """Folders of records below `data_dir`, finished or not, and record files anywhere."""
    return [*data_dir.glob("pizza_steak/*/1.0.0*"), *data_dir.rglob("*tfrecord*")]


def test_without_a_network_the_way_out_is_told(monkeypatch, tmp_path):
    _offline(monkeypatch)
    with pytest.raises(UserError) as raised:
        records.prepare("pizza_steak/photos", data_dir=tmp_path)
    message = str(raised.value)
    assert "\n" not in message
    for told in (URL, MIRROR, "--archive", "--dataset=pizza_steak/sample"):
        assert told in message
    assert not _traces(tmp_path)


@pytest.mark.parametrize("first_fails", ["wrong size", "no connection"])
def test_another_size_or_no_answer_leads_to_the_mirror(
    monkeypatch, tmp_path, make_archive, first_fails
):
    published = make_archive(PUBLISHED, name="pizza_steak")
    # As if the mirror had published this archive, and the first address another.
    monkeypatch.setitem(dataset_builder._URLS, MIRROR, published.stat().st_size)
    asked = []

    def download(self, url):
        asked.append(url)
        if url == URL and first_fails == "no connection":
            raise ConnectionError
        return tfds.core.Path(published)

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    prepared = records.prepare("pizza_steak/photos", data_dir=tmp_path / "data")
    assert asked == [URL, MIRROR]
    assert len(prepared.labels) == len(PUBLISHED)


def test_a_download_of_another_size_is_refused(monkeypatch, tmp_path, make_archive):
    path = make_archive(PUBLISHED)
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download", lambda self, url: tfds.core.Path(path)
    )
    with pytest.raises(UserError, match=f"{path.stat().st_size:,} bytes, expected 109,"):
        records.prepare("pizza_steak/photos", data_dir=tmp_path)
    assert not _traces(tmp_path)


def _put_in_manual_dir(path, data_dir):
    manual_dir = data_dir / "downloads/manual"
    manual_dir.mkdir(parents=True)
    path.rename(manual_dir / "pizza_steak.zip")


def test_the_manual_dir_comes_before_the_network(monkeypatch, tmp_path, make_archive):
    _offline(monkeypatch)
    _put_in_manual_dir(make_archive(PUBLISHED), tmp_path)
    prepared = records.prepare("pizza_steak/photos", data_dir=tmp_path)
    assert prepared.folder == tmp_path / "pizza_steak/photos/1.0.0"
    assert sorted(prepared.filenames) == sorted(
        name.removeprefix("pizza_steak/") for name in PUBLISHED
    )


def test_photos_are_of_pizza_and_steak(tmp_path, make_archive):
    _put_in_manual_dir(make_archive(["ramen/1.jpg", "sushi/2.jpg"]), tmp_path)
    with pytest.raises(ArchiveError, match=r"classes ramen, sushi; .* --archive"):
        records.prepare("pizza_steak/photos", data_dir=tmp_path)
    assert not _traces(tmp_path)


def test_a_damaged_picture_leaves_no_records_behind(tmp_path, make_archive):
    path = make_archive(PUBLISHED)
    with zipfile.ZipFile(path, "a") as zip_file:
        zip_file.writestr("pizza_steak/train/pizza/zz.jpg", b"")
        zip_file.getinfo("pizza_steak/train/pizza/zz.jpg").CRC = 1
    with pytest.raises(ArchiveError, match=r"train/pizza/zz\.jpg"):
        records.prepare(archive=path, data_dir=tmp_path)
    assert not _traces(tmp_path)


def test_a_hostile_archive_is_refused_with_nothing_written(tmp_path, make_archive):
    with pytest.raises(ArchiveError):
        records.prepare(archive=make_archive([*PUBLISHED, "../evil.jpg"]), data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_archives_of_one_name_have_records_of_their_own(tmp_path, make_archive):
    archives = [make_archive(PUBLISHED, name="food"), make_archive(PUBLISHED[1:], name="food")]
    both = [records.prepare(archive=path, data_dir=tmp_path) for path in archives]
    assert [len(one.labels) for one in both] == [16, 15]
    assert both[0].folder != both[1].folder
    name = dataset_builder.ArchiveConfig.of(read_archive(archives[0]), tmp_path).name
    assert both[0].builder.builder_config.name == name


@pytest.mark.parametrize("dataset", ["pizza_steak", "pizza_steak/nope", "mnist", ""])
def test_unknown_datasets_are_a_users_error(tmp_path, dataset):
    with pytest.raises(UserError, match="expected one of pizza_steak/photos, pizza_steak/sample"):
        records.prepare(dataset, data_dir=tmp_path)


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path, make_archive):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match=f"{file}.*--data_dir") as raised:
        records.prepare(archive=make_archive(PUBLISHED), data_dir=file / "data")
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import pizza_steak; import tensorflow_datasets as tfds",
        "import tensorflow_datasets as tfds; import pizza_steak",
        "import pizza_steak.records; import tensorflow_datasets as tfds",
    ],
    ids=["ours-first", "tfds-first", "a-module-of-ours-first"],
)
def test_tfds_load_finds_the_dataset(run_python, sample_records, imports):
    code = f"""
import hashlib, sys
{imports}
dataset = tfds.load("pizza_steak/sample", split="test", data_dir=sys.argv[1])
print(hashlib.sha256(b"".join(sorted(dataset.map(lambda e: e["filename"]).as_numpy_iterator())))
      .hexdigest())
"""
    filenames = [sample_records.filenames[row] for row in sample_records.rows("test")]
    expected = hashlib.sha256("".join(sorted(filenames)).encode()).hexdigest()
    assert run_python(code, sample_records.folder.parents[2], fresh=True).split() == [expected]


@pytest.mark.slow
def test_importing_the_package_does_not_import_tensorflow(run_python):
    code = "import pizza_steak, sys; print({'tensorflow', 'tensorflow_datasets'} & {*sys.modules})"
    assert run_python(code, fresh=True).split() == ["set()"]


@pytest.mark.slow
def test_tfds_builds_it_from_the_command_line(tmp_path):
    for package in ("apache_beam", "mlcroissant"):
        pytest.importorskip(package, reason=f"TFDS's commands import {package}")
    command = [sys.executable, "-m", "tensorflow_datasets.scripts.cli.main"]
    subprocess.run(
        [*command, "build", "pizza_steak", "--config=sample", f"--data_dir={tmp_path}"],
        cwd=pathlib.Path(__file__).parents[2],
        check=True,
        capture_output=True,
    )
    assert tfds.builder("pizza_steak/sample", data_dir=tmp_path).info.splits["train"].num_examples
