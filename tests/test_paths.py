"""A path of the user's is no template, no pattern and no shell code, wherever it goes."""

import shlex
import zipfile

import pytest
from absl import flags
from small_runs import fit, fit_and_stop, parse_flags, run_command

from pizza_steak import inspection
from pizza_steak.configuration import InspectConfig
from pizza_steak.errors import UserError
from trainers.configuration import (
    ArtifactConfig,
    EvaluateConfig,
    ExportConfig,
    FitConfig,
    PageConfig,
    ReportConfig,
)
from trainers.runs import run_directory

# What str.format, printf, glob, shells, pathlib, flagfiles and URLs read in their own way.
NAME = "a{b} {epoch} {val_loss:.2f} [1] %s %(x)d 'q' \"w\" $HOME * ? # é -- &;~"


@pytest.fixture(scope="module")
def place(tmp_path_factory, archive):
    """A folder of that name, with an archive in it."""
    folder = tmp_path_factory.mktemp("place") / NAME
    folder.mkdir()
    (folder / f"{NAME}.zip").write_bytes(archive.read_bytes())
    return folder


@pytest.fixture(scope="module")
def flags_there(place, small_flags):
    given = [f for f in small_flags if not f.startswith(("--archive", "--data_dir", "--epochs"))]
    return [*given, f"--archive={place / NAME}.zip", f"--data_dir={place}/data {NAME}"]


@pytest.fixture(scope="module")
def run(place, flags_there):
    flags = [*flags_there, "--epochs=2", "--tensorboard", "--rotation_range=9"]
    return run_directory.open_run(str(fit(*flags, f"--run_dir={place}/runs/{NAME}").run_dir))


def test_a_run_is_written_there_and_nowhere_else(run, place, flags_there):
    expected = {"run.flags", "model.keras", "metrics.csv", "result.json", "tensorboard"}
    assert expected <= {path.name for path in run.path.iterdir()}
    assert run.path == place / "runs" / NAME
    assert [path.name for path in (place / "runs").iterdir()] == [NAME]
    plain = fit(*flags_there, "--epochs=2", "--rotation_range=9", f"--run_dir={place}/plain")
    assert plain.values["test_loss"] == run.result["test_loss"]


def test_what_uses_a_run_finds_it(run, place):
    from trainers.finished import evaluation, exporting, prediction
    from trainers.pages import run_report

    config = parse_flags(f"--activation_maps={place}/maps {NAME}.png", config=EvaluateConfig)
    evaluation.evaluate(run, config).write(config.evaluation)
    assert (place / f"maps {NAME}.png").exists()
    rows = prediction.predict(run, [f"{place / NAME}.zip/test"]).rows()
    assert len([row for row in rows if "error" not in row]) == 12
    told = run_report.write(ReportConfig(PageConfig(f"{place}/runs/*", f"{place}/{NAME}.html")))
    assert ": 1 run\n" in told
    output = place / f"{NAME}.tflite"
    litert = ArtifactConfig(str(run.path), format="litert", output=str(output))
    assert exporting.export(run, litert).path == output


def test_a_folder_with_brackets_is_no_pattern(run, tmp_path, picture):
    from trainers.finished import prediction

    for folder in ("photos [1]", "photos 1"):
        (tmp_path / folder).mkdir()
        picture(1, 24, 20).save(tmp_path / folder / f"{folder}.png")
    (row,) = prediction.predict(run, [f"{tmp_path}/photos [1]/*.png"]).rows()
    assert row["path"] == f"{tmp_path}/photos [1]/photos [1].png"


def test_a_saved_model_that_could_not_be_loaded_is_refused_in_one_line(run):
    from trainers.finished import exporting

    config = parse_flags(f"--run_dir={run.path}", config=ExportConfig)
    with pytest.raises(UserError, match=r"with \* for a pattern and cannot load it; pass") as error:
        exporting.export(run, config.artifact)
    assert "\n" not in str(error.value)
    assert not (run.path / "saved_model").exists()


