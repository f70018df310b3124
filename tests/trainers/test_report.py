"""The page about several runs: what it says, that it stands alone, and how a browser shows it."""

import base64
import html.parser
import io
import json
import re
import shutil

import pytest
from PIL import Image
from small_runs import fit, fit_and_stop, result_of, run_command

from pizza_steak.errors import UserError
from trainers.configuration import PageConfig, ReportConfig
from trainers.pages import plots, run_report
from trainers.runs import scores

HOSTILE = "<img src=x onerror=alert(1)>"
NONE = "\N{EN DASH}"


class Page(html.parser.HTMLParser):
    """A page by its parts.

    Attributes:
      text: All of it, as it was written.
      elements: Every start tag, with its attributes.
      tables: For each section that has one, by its id: rows of the texts of their cells.
    """

    def __init__(self, text: str):
        super().__init__()
        self.text = text
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._section = self._cells = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag == "h2":
            self._section = attributes["id"]
        if tag == "tr":
            self.tables.setdefault(self._section, []).append([])
        if tag in ("td", "th"):
            self._cells = self.tables[self._section][-1]
            self._cells.append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cells[-1] = " ".join(self._cells[-1].split())
            self._cells = None

    def handle_data(self, data):
        if self._cells:
            self._cells[-1] += data

    def row(self, section: str, name: str) -> dict[str, str]:
        """The row of a run, by the headings."""
        headings, *rows = self.tables[section]
        (row,) = (row for row in rows if row[0].split()[0] == name)
        return dict(zip(headings, row, strict=True))

    def images(self, title: str) -> list[bytes]:
        """The files of the images whose alternative text starts so."""
        return [
            base64.b64decode(attributes["src"].partition(";base64,")[2])
            for tag, attributes in self.elements
            if tag == "img" and attributes["alt"].startswith(title)
        ]


@pytest.fixture(scope="module")
def trained(small_flags, tmp_path_factory):
    """Three finished runs, one that is not, and a folder that is none."""
    folder = tmp_path_factory.mktemp("runs")
    fit(*small_flags, f"--run_dir={folder}/plain")
    fit(*small_flags, f"--run_dir={folder}/wide", "--filters=8", "--epochs=2")
    fit(*small_flags, f"--run_dir={folder}/turned", "--rotation_range=20", "--learning_rate=1e-5")
    fit_and_stop(*small_flags, f"--run_dir={folder}/stopped", epoch=2)
    (folder / "pictures").mkdir()
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    """A copy of them, to be changed."""
    return shutil.copytree(trained, tmp_path / "runs")


def report(runs, pattern: str = "*") -> Page:
    """The page about the runs of a folder."""
    output = runs.parent / "report.html"
    run_report.write(ReportConfig(PageConfig(runs=f"{runs}/{pattern}", output=str(output))))
    return Page(output.read_text(encoding="utf-8"))


