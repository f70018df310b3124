"""What `import pizza_steak` and `import trainers` offer: names, help, examples, and no noise."""

import doctest
import pydoc

import keras
import pytest
from small_runs import assert_same_run, layout, run_command, train_and_test

import pizza_steak
import trainers

PACKAGES = (pizza_steak, trainers)


@pytest.mark.parametrize("package", PACKAGES)
def test_dir_offers_what_is_public_and_nothing_else(package):
    assert sorted(dir(package)) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__doc__


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'lod'"):
        package.lod  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_help_is_ours(package):
    text = pydoc.plain(pydoc.render_doc(package))
    for name in package.__all__:
        assert ("VERSION" if name == "__version__" else name) in text  # As pydoc calls it.
    for theirs in ("download_and_prepare", "BuilderConfig", "beam"):
        assert theirs not in text


class Shown(doctest.OutputChecker):
    """Compares the output that an example shows; what an example does not show may be anything."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def test_the_examples_in_docstrings_run(tmp_path, make_archive, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    files = layout(train_and_test("dark", "light"))
    make_archive(files, as_zip=False).rename("food")
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile(loss="mse")
    names = {"pizza_steak": pizza_steak, "trainers": trainers, "keras": keras, "model": model}
    examples = (
        pizza_steak.load,
        pizza_steak.flow_from_directory,
        trainers.train,
        trainers.open_run,
    )
    runner = doctest.DocTestRunner(Shown())
    finder = doctest.DocTestFinder()
    tests = [test for one in examples for test in finder.find(one, one.__name__, globs=names)]
    assert [len(test.examples) > 1 for test in tests] == [True] * len(examples)
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


PROGRAM = """
import sys
import pizza_steak, trainers
assert "tensorflow" not in sys.modules
archive, data_dir, *run_dirs = sys.argv[1:]
data = pizza_steak.load(archive, 32, data_dir=data_dir)
images, labels = next(iter(data.train))
data.show_batch()
for run_dir in run_dirs:
    run = trainers.train(
        archive, image_size=[32, 32], filters=4, convolutions=1, epochs=2, batch_size=8,
        rotation_range=20, tensorboard=False, data_dir=data_dir, run_dir=run_dir,
    )
"""


@pytest.mark.slow
def test_a_new_process_logs_nothing_and_trains_twice_as_the_command_does(
    archive, tmp_path, start_python, monkeypatch
):
    for name in ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"):
        monkeypatch.delenv(name, raising=False)
    runs = [tmp_path / name for name in ("one", "two", "command")]
    process = start_python(
        PROGRAM,
        *(archive, tmp_path / "data", *runs[:2]),
        fresh=True,
    )
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stderr == ""
    status, _, errors = run_command(
        f"--archive={archive}",
        *("--image_size=32,32", "--filters=4", "--convolutions=1", "--epochs=2", "--batch_size=8"),
        *("--rotation_range=20", "--notensorboard", f"--data_dir={tmp_path / 'data'}"),
        f"--run_dir={runs[2]}",
    )
    assert status == 0, errors
    for run in runs[:2]:
        assert_same_run(run, runs[2])
        assert (run / "run.flags").read_text() == (runs[2] / "run.flags").read_text()
        assert {path.name for path in run.iterdir()} == {path.name for path in runs[2].iterdir()}