@pytest.mark.parametrize("head_only", [False, True], ids=["network", "head"])
def test_the_printed_command_resumes_the_run(
    flags_there, head_flags, place, tmp_path, monkeypatch, head_only
):
    run_dir = place / f"stopped {head_only}"
    asked = [*flags_there, "--epochs=3", f"--run_dir={run_dir}"]
    if head_only:
        given = [f for f in flags_there if not f.startswith(("--filters", "--conv", "--image"))]
        asked = [*given, *head_flags[-2:], *asked[-2:]]
    fit_and_stop(*asked, epoch=2)
    python, m, module, *argv = shlex.split(run_directory.Run(run_dir).command_to_resume)
    assert (python, m, module) == ("python", "-m", "trainers.fit")
    monkeypatch.chdir(tmp_path)  # The command works anywhere.
    assert len(fit(*argv).values["history"]["loss"]) == 3


def test_a_pattern_of_archives_is_found_from_any_folder(
    run, flags_there, archive, tmp_path, monkeypatch
):
    from trainers.finished import evaluation

    folder = tmp_path / NAME
    folder.mkdir()
    with zipfile.ZipFile(archive) as whole:
        for number, name in enumerate(whole.namelist()):
            with zipfile.ZipFile(folder / f"part-{number % 3}.zip", "a") as part:
                part.writestr(name, whole.read(name))
    monkeypatch.chdir(folder)
    asked = [*flags_there, "--archive=part-[0-9]*.zip", "--epochs=2", "--rotation_range=9"]
    fit_and_stop(*asked, "--run_dir=stopped", epoch=1)
    command = run_directory.Run(folder / "stopped").command_to_resume
    monkeypatch.chdir("/")
    resumed = fit(*shlex.split(command)[3:])
    assert resumed.values["test_loss"] == run.result["test_loss"]
    stopped = run_directory.open_run(str(folder / "stopped"))
    assert stopped.config.data.archive == f"{folder}/part-[0-9]*.zip"
    values = evaluation.evaluate(stopped, parse_flags(config=EvaluateConfig)).values
    assert values["loss"] == stopped.result["test_loss"]


def test_figures_and_findings_are_written_there(place):
    names = [f"--{flag}={place}/{flag} {NAME}.png" for flag in ("grid", "json")]
    config = parse_flags(f"--archive={place / NAME}.zip", *names, config=InspectConfig)
    inspection.report(config)
    assert {f"grid {NAME}.png", f"json {NAME}.png"} <= {path.name for path in place.iterdir()}


@pytest.mark.slow
def test_a_search_is_not_lost_at_its_end(flags_there, place):
    given = [f for f in flags_there if not f.startswith("--validation_split")]
    sweep_dir = place / f"sw {NAME}"
    limits = ["--max_trials=1", "--finalists=1", "--max_epochs=1", "--final_epochs=1"]
    status, stdout, stderr = run_command(
        *(*given, *limits, f"--sweep_dir={sweep_dir}"),
        package="tuning",
        command="sweep",
        cwd=place,
    )
    assert status == 0, stderr
    assert (sweep_dir / "best" / "model.keras").exists()
    (line,) = (line for line in stdout.splitlines() if line.startswith("repeat it: "))
    argument = f"--flagfile={sweep_dir}/best.flags"
    assert argument in shlex.split(line)
    assert parse_flags(argument).data.archive == f"{place / NAME}.zip"


@pytest.mark.parametrize("text", ["a\nb", "a\n--epochs=9", "a ", " a", "a\u2028b", "a\rb", ""])
@pytest.mark.parametrize("name", ["archive", "run_dir", "data_dir", "model"])
def test_what_a_flagfile_cannot_hold_is_refused(name, text):
    with pytest.raises(flags.Error, match=f"(?s)--{name}=.*expected one line, without blanks"):
        parse_flags(f"--{name}={text}", config=FitConfig)


def test_home_is_found_in_every_path(monkeypatch, tmp_path, archive, run):
    from trainers.finished import evaluation, prediction

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.zip").write_bytes(archive.read_bytes())
    names = [f"--{flag}=~/{flag}.png" for flag in ("grid", "json")]
    inspection.report(parse_flags("--archive=~/a.zip", *names, config=InspectConfig))
    names = [f"--{flag}=~/{flag}.png" for flag in ("activation_maps", "json", "out_dir")]
    config = parse_flags(*names, config=EvaluateConfig)
    evaluation.evaluate(run, config).write(config.evaluation)
    predictions = prediction.predict(run, ["~/a.zip/test/dark"])
    assert len(list(predictions.rows())) == 6
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"a.zip", "grid.png", "json.png", "activation_maps.png", "out_dir.png"}