def replace(file, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def make_hostile(runs) -> None:
    """Gives a run a name, a flag and a class of markup, and another a name that cannot wrap."""
    replace(runs / "plain" / "result.json", '"dark"', json.dumps(f"{HOSTILE}class"))
    replace(runs / "plain" / "run.flags", "--optimizer=adam", f"--optimizer={HOSTILE}flag")
    (runs / "plain").rename(runs / f"{HOSTILE}name")
    (runs / "turned").rename(runs / ("turned" * 30))


def test_the_numbers_are_those_of_the_models_that_were_kept(trained):
    page = report(trained)
    for name in ("plain", "wide", "turned"):
        result = result_of(trained / name)
        history = result["history"]
        best = history["val_loss"].index(min(history["val_loss"]))
        row = page.row("results", name)
        assert row["Best epoch"] == f"{best + 1} of {len(history['loss'])}"
        assert row["Validation accuracy"] == f"{history['val_accuracy'][best]:.4f}"
        assert row["Training accuracy"] == f"{history['accuracy'][best]:.4f}"
        assert row["Test accuracy"] == f"{scores.test_accuracy_text(result)}*"
        assert row["Test loss"] == f"{result['test_loss']:.4f}"
        assert row["Parameters"] == f"{result['parameters']:,}"
        speed = page.row("throughput", name)
        assert speed["Training images per second"] == f"{result['train_images_per_second']:,.0f}"
        assert speed["Seconds of training"] == f"{result['fit_seconds']:,.1f}"


def test_the_best_is_chosen_by_validation_and_not_by_test(runs):
    for name, accuracy in (("plain", 0.2), ("wide", 0.9), ("turned", 0.3)):
        metrics = runs / name / "metrics.csv"
        heading, *rows = metrics.read_text().splitlines()
        rows = [re.sub(r"[^,]+(?=,[^,]+$)", str(accuracy), row) for row in rows]
        metrics.write_text("\n".join([heading, *rows]) + "\n")
    replace(runs / "plain" / "result.json", '"test_accuracy": ', '"test_accuracy": 1')
    page = report(runs)
    names = [row[0] for row in page.tables["results"][1:]]
    assert [name for name in names if "best" in name] == ["wide best"]


def test_only_flags_that_differ_are_shown(trained):
    page = report(trained)
    rows = [[row[0].split()[0], *row[1:]] for row in page.tables["flags"]]
    in_order = [row[0].split()[0] for row in page.tables["results"]]
    assert rows == [
        ["Run", "rotation_range", "filters", "epochs", "learning_rate"],
        *sorted(rows[1:], key=lambda row: in_order.index(row[0])),
    ]
    assert sorted(rows[1:]) == [
        ["plain", "0.0", "4", "4", "0.01"],
        ["stopped", "0.0", "4", "4", "0.01"],
        ["turned", "20.0", "4", "4", "1e-05"],
        ["wide", "0.0", "8", "2", "0.01"],
    ]
    assert "flags" not in report(trained, "plain").tables


def test_figures_are_those_of_the_runs(trained):
    page = report(trained)
    (matrix,) = page.images("Confusion matrices: wide")
    assert matrix == (trained / "wide" / "confusion_matrix.png").read_bytes()
    (augmented,) = page.images("Augmented images")
    with (
        Image.open(io.BytesIO(augmented)) as shown,
        Image.open(trained / "turned" / "augmentation.png") as drawn,
    ):
        assert shown.size == drawn.size
    assert all(svg.startswith(b"<?xml") for svg in page.images("Validation"))
    assert all(attributes["alt"] for tag, attributes in page.elements if tag == "img")


@pytest.mark.slow
def test_the_figures_of_an_evaluated_run_are_shown(runs):
    titles = {"mistakes.png": "Most confident mistakes", "activation_maps.png": "Activation maps"}
    page = report(runs)
    assert not any(page.images(title) for title in titles.values())
    folder = runs / "turned" / "evaluation"
    argv = [f"--run_dir={runs}/turned", f"--activation_maps={folder}/activation_maps.png"]
    status, _, stderr = run_command(*argv, command="evaluate")
    assert (status, stderr) == (0, "")
    page = report(runs)
    for name, title in titles.items():
        (image,) = page.images(f"{title}: turned")
        with Image.open(io.BytesIO(image)) as shown, Image.open(folder / name) as drawn:
            assert shown.size == drawn.size


def test_a_run_that_is_not_finished_is_shown_as_far_as_it_has_come(trained):
    page = report(trained)
    row = page.row("results", "stopped")
    assert row["Run"] == "stopped unfinished: 2 of 4 epochs"
    # The flags are those of the finished run, and so are the epochs.
    history = result_of(trained / "plain")["history"]
    best = min(range(2), key=history["val_loss"].__getitem__)
    assert row["Validation loss"] == f"{history['val_loss'][best]:.4f}"
    assert row["Test accuracy"] == page.row("throughput", "stopped")["CPU seconds"] == NONE


def test_a_run_that_has_not_learned_is_named(runs):
    for name, bounds in (("plain", [0.4, 0.6]), ("wide", [0.6, 0.8])):
        file = runs / name / "result.json"
        values = {"largest_class": "dark", "largest_class_share": 0.5}
        values["test_accuracy_interval"] = bounds
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
    text = report(runs).text
    assert "plain has not learned: always answering &#39;dark&#39; is right for 0.500" in text
    assert "wide has not learned" not in text


def test_a_run_without_an_epoch_has_a_row(runs):
    (runs / "stopped" / "metrics.csv").unlink()
    row = report(runs).row("results", "stopped")
    assert row["Run"] == "stopped unfinished: 0 of 4 epochs"
    assert {row["Validation accuracy"], row["Gap"], row["Best epoch"]} == {NONE}


def test_a_run_without_validation_has_a_row_and_is_not_the_best(runs, small_flags):
    flags = [f"--run_dir={runs}/unvalidated", "--validation_split=none", "--epochs=2"]
    result = fit(*small_flags, *flags).values
    page = report(runs)
    row = page.row("results", "unvalidated")
    assert row["Run"] == "unvalidated"
    assert row["Best epoch"] == "2 of 2"
    assert row["Training accuracy"] == f"{result['history']['accuracy'][-1]:.4f}"
    assert {row["Validation accuracy"], row["Validation loss"], row["Gap"]} == {NONE}
    # Its test images chose nothing, and so they are not marked.
    assert row["Test accuracy"] == scores.test_accuracy_text(result)
    assert "* The images of this test also chose the best epoch" in page.text
    assert "also chose the best epoch" not in report(runs, "unvalidated").text


def test_a_run_of_an_older_version_is_shown_without_what_it_did_not_say(runs):
    result = result_of(runs / "plain")
    for name in ("test_images", "test_accuracy_interval", "test_images_chose_the_model"):
        del result[name]
    (runs / "plain" / "result.json").write_text(json.dumps(result))
    page = report(runs, "plain")
    assert page.row("results", "plain")["Test accuracy"] == f"{result['test_accuracy']:.3f}"


def test_folders_that_are_no_runs_are_named(trained, tmp_path):
    config = ReportConfig(PageConfig(f"{trained}/*", str(tmp_path / "report.html")))
    told = run_report.write(config)
    assert (
        told.splitlines()[-1]
        == f"left out: {trained}/pictures: not a run directory; run.flags is missing"
    )
    assert f"<li>{trained}/pictures: not a run directory" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("result.json", '{"model": '),
        ("result.json", "[]"),
        ("result.json", "{}"),
        ("environment.json", "\0"),
        ("metrics.csv", "epoch,loss\n0,0.5\n"),
        ("metrics.csv", "epoch,loss,accuracy,val_loss,val_accuracy\n0,a,b,c,d\n"),
        ("run.flags", "--wings=2\n"),
        ("curves.png", "no picture"),
    ],
)
def test_a_damaged_file_is_named_in_one_line_and_the_other_runs_are_shown(runs, file, content):
    (runs / "plain" / file).write_text(content)
    entries, left_out = run_report.find(f"{runs}/*")
    assert {entry.name for entry in entries} == {"stopped", "turned", "wide"}
    (line,) = (line for line in left_out if "pictures" not in line)
    assert str(runs / "plain") in line
    assert file in line
    assert "\n" not in line


