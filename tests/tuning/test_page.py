"""The page of a search: what it says, what is important, and how a browser shows it."""

import base64
import html
import math
import random
import re

import pytest

from tuning.pages import importance, page, parallel, plots
from tuning.pages.table import Row
from tuning.space.ranges import Range

DASH = "\N{EN DASH}"
HOSTILE = "<img src=x onerror=alert(1)>"
RANGES = {
    "learning_rate": Range(low=1e-4, high=1e-1, log=True),
    "dropout": Range(low=0.0, high=0.5),
    "optimizer": Range(("adam", "adamw")),
    "batch_normalization": Range((False, True)),
    "dense_layers": Range(low=0, high=2),
    "dense_units": Range(low=16, high=256, log=True),
    "padding": Range(("same",)),
}
RESULT = {
    "test_accuracy": 0.8125,
    "test_accuracy_interval": [0.681, 0.898],
    "test_images": 48,
    "test_images_chose_the_model": False,
    "largest_class": "pizza",
    "largest_class_share": 0.5,
    "test_loss": 0.5,
    "parameters": 12345,
    "fit_seconds": 67.8,
    "history": {"loss": [0.9, 0.8, 0.7]},
}


def by_learning_rate(settings) -> float:
    """An accuracy that is best at a learning rate of 0.01."""
    return 0.9 - 0.1 * abs(math.log10(settings["learning_rate"]) + 2)


def trials(count: int, score=by_learning_rate, failed=()) -> list[Row]:
    """Trials of settings drawn by chance, of which some failed; another one is running."""
    draw = random.Random(0)
    rows = []
    for number in range(count):
        settings = {
            "learning_rate": 10 ** draw.uniform(-4, -1),
            "dropout": draw.uniform(0, 0.5),
            "optimizer": draw.choice(("adam", "adamw")),
            "batch_normalization": draw.choice((False, True)),
            "dense_layers": draw.randint(0, 2),
            "padding": "same",
        }
        if settings["dense_layers"]:
            settings["dense_units"] = draw.randint(16, 256)
        rows.append(
            Row(
                trial=f"{number:04}",
                status="failed" if number in failed else "completed",
                objective=None if number in failed else score(settings),
                epochs=5,
                seconds=9.5,
                ended_after=10.0 * number + 10,
                settings=settings,
                reason="out of memory" if number in failed else "",
            )
        )
    return [*rows, Row("running", "running", None, 0, 0.0, None, rows[0].settings)] if rows else []


def losses(rows) -> list[Row]:
    """The same trials with a loss in place of the accuracy."""
    return [
        Row(**vars(row) | {"objective": None if row.objective is None else 1 - row.objective})
        for row in rows
    ]


def importances(rows) -> dict[str, float]:
    found = importance.measure(rows, RANGES)
    return found.settings if found else {}


def words(text: str) -> str:
    """What of a page is no markup."""
    text = re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def trials_in_table(text: str) -> list[str]:
    table = text[text.index('<table class="wide sortable trials">') :]
    return re.findall(r'<th scope="row">([^ <]+)', table)


def test_the_setting_that_decides_is_the_most_important_and_noise_is_not():
    found = importances(trials(60))
    assert next(iter(found)) == "learning_rate"
    noise = [share for name, share in found.items() if name != "learning_rate"]
    assert found["learning_rate"] > 0.5
    assert max(map(abs, noise)) < 0.05
    assert "padding" not in found
    assert importances(trials(60)) == found


def test_a_loss_has_the_importance_of_its_accuracy():
    found = importances(losses(trials(60)))
    assert next(iter(found)) == "learning_rate"
    assert found["learning_rate"] > 0.5


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("optimizer", lambda settings: settings["optimizer"] == "adam"),
        ("batch_normalization", lambda settings: settings["batch_normalization"]),
        ("dense_units", lambda settings: settings.get("dense_units", 0) > 100),
    ],
)
def test_settings_of_any_kind_can_be_important(name, score):
    draw = random.Random(1)
    rows = trials(60, lambda settings: 0.5 + 0.2 * score(settings) + draw.gauss(0, 0.01))
    assert next(iter(importances(rows))) == name


def test_of_noise_the_forest_says_that_it_explains_nothing():
    draw = random.Random(1)
    rows = trials(40, lambda settings: draw.random())
    assert importance.measure(rows, RANGES).r_squared < 0
    text = page.render(rows, RANGES, "val_loss", None)
    assert "Not drawn: a random forest" in words(text)
    assert 'class="bars"' not in text
    assert "the most important first" not in text


