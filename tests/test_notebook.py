"""docs/pizza_steak.ipynb runs from its first cell to its last."""

import pathlib
import re

import pytest

nbclient = pytest.importorskip("nbclient", reason="the extra `test` has it")
nbformat = pytest.importorskip("nbformat", reason="nbclient brings it")
pytest.importorskip("ipykernel", reason="the extra `test` has it")

ROOT = pathlib.Path(__file__).parents[1]
PATH = ROOT / "docs/pizza_steak.ipynb"

PROGRESS = """from pizza_steak.progress_bar import progress_bar

_ = progress_bar(3).refresh()"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after all its cells ran, in a new folder with an empty home; and that folder."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(PATH, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(PROGRESS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("PYTHONPATH", str(ROOT))
        for name in ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS", "MPLBACKEND"):
            patch.delenv(name, raising=False)
        nbclient.NotebookClient(
            notebook,
            timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            coalesce_streams=True,
        ).execute()
    return notebook, folder


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


@pytest.mark.slow
def test_nothing_goes_to_stderr(executed):
    notebook, _ = executed
    streams = [output for output in outputs(notebook) if output.output_type == "stream"]
    assert streams
    assert [output.text for output in streams if output.name == "stderr"] == []


@pytest.mark.slow
def test_it_shows_figures_and_ends_with_a_report(executed):
    notebook, folder = executed
    figures = [output for output in outputs(notebook) if "image/png" in output.get("data", ())]
    assert len(figures) == 2
    assert (folder / "report.html").exists(), notebook.cells[-2].outputs
    for run in ("plain", "augmented"):
        assert (folder / "runs" / run / "result.json").exists()


@pytest.mark.slow
def test_progress_bars_are_drawn_and_not_on_stderr(executed):
    notebook, _ = executed
    (output,) = notebook.cells[-1].outputs
    assert "0/3" in output.text
    assert output.name == "stdout"


@pytest.mark.slow
def test_its_text_does_not_hold_objects_without_a_name(executed):
    notebook, _ = executed
    texts = [output.data["text/plain"] for output in outputs(notebook) if "data" in output]
    assert [text for text in texts if " at 0x" in text or "_AssertCardinality" in text] == []


def test_the_outputs_in_the_repository_are_small_and_name_no_machine():
    notebook, text = nbformat.read(PATH, as_version=4), PATH.read_text()
    nbformat.validate(notebook)
    assert {"load", "train", "predict"} <= {
        name
        for cell in notebook.cells
        for name in re.findall(r"\w+\.(\w+)\(", cell.source)
        if cell.get("outputs")
    }
    assert len(text) < 250_000
    assert "/tmp/" not in text and "/root/" not in text