def test_runs_of_several_folders_are_told_apart(runs):
    shutil.copytree(runs, runs / "more")
    entries, _ = run_report.find(f"{runs}/[mp]*")
    assert [entry.name for entry in entries] == ["plain"]
    shutil.move(runs / "wide", runs / "first" / "plain")
    entries, _ = run_report.find(f"{runs}/*/plain")
    assert {entry.name for entry in entries} == {"first/plain", "more/plain"}


def on_other_images(run, split: str) -> None:
    environment = run / "environment.json"
    values = json.loads(environment.read_text())
    values["splits"][split]["fingerprint"] = "0123"
    environment.write_text(json.dumps(values))


def with_other_classes(run) -> None:
    replace(run / "result.json", '"dark"', '"dim"')


@pytest.mark.parametrize(
    "change, different",
    [
        (lambda run: on_other_images(run, "validation"), "validation images"),
        (lambda run: on_other_images(run, "test"), "test images"),
        (with_other_classes, "classes"),
    ],
)
def test_no_run_is_the_best_of_runs_that_do_not_compare(runs, change, different):
    page = report(runs)
    assert "do not compare" not in page.text
    assert "best" in page.text
    assert "best: " in told(runs)
    change(runs / "wide")
    page = report(runs)
    assert f"These runs have different {different}: do not compare" in page.text
    assert "The best is" not in page.text
    names = [row[0].split()[0] for row in page.tables["results"][1:]]
    assert names == ["plain", "stopped", "turned", "wide"]
    assert not any("best" in row[0] for row in page.tables["results"][1:])
    assert f"no best run: they have different {different}" in told(runs)
    assert "best: " not in told(runs)