def test_an_order_that_may_be_chance_is_said_to_be_so():
    draw = random.Random(1)
    rows = trials(40, lambda settings: by_learning_rate(settings) + draw.gauss(0, 0.1))
    assert 0 < importance.measure(rows, RANGES).r_squared < 0.3
    text = page.render(rows, RANGES, "val_accuracy", None)
    assert "the order below may be chance" in words(text)
    assert 'class="bars"' in text


def test_one_loss_that_diverged_does_not_hide_what_is_important():
    rows = losses(trials(60))
    rows[7] = Row(**vars(rows[7]) | {"objective": 1e9})
    assert next(iter(importances(rows))) == "learning_rate"


def test_trials_of_the_same_settings_are_judged_once_with_their_epochs():
    rows = trials(20)
    longer = [Row(**vars(row) | {"epochs": 15, "objective": 0.95}) for row in rows[:8]]
    found = importance.measure([*rows, *longer], RANGES)
    assert found.trials == 20
    assert found.epochs > 0.1
    assert importance.measure(rows, RANGES).epochs is None


@pytest.mark.parametrize(
    "rows", [trials(9), trials(20, lambda settings: 0.5), trials(9) + trials(9)]
)
def test_too_little_to_tell_importance_is_said(rows):
    assert importances(rows) == {}
    assert "at least 10 completed trials" in words(page.render(rows, RANGES, "val_loss", None))


def test_the_headline_counts_and_names_the_best():
    rows = trials(20, failed=(3, 5))
    best = max(rows, key=lambda row: row.objective or 0)
    winner = page.Winner(best.trial, "--epochs=3\n", RESULT)
    said = words(page.render(rows, RANGES, "val_accuracy", winner))
    assert f"trial {best.trial} : validation accuracy {best.objective:.4f}" in said
    assert "test accuracy of 0.812 (0.68 to 0.90, 48 images)" in said
    assert "18 completed, 2 failed, 1 running or interrupted, in 200 seconds" in said
    assert "--flagfile=best.flags" in said
    assert "--epochs=3" in said
    chosen = RESULT | {"test_images_chose_the_model": True, "largest_class_share": 0.7}
    said = words(page.render(rows, RANGES, "val_accuracy", page.Winner(best.trial, "", chosen)))
    assert "These images also chose the settings: expect less on new ones." in said
    assert "Has not learned: always answering 'pizza' is right for 0.700." in said
    unfinished = words(page.render(rows, RANGES, "val_accuracy", None))
    assert f"trial {best.trial} : validation accuracy" in unfinished
    assert "has not yet been trained on all training images" in unfinished


@pytest.mark.parametrize("objective", ["val_accuracy", "val_loss"])
def test_the_best_come_first_and_then_what_failed(objective):
    rows = trials(20, failed=(3, 5))
    expected = [
        row.trial
        for row in sorted(rows, key=lambda row: -(row.objective or 0))
        if row.objective is not None
    ]
    rows = rows if objective == "val_accuracy" else losses(rows)
    text = page.render(rows, RANGES, objective, None)
    assert trials_in_table(text) == [*expected, "0003", "0005", "running"]
    assert words(text).count("failed: out of memory") == 2
    # Lines are drawn the other way round, so that the best is on top.
    assert re.findall(r"<title>trial (\w+)", text) == expected[::-1]


@pytest.mark.parametrize("objective", ["val_accuracy", "val_loss"])
def test_the_best_so_far_never_gets_worse(objective):
    rows = trials(20) if objective == "val_accuracy" else losses(trials(20))
    text = page.render(rows, RANGES, objective, None)
    svg = re.search(r'src="data:image/svg\+xml;base64,([^"]+)" alt="Best so far', text)[1]
    drawn = base64.b64decode(svg).decode()
    line = re.search(r'<path d="([^"]+)"[^>]*stroke: #0072b2; stroke-width: 2;', drawn)[1]
    heights = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", line)]
    downwards = objective == "val_loss"  # SVG counts from the top.
    assert heights == sorted(heights, reverse=not downwards)
    assert heights[0] != heights[-1]


def test_on_parallel_axes_better_is_further_right():
    rows = sorted(trials(20)[:20], key=lambda row: row.objective)
    for ordered, limits in ((rows, (0.6, 0.9)), (losses(rows), (0.4, 0.1))):
        lines = parallel.figure(ordered, {}, "objective", limits).lines
        places = [line.places[0] for line in lines]
        assert places == sorted(places)
        assert 0 <= places[0] < places[-1] <= 1


