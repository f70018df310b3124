"""What a backup holds and which model it goes into."""

import pathlib
import re

import keras
import numpy as np
import pytest
from small_runs import fit, fit_and_stop

from pizza_steak.errors import UserError
from trainers.runs import checkpoint
from trainers.runs.checkpoint import Progress


@pytest.fixture(autouse=True)
def float32_afterwards():
    yield
    keras.config.set_dtype_policy("float32")


def variables_of(*names: str, precision: str = "float32", optimizer: str = "sgd", units: int = 3):
    """The variables of a compiled model with a dense layer of each name, all of one shape."""
    keras.utils.clear_session(free_memory=False)
    keras.config.set_dtype_policy(precision)
    inputs = keras.Input((4,))
    layers = [keras.layers.Dense(units, name=name)(inputs) for name in names]
    model = keras.Model(inputs, keras.layers.Add()(layers))
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    return [*model.variables, *model.optimizer.variables]


def numbered(variables: list[keras.Variable], first: int = 1) -> dict[str, np.ndarray]:
    """Gives each variable a value of its own; all values by path."""
    for number, variable in enumerate(variables, first):
        variable.assign(np.full(variable.shape, number))
    return values(variables)


def values(variables: list[keras.Variable]) -> dict[str, np.ndarray]:
    return {variable.path: variable.numpy() for variable in variables}


def write(path: pathlib.Path, variables: list[keras.Variable], precision: str = "float32") -> bytes:
    checkpoint.write(path / "backup", Progress(2), "", precision, variables, None)
    return (path / "backup/latest.npz").read_bytes()


def test_variables_are_matched_by_path_in_whatever_order(tmp_path):
    saved = variables_of("one", "two", optimizer="adam")
    expected = numbered(saved)
    content = write(tmp_path, saved)
    others = variables_of("two", "one", optimizer="adam")
    assert [v.path for v in others] != [v.path for v in saved]
    checkpoint.restore(content, "float32", others)
    np.testing.assert_equal(values(others), expected)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"names": ("one", "three")}, r"it lacks three/bias, three/kernel; "
         r"it has in surplus two/bias, two/kernel; "),
        ({"names": ("one",)}, "it has in surplus two/bias, two/kernel; "),
        ({"names": ("one", "two"), "optimizer": "adam"}, r"it lacks adam/\S+, adam/\S+, adam/\S+ "
         r"and \d+ more; it has in surplus sgd/iteration, sgd/learning_rate; "),
        ({"names": ("one", "two"), "units": 5}, r"it has in another shape one/bias \(3,\), "
         r"expected \(5,\), .* and 1 more; "),
    ],
)  # fmt: skip
def test_a_backup_of_another_model_is_refused_and_changes_nothing(tmp_path, options, told):
    content = write(tmp_path, variables_of("one", "two"))
    names = options.pop("names")
    others = variables_of(*names, **options)
    before = numbered(others)
    with pytest.raises(UserError) as caught:
        checkpoint.restore(content, "float32", others)
    expected = f"backup/latest.npz: is of another model: {told}resume .*"
    assert re.fullmatch(expected, str(caught.value), re.I)  # Keras 3.12 says SGD for sgd.
    np.testing.assert_equal(values(others), before)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(
    "before, now",
    [("mixed_float16", "float32"), ("float32", "mixed_float16"), ("float64", "float32")],
)
def test_every_variable_but_the_loss_scale_goes_into_another_precision(
    tmp_path, optimizer, before, now
):
    saved = variables_of("one", "two", precision=before, optimizer=optimizer)
    expected = numbered(saved)
    content = write(tmp_path, saved, before)
    others = variables_of("one", "two", precision=now, optimizer=optimizer)
    scale = {k: v for k, v in values(others).items() if k.startswith("loss_scale_optimizer")}
    assert bool(scale) == (now == "mixed_float16")
    assert checkpoint.restore(content, now, others)[0] == before
    kept = {k: v for k, v in expected.items() if not k.startswith("loss_scale_optimizer")}
    np.testing.assert_equal(values(others), kept | scale)


@pytest.mark.parametrize(
    "before, now", [("mixed_float16", "float32"), ("float32", "mixed_float16")]
)
@pytest.mark.parametrize("step", [None, 2])
def test_an_sgd_run_keeps_its_learning_rate_in_another_precision(
    small_flags, tmp_path, caplog, before, now, step
):
    flags = [*small_flags, "--optimizer=sgd", "--checkpoint_every=1", f"--run_dir={tmp_path}/run"]
    fit_and_stop(*flags, f"--precision={before}", epoch=2, step=step)
    run_flags = tmp_path / "run/run.flags"
    # As of --precision=auto on another machine.
    run_flags.write_text(run_flags.read_text().replace(f"={before}\n", f"={now}\n"))
    history = fit(*flags, f"--precision={now}", "--resume").values["history"]
    assert [record.getMessage() for record in caplog.records if record.name == "absl"] == [
        f"the run was saved in {before} and is resumed in {now}"
    ]
    assert history["loss"] == sorted(history["loss"], reverse=True)
    optimizer = keras.models.load_model(tmp_path / "run/model.keras").optimizer
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    assert float(optimizer.learning_rate) == pytest.approx(0.01)
    assert int(optimizer.iterations) == 4 * 3


def test_a_backup_of_an_older_version_is_refused_in_one_line(small_flags, tmp_path):
    flags = [*small_flags, f"--run_dir={tmp_path}/run"]
    fit_and_stop(*flags, epoch=1)
    backup = tmp_path / "run/backup"
    for file in backup.iterdir():
        file.unlink()
    (backup / "latest.h5").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        fit(*flags, "--resume")
    assert str(caught.value) == (
        f"backup {backup}/latest.h5: written by an older version; finish the run with that "
        "version, or pass --overwrite to start the run anew"
    )


def test_every_bit_that_flips_is_harmless_or_noticed(tmp_path):
    """Of a small backup, with one before: no value is taken that was not saved."""
    variables = variables_of("one", optimizer="adam")
    expected = numbered(variables)
    content = write(tmp_path, variables)
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "backup/latest.npz").write_bytes(damaged)
        try:
            saved = checkpoint.read(tmp_path / "backup")
        except UserError as error:
            assert re.fullmatch("backup .*/latest.npz: damaged .*", str(error))
        else:
            assert (saved.progress, saved.metrics_csv) == (Progress(2), "")
            numbered(variables, first=100)
            checkpoint.restore(saved.content, "float32", variables)
            np.testing.assert_equal(values(variables), expected)


@pytest.mark.parametrize("damage", [b"", b"PK", bytes(10_000)])
def test_a_damaged_backup_is_replaced_by_the_one_before(tmp_path, caplog, damage):
    variables = variables_of("one")
    for epoch in (1, 2):
        numbered(variables, first=epoch)
        checkpoint.write(tmp_path, Progress(epoch), f"{epoch}", "float32", variables, None)
    (tmp_path / "latest.npz").write_bytes(damage)
    for _ in range(2):
        assert checkpoint.read(tmp_path).progress == Progress(1)
    assert caplog.messages == [f"{tmp_path}/latest.npz: damaged; going on from the backup before"]