def test_training_on_more_images_is_no_reason_not_to_compare(runs):
    on_other_images(runs / "wide", "train")
    assert "The best is" in report(runs).text


def told(runs) -> str:
    output = str(runs.parent / "report.html")
    return run_report.write(ReportConfig(PageConfig(runs=f"{runs}/*", output=output)))


def test_the_best_run_is_the_first_and_unfinished_ones_are_the_last(trained):
    headings, *rows = report(trained).tables["results"]
    accuracies = [float(row[headings.index("Validation accuracy")]) for row in rows]
    assert "best" in rows[0][0]
    assert rows[-1][0].startswith("stopped")
    assert accuracies[:-1] == sorted(accuracies[:-1], reverse=True)


def test_equal_runs_are_one_and_are_named(runs):
    for copy in ("again", "plain2"):
        shutil.copytree(runs / "plain", runs / copy)
    # Where it ran is no difference.
    replace(runs / "again" / "result.json", '"fit_seconds": ', '"fit_seconds": 9')
    page = report(runs)
    names = [row[0] for row in page.tables["results"][1:]]
    assert len(names) == 4
    assert any(name.startswith("again") and "3 runs" in name for name in names)
    assert "again stands for 3 runs with the same flags and results; also: plain, plain2" in (
        page.text
    )
    assert told(runs).splitlines()[1] == "the same run: again, plain, plain2"
    # Other flags with the same results, and other results with the same flags, are other runs.
    replace(runs / "again" / "run.flags", "--optimizer=adam", "--optimizer=adamw")
    replace(runs / "plain2" / "result.json", '"test_loss": ', '"test_loss": 1')
    assert len(report(runs).tables["results"]) == 1 + 6


def test_unfinished_runs_are_not_equal(runs):
    shutil.copytree(runs / "stopped", runs / "stopped2")
    assert len(report(runs).tables["results"]) == 1 + 5


def test_an_archive_has_no_dataset(runs):
    replace(runs / "plain" / "run.flags", "--archive=", "--dataset=pizza_steak/other\n--archive=")
    assert "dataset" not in report(runs).tables["flags"][0]


def test_text_of_others_is_no_markup(runs):
    make_hostile(runs)
    page = report(runs)
    flags = {row[0].removesuffix(" best"): row[1:] for row in page.tables["flags"]}
    assert f"{HOSTILE}flag" in flags[f"{HOSTILE}name"]
    alternatives = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert any(f"{HOSTILE}class" in text for text in alternatives)
    assert not [attributes for _, attributes in page.elements if "onerror" in attributes]
    assert [tag for tag, _ in page.elements].count("script") == 1


def test_the_page_stands_alone(runs):
    make_hostile(runs)
    page = report(runs)
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith(("data:image/", "#"))
    assert not re.search(r"https?://|url\(|@import|<link", page.text)


def test_no_two_of_twenty_lines_look_alike():
    assert len({plots.line_style(index) for index in range(20)}) == 20


def test_the_page_is_replaced_as_a_whole_or_not_at_all(trained, tmp_path):
    output = tmp_path / "folder" / "report.html"
    config = ReportConfig(PageConfig(f"{trained}/*", str(output)))
    with pytest.raises(UserError, match=r"output .*report.html: No such file"):
        run_report.write(config)
    output.mkdir(parents=True)
    with pytest.raises(UserError, match=r"output .*report.html: Is a directory"):
        run_report.write(config)
    assert list(output.parent.iterdir()) == [output]