def test_settings_are_placed_by_their_value_and_inactive_ones_beside_the_axis():
    rows = trials(40)[:40]
    ranges = {name: RANGES[name] for name in ("learning_rate", "dense_layers", "dense_units")}
    drawn = parallel.figure(rows, ranges, "objective", (0.6, 0.9))
    _, rate, layers, units = drawn.axes
    assert rate.ticks == [
        (pytest.approx(third / 3), text)
        for third, text in enumerate(("0.0001", "0.001", "0.01", "0.1"))
    ]
    assert [text for _, text in layers.ticks] == ["0", "1", "2"]
    assert (rate.inactive, layers.inactive, units.inactive) == (False, False, True)
    for line in drawn.lines:
        settings = line.row.settings
        _, rate, layers, units = line.places
        assert rate == pytest.approx((math.log10(settings["learning_rate"]) + 4) / 3)
        assert int(layers * 3) == settings["dense_layers"]
        assert (units < -0.05) == (settings["dense_layers"] == 0)


def test_figures_have_room_for_all_but_what_is_far_worse_than_most():
    assert plots.limits([0.5, 0.6, 0.7, 0.8], higher_is_better=True) == (0.5, 0.8)
    assert plots.limits([0.5, 0.6, 0.7, 0.8], higher_is_better=False) == (0.8, 0.5)
    worst, best = plots.limits([*[0.5, 0.6, 0.7, 0.8] * 5, 1e6], higher_is_better=False)
    assert best == 0.5
    assert 0.8 < worst < 2
    worst, best = plots.limits([0.5], higher_is_better=True)
    assert worst < best == 0.5


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("failed", [(), (0, 1)])
def test_a_search_that_has_hardly_begun_has_a_page(count, failed):
    said = words(page.render(trials(count, failed=failed), RANGES, "val_loss", None))
    assert ("No trial is completed yet" in said) == (count == 0 or bool(failed))


def cells(text: str, section: str) -> list[list[str]]:
    """The rows of the first table of a section."""
    table = text[text.index(f'id="{section}"') :].partition("</table>")[0]
    return [
        [words(cell) for cell in re.findall(r"<t[hd]\b.*?</t[hd]>", row, flags=re.DOTALL)]
        for row in re.findall(r"<tr.*?</tr>", table, flags=re.DOTALL)
    ]


def column(text: str, name: str) -> dict[str, str]:
    """A column of the table of trials, by trial."""
    header, *found = cells(text, "trials")
    return {row[0].split()[0]: row[header.index(name)] for row in found}


def with_values(row: Row, **values) -> Row:
    return Row(**vars(row) | values)


def finals(finalist: str, status: str, *folds: int) -> list[Row]:
    reason = "out of memory" if status == "failed" else ""
    return [
        Row(f"final {fold}", status, 0.7, 5, 9.5, 300.0, {}, reason, finalist=finalist, fold=fold)
        for fold in folds
    ]


def test_the_finals_have_a_table_with_the_best_of_all_folds_first():
    rows = trials(8)
    scored = sorted(rows[:8], key=lambda row: row.objective)
    best, second = scored[-2].trial, scored[-1].trial
    more = [*finals(best, "completed", 1, 2), *finals(second, "completed", 1)]
    finalists = [
        page.Finalist(best, {0: 0.75, 1: 0.875, 2: 0.85}, 0.8125),
        page.Finalist(second, {0: 0.9, 1: 0.5}, None),
    ]
    text = page.render(
        [*rows, *more, *finals(second, "failed", 2)],
        RANGES,
        "val_accuracy",
        page.Winner(best, "", RESULT),
        finalists=finalists,
    )
    assert cells(text, "finals") == [
        ["Trial", "All folds", "Fold 0", "Fold 1", "Fold 2"],
        [best, "0.8125", "0.7500", "0.8750", "0.8500"],
        [second, DASH, "0.9000", "0.5000", DASH],
    ]
    said = words(text)
    assert f"{second} failed on fold 2: out of memory" in said
    assert f"The best is trial {best} : validation accuracy {scored[-2].objective:.4f}" in said
    assert "and 0.8125 on all folds of the training images" in said
    # They are no trials: they are not counted, drawn or listed.
    assert "Sweep of 9 trials" in said
    assert "8 completed, 0 failed, 1 running" in said
    assert set(trials_in_table(text)) == {row.trial for row in rows}
    assert 'id="finals"' not in page.render(rows, RANGES, "val_accuracy", None)


def test_the_best_before_its_final_training_is_the_one_that_is_named():
    rows = trials(8)
    second = sorted(rows[:8], key=lambda row: row.objective)[-2].trial
    said = words(page.render(rows, RANGES, "val_accuracy", None, best=second))
    assert f"The best is trial {second} :" in said


def test_the_table_has_the_parameters_and_the_time_of_a_prediction():
    rows = trials(3)
    rows[0] = with_values(rows[0], parameters=1234567, latency=12.5)
    rows[1] = with_values(rows[1], parameters=89)
    text = page.render(rows, RANGES, "val_accuracy", None)
    expected = {"0000": "1,234,567", "0001": "89", "0002": DASH, "running": DASH}
    assert column(text, "Parameters") == expected
    expected = {"0000": "12.500", "0001": DASH, "0002": DASH, "running": DASH}
    assert column(text, "CPU ms an image") == expected


def test_a_pruned_trial_is_counted_apart_and_has_its_result():
    rows = trials(8, failed=(3,))
    rows[7] = with_values(rows[7], status="pruned", epochs=2)
    text = page.render(rows, RANGES, "val_accuracy", None)
    assert "6 completed, 1 pruned, 1 failed, 1 running or interrupted" in words(text)
    statuses = column(text, "Status")
    assert statuses["0007"] == "pruned"
    assert [*statuses.values()].count("completed") == 6
    assert column(text, "Validation accuracy")["0007"] == f"{rows[7].objective:.4f}"
    assert "<title>trial 0007" in text
    assert "pruned" not in words(page.render(trials(8), RANGES, "val_accuracy", None))


def test_a_page_refreshes_itself_while_trials_run_and_no_longer():
    refresh, rows = '<meta http-equiv="refresh"', trials(8)
    for unfinished in (rows, []):
        text = page.render(unfinished, RANGES, "val_accuracy", None, running=True)
        assert refresh in text
        assert "written anew while trials run" in words(text)
    for winner in (page.Winner("0001", "", RESULT), None):
        text = page.render(rows, RANGES, "val_accuracy", winner)
        assert refresh not in text
        assert "while trials run" not in words(text)


@pytest.mark.parametrize(
    ("members", "flips", "said"),
    [
        (2, False, "The model averages 2 members; best.flags is the first member's."),
        (1, True, "averages 1 member, each of an image and its mirror image; best.flags is"),
    ],
)
def test_an_average_says_what_it_averages_in_place_of_its_epochs(members, flips, said):
    averaged = {"members": [f"members/seed-{seed}" for seed in range(members)], "flips": flips}
    result = {name: value for name, value in RESULT.items() if name != "history"} | averaged
    rows = trials(8)
    text = words(page.render(rows, RANGES, "val_accuracy", page.Winner("0001", "", result)))
    assert said in text
    assert "12,345 parameters, trained in 67.8 seconds" in text
    single = words(page.render(rows, RANGES, "val_accuracy", page.Winner("0001", "", RESULT)))
    assert "12,345 parameters, trained for 3 epochs in 67.8 seconds" in single
    assert "averages" not in single


def hostile_page() -> str:
    """Markup and what cannot wrap, wherever there is text of others."""
    rows = trials(30, failed=(3,))
    ranges = RANGES | {"optimizer": Range(("adam", "adamw", f"{HOSTILE}value"))}
    rows[3] = Row(**vars(rows[3]) | {"reason": f"{HOSTILE}reason " + "x" * 400})
    rows[4] = Row(
        **vars(rows[4]) | {"settings": {**rows[4].settings, "optimizer": f"{HOSTILE}value"}}
    )
    flags = f"--archive={HOSTILE}flag" + "/folder" * 50
    return page.render(rows, ranges, "val_accuracy", page.Winner("0001", flags, RESULT))


def test_text_of_others_is_no_markup_and_the_page_stands_alone():
    text = hostile_page()
    assert "<img src=x" not in text
    assert text.count("<script") == 1
    for part in ("value", "reason", "flag"):
        assert f"{HOSTILE}{part}" in words(text)
    assert not re.search(r"https?://|url\(|@import|<link", text)
    assert all(alt for alt in re.findall(r'<img [^>]*alt="([^"]*)"', text))


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_a_browser_shows_it_without_errors_and_without_scrolling_sideways(
    tmp_path, browser, width, height
):
    file = tmp_path / "sweep.html"
    file.write_text(hostile_page())
    browser.open(file, width, height)
    root = "document.documentElement"
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
    assert browser.evaluate(
        "[...document.images].every(image => image.complete && image.naturalWidth)"
    )
    assert f"{HOSTILE}reason" in browser.evaluate("document.body.innerText")
    told = [method for method, _ in browser.events]
    assert not [method for method in told if method.startswith(("Log.", "Runtime.exc"))]
    assert "Runtime.consoleAPICalled" not in told
    addresses = [
        parameters["request"]["url"]
        for method, parameters in browser.events
        if method == "Network.requestWillBeSent"
    ]
    assert addresses[0].startswith("file:")
    assert all(address.startswith("data:") for address in addresses[1:])