def test_reading_runs_does_not_import_tensorflow(trained, run_python):
    program = (
        "import sys; from trainers.pages import run_report;"
        "print(len(run_report.find(sys.argv[1])[0]), 'tensorflow' in sys.modules)"
    )
    assert run_python(program, f"{trained}/*", fresh=True).split() == ["4", "False"]


@pytest.mark.slow
def test_the_command_writes_the_page_and_says_so(trained, tmp_path):
    output = tmp_path / "report.html"
    flags = (f"--runs={trained}/*", f"--output={output}")
    status, stdout, stderr = run_command(*flags, command="report", fresh=True)
    assert (status, stderr) == (0, "")
    assert stdout.startswith(f"{output}: 4 runs\nbest: ")
    assert output.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["*/nothing", "pictures", "plain/run.flags"])
def test_no_run_at_all_is_one_line(trained, tmp_path, pattern):
    output = tmp_path / "report.html"
    flags = (f"--runs={trained}/{pattern}", f"--output={output}")
    status, stdout, stderr = run_command(*flags, command="report")
    assert (status, stdout) == (1, "")
    assert stderr.startswith(f"error: runs '{trained}/{pattern}': no ")
    assert stderr.count("\n") == 1
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_a_browser_shows_it_without_errors_and_without_scrolling_sideways(
    runs, browser, width, height, scripts
):
    make_hostile(runs)
    report(runs)
    browser.open(runs.parent / "report.html", width, height, scripts=scripts)
    root = "document.documentElement"
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
    assert browser.evaluate(
        "[...document.images].every(image => image.complete && image.naturalWidth)"
    )
    assert f"{HOSTILE}name" in browser.evaluate("document.body.innerText")
    told = [event for event in browser.events if event[0].startswith(("Log.", "Runtime.exc"))]
    assert told == []
    assert "Runtime.consoleAPICalled" not in (method for method, _ in browser.events)
    addresses = [
        parameters["request"]["url"]
        for method, parameters in browser.events
        if method == "Network.requestWillBeSent"
    ]
    assert addresses[0].startswith("file:")
    assert all(address.startswith("data:") for address in addresses[1:])


@pytest.mark.slow
def test_a_table_shows_on_which_side_more_can_be_scrolled_to(trained, browser):
    report(trained)
    browser.open(trained.parent / "report.html", 390, 844)
    table = "document.querySelector('.scroll')"

    def darkest() -> int:
        """The darkest of the pixels at the right edge of a row of the table."""
        box = json.loads(
            browser.evaluate(
                f"JSON.stringify((({table}.scrollIntoView()), {table}.querySelector('tbody tr')"
                f".getBoundingClientRect().top + '|' + {table}.getBoundingClientRect().right))"
            )
        )
        top, right = map(float, box.split("|"))
        shot = browser.call("Page.captureScreenshot", format="png")["data"]
        with Image.open(io.BytesIO(base64.b64decode(shot))) as image:
            x, y = round(right) - 1, round(top) + 4  # Above the letters.
            return image.convert("L").crop((x - 6, y, x, y + 2)).getextrema()[0]

    assert darkest() < 200
    browser.evaluate(f"{table}.scrollLeft = 10000")
    assert darkest() > 220


@pytest.mark.slow
def test_headings_sort_the_rows_and_what_has_no_value_stays_last(trained, browser):
    page = report(trained)
    browser.open(trained.parent / "report.html", 1280, 800)
    column = page.tables["results"][0].index("Test loss")
    table = "document.querySelector('table')"
    losses = [result_of(trained / name)["test_loss"] for name in ("plain", "turned", "wide")]
    for expected in (sorted(losses), sorted(losses, reverse=True)):
        browser.evaluate(f"{table}.tHead.rows[0].cells[{column}].querySelector('button').click()")
        shown = browser.evaluate(
            f"[...{table}.tBodies[0].rows].map(r => r.cells[{column}].innerText)"
        )
        assert shown == [f"{loss:.4f}" for loss in expected] + [NONE]
