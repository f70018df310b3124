"""What chooses the trials: killed at any moment it goes on the same, with any number of workers."""

import contextlib
import hashlib
import time

import keras_tuner
import pytest
from keras_tuner.engine.trial import Trial, TrialStatus

from tuning.search import distribution, oracles

RUNNING, IDLE, STOPPED = TrialStatus.RUNNING, TrialStatus.IDLE, TrialStatus.STOPPED
COMPLETED, FAILED = TrialStatus.COMPLETED, TrialStatus.FAILED
TUNERS = ("random", "bayesian", "hyperband", "grid")


class Killed(BaseException):
    """Ends a search at an exact point, as kill -9 would."""


def space() -> keras_tuner.HyperParameters:
    """Eight points."""
    hp = keras_tuner.HyperParameters()
    hp.Int("blocks", 0, 2)
    hp.Choice("smoothing", [0.0, 0.05])
    hp.Fixed("normalized", True)
    with hp.conditional_scope("blocks", [1]):
        hp.Choice("flipped", [False, True])
    return hp


def with_a_number() -> keras_tuner.HyperParameters:
    hp = space()
    hp.Float("rate", 1e-4, 1e-2, sampling="log")
    return hp


def make(tuner: str = "random", hyperparameters=None, **options) -> oracles.Durable:
    options = {
        "objective": "val_accuracy",
        "seed": 2,
        "fits": lambda values: True,
        "time_budget": None,
        "worker_timeout": 60.0,
        "remote": False,
        "hyperparameters": hyperparameters or (space() if tuner == "grid" else with_a_number()),
    } | options
    if tuner == "hyperband":
        return oracles.HyperbandOracle(max_epochs=4, **options)
    if tuner == "grid":
        return oracles.GridSearchOracle(**options)
    options = {"max_trials": 4} | options
    if tuner == "bayesian":
        oracle = oracles.BayesianOptimizationOracle(num_initial_points=2, **options)
        gpr = oracle.gpr.set_params(optimizer=None)  # Twenty fits a trial take most of the time.
        oracle._make_gpr = lambda: gpr
        return oracle
    return oracles.RandomSearchOracle(**options)


def opened(oracle: oracles.Durable, folder) -> oracles.Durable:
    """An oracle at work in a folder, with what another left there."""
    oracle._set_project_dir(folder, "oracle")
    if (folder / "oracle" / "oracle.json").exists():
        oracle.reload()
    return oracle


def score(values) -> float:
    """The result of a trial, from its settings alone."""
    text = repr(sorted((name, float(value)) for name, value in values.items() if "/" not in name))
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 16**6


def run(trial: Trial) -> dict[str, float]:
    result = score(trial.hyperparameters.values)
    if result < 0.3:
        raise keras_tuner.errors.FailedTrialError("as it happens")
    return {"val_accuracy": result}


def search(oracle: oracles.Durable, folder) -> None:
    distribution.Tuner(oracle, folder, run, "worker").search()


def end(oracle: oracles.Durable, trial: Trial, status: str = COMPLETED, result: float = 0.5):
    """What a worker tells of a trial that has ended."""
    if status == COMPLETED:
        oracle.update_trial(trial.trial_id, {"val_accuracy": result})
    trial.status = status
    oracle.end_trial(trial)


def table(oracle: oracles.Durable) -> list[tuple]:
    """All trials in their order, and the order in which they ended."""
    trials = [oracle.trials[trial_id] for trial_id in oracle.start_order]
    assert len(oracle.trials) == len(trials)
    assert oracle.ended_after.keys() == set(oracle.end_order)
    rows = [(t.trial_id, t.status, t.score, t.hyperparameters.values) for t in trials]
    return [*rows, *oracle.end_order]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The table of each tuner's search that nothing disturbed."""
    tables = {}
    for tuner in TUNERS:
        folder = tmp_path_factory.mktemp(tuner)
        oracle = opened(make(tuner), folder)
        search(oracle, folder)
        tables[tuner] = table(oracle)
    return tables


# Killed.


@pytest.fixture
def kill(monkeypatch):
    """`kill(write)`: ends the search in the middle of a write, counted from 1."""
    original = oracles.atomic_path

    def kill(write: int | None) -> None:
        count = 0

        @contextlib.contextmanager
        def atomic_path(path):
            nonlocal count
            count += 1
            if count == write:
                path.with_name(f".{write:032}.{path.name}").write_text('{"half of it')
                raise Killed
            with original(path) as temporary:
                yield temporary

        monkeypatch.setattr(oracles, "atomic_path", atomic_path)

    return kill


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_search_killed_at_any_write_goes_on_as_if_it_had_not_been(
    undisturbed, kill, tmp_path, tuner
):
    # Of a Gaussian process the first trials are by chance, as those of "random".
    write, killed = 10 if tuner == "bayesian" else 0, True
    while killed:
        write += 1
        folder = tmp_path / str(write)
        folder.mkdir()
        killed = False
        try:
            kill(write)
            search(opened(make(tuner), folder), folder)
        except Killed:
            killed = True
        kill(None)
        oracle = opened(make(tuner), folder)
        search(oracle, folder)
        assert table(oracle) == undisturbed[tuner], write
    assert write > 3 * len(oracle.trials)


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_search_killed_again_and_again_comes_to_the_same_end(undisturbed, kill, tmp_path, tuner):
    starts = 0
    while True:
        starts += 1
        kill(3)
        oracle = opened(make(tuner), tmp_path)
        try:
            search(oracle, tmp_path)
            break
        except Killed:
            assert starts < 100
    assert starts > len(oracle.trials)
    assert table(oracle) == undisturbed[tuner]


def test_the_seconds_of_a_search_do_not_count_those_between_a_kill_and_the_next_start(
    monkeypatch, tmp_path
):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    oracle = opened(make(), tmp_path)
    trial = oracle.create_trial("worker")
    now += 10
    end(oracle, trial)
    now += 1000
    oracle = opened(make(), tmp_path)
    trial = oracle.create_trial("worker")
    now += 5
    end(oracle, trial)
    assert [*oracle.ended_after.values()] == [10, 15]


@pytest.mark.parametrize("name", ["oracle.json", "trial_0/trial.json"])
@pytest.mark.parametrize("text", ["", "{}", '{"half of it'])
def test_a_damaged_file_is_told_and_not_gone_on_with(tmp_path, name, text):
    search(opened(make(), tmp_path), tmp_path)
    (tmp_path / "oracle" / name).write_text(text)
    with pytest.raises((OSError, ValueError, LookupError)):
        opened(make(), tmp_path)


# What is tried.


@pytest.mark.parametrize("tuner", TUNERS)
def test_the_same_seed_gives_the_same_search_and_another_one_another(undisturbed, tmp_path, tuner):
    tables = {}
    for seed in (2, 3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        oracle = opened(make(tuner, seed=seed), folder)
        search(oracle, folder)
        tables[seed] = table(oracle)
    assert tables[2] == undisturbed[tuner]
    assert (tables[3] == tables[2]) == (tuner == "grid")


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_worker_on_another_machine_changes_nothing(undisturbed, tmp_path, tuner):
    """It gets and sends copies that have gone through Keras Tuner's messages."""

    def copy(trial):
        return Trial.from_proto(trial.to_proto())

    oracle = opened(make(tuner, remote=True), tmp_path)
    while (trial := copy(oracle.create_trial("worker"))).status != STOPPED:
        try:
            oracle.update_trial(trial.trial_id, run(trial))
            trial.status = COMPLETED
        except keras_tuner.errors.FailedTrialError:
            trial.status = FAILED
        oracle.end_trial(copy(trial))
    assert table(oracle) == undisturbed[tuner]


@pytest.mark.parametrize("tuner", TUNERS)
def test_what_does_not_fit_is_never_tried(tmp_path, tuner):
    def fits(values):
        return values["blocks"] != 2 and values["smoothing"] != 0.05

    oracle = opened(make(tuner, fits=fits), tmp_path)
    search(oracle, tmp_path)
    tried = [trial.hyperparameters.values for trial in oracle.trials.values()]
    assert all(map(fits, tried))
    assert len(tried) > 2


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_space_of_which_nothing_fits_ends_at_once(tmp_path, tuner):
    oracle = opened(make(tuner, space(), fits=lambda values: False), tmp_path)
    assert oracle.create_trial("worker").status == STOPPED
    assert oracle.finished
    assert not oracle.trials


@pytest.mark.parametrize("tuner", ["random", "grid"])
def test_a_small_space_is_tried_whole_each_point_once(tmp_path, tuner):
    oracle = opened(make(tuner, space(), max_trials=100), tmp_path)
    search(oracle, tmp_path)
    tried = [tuple(row[-1].items()) for row in table(oracle) if isinstance(row, tuple)]
    assert len(tried) == len(set(tried)) == 2 + 2 * 2 + 2


def test_hyperband_gives_the_better_more_epochs(undisturbed):
    rows = {row[0]: row for row in undisturbed["hyperband"] if isinstance(row, tuple)}
    again = [row[-1] for row in rows.values() if row[-1]["tuner/epochs"] == 4]
    promoted = [values for values in again if "tuner/trial_id" in values]
    assert promoted
    for values in promoted:
        _, status, result, before = rows[values["tuner/trial_id"]]
        assert (status, before["rate"]) == (COMPLETED, values["rate"])
        rivals = [r[2] for r in rows.values() if r[-1]["tuner/epochs"] < 4 and r[2] is not None]
        assert result >= sorted(rivals)[-len(promoted)]


# When it ends.


def test_no_trial_is_begun_after_the_time_budget_but_those_that_were_are_ended(
    monkeypatch, tmp_path
):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    oracle = opened(make(time_budget=10.0), tmp_path)
    first = oracle.create_trial("worker")
    now += 9
    end(oracle, first)
    second = oracle.create_trial("worker")

    oracle = opened(make(time_budget=10.0), tmp_path)
    now += 2
    again = oracle.create_trial("worker")
    assert (again.status, again.trial_id) == (RUNNING, second.trial_id)
    end(oracle, again)
    assert oracle.create_trial("worker").status == STOPPED
    assert len(oracle.trials) == 2

    oracle = opened(make(time_budget=20.0), tmp_path)
    assert oracle.create_trial("worker").status == RUNNING


def test_five_failures_in_a_row_end_it_and_a_success_among_them_does_not(tmp_path):
    oracle = opened(make(max_trials=100), tmp_path)
    statuses = [*[FAILED] * 4, COMPLETED, *[FAILED] * 5]
    for status in statuses:
        trial = oracle.create_trial("worker")
        assert trial.status == RUNNING
        end(oracle, trial, status)
    assert oracle.hopeless
    assert oracle.create_trial("worker").status == STOPPED
    assert oracle.finished
    # Who starts it again means to go on.
    assert opened(make(max_trials=100), tmp_path).create_trial("worker").status == RUNNING


def test_a_result_that_is_no_number_is_a_failure(tmp_path):
    oracle = opened(make(), tmp_path)
    end(oracle, oracle.create_trial("worker"), result=float("nan"))
    assert [trial.status for trial in oracle.trials.values()] == [FAILED]


def test_the_callback_is_told_each_trial_once_when_it_is_on_the_disk(tmp_path):
    told = []
    oracle = opened(make(), tmp_path)

    def on_end(trial):
        told.append(trial.trial_id)
        assert table(opened(make(), tmp_path)) == table(oracle)

    oracle.on_end = on_end
    search(oracle, tmp_path)
    assert told == oracle.end_order


# Several workers.


def test_a_worker_without_a_trial_waits_while_another_has_one(tmp_path):
    oracle = opened(make(max_trials=1), tmp_path)
    trial = oracle.create_trial("a")
    assert oracle.create_trial("b").status == IDLE
    assert not oracle.finished
    end(oracle, trial)
    assert not oracle.finished  # Nobody has been told.
    assert oracle.create_trial("b").status == STOPPED
    assert oracle.create_trial("a").status == STOPPED
    assert oracle.finished


@pytest.mark.parametrize("late_end_comes", ["before the other begins", "before its end", "after"])
def test_the_trial_of_a_silent_worker_is_given_to_another_and_ends_once(
    monkeypatch, tmp_path, late_end_comes
):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    ended = []
    oracle = opened(make(max_trials=2, worker_timeout=30.0), tmp_path)
    oracle.on_end = lambda trial: ended.append(trial.trial_id)
    silent = Trial.from_proto(oracle.create_trial("silent").to_proto())
    other = oracle.create_trial("other")
    now += 29
    assert not oracle.take_back_lost()
    oracle.get_trial(other.trial_id)  # It lives.
    now += 2
    assert oracle.take_back_lost() == ["silent"]
    end(oracle, other)
    if late_end_comes == "before the other begins":
        end(oracle, silent)
        assert oracle.create_trial("other").status == STOPPED
    else:
        given = oracle.create_trial("other")
        assert (given.status, given.trial_id) == (RUNNING, silent.trial_id)
        if late_end_comes == "before its end":
            end(oracle, silent)
            end(oracle, given)
        else:
            end(oracle, given)
            end(oracle, silent)
        assert oracle.create_trial("other").status == STOPPED
    assert oracle.finished
    assert sorted(ended) == sorted([silent.trial_id, other.trial_id])
    rows = [row[:3] for row in table(oracle) if isinstance(row, tuple)]
    assert rows == [("0", COMPLETED, 0.5), ("1", COMPLETED, 0.5)]


def test_a_trial_that_was_taken_back_and_then_ended_is_not_tried_again_after_a_kill(tmp_path):
    oracle = opened(make(max_trials=2), tmp_path)
    trial = Trial.from_proto(oracle.create_trial("a").to_proto())
    oracle.take_back("a")
    end(oracle, trial)
    again = opened(make(max_trials=2), tmp_path)
    following = again.create_trial("b")
    assert following.trial_id != trial.trial_id
    end(again, following)
    assert again.create_trial("b").status == STOPPED


def test_workers_that_outlive_the_chief_keep_their_trials(tmp_path):
    oracle = opened(make(remote=True), tmp_path)
    trials = {worker: oracle.create_trial(worker) for worker in ("a", "b")}
    again = opened(make(remote=True), tmp_path)
    assert again.create_trial("c").trial_id not in {t.trial_id for t in trials.values()}
    for worker, trial in trials.items():
        assert again.create_trial(worker).trial_id == trial.trial_id
        end(again, trial)
    assert again.end_order == [trial.trial_id for trial in trials.values()]


def test_workers_that_outlive_the_chief_are_told_the_end(tmp_path):
    trial = opened(make(remote=True, max_trials=1), tmp_path).create_trial("a")
    again = opened(make(remote=True, max_trials=1), tmp_path)
    end(again, trial)
    assert not again.finished
    assert again.create_trial("a").status == STOPPED
    assert again.finished
    assert opened(make(remote=True, max_trials=1), tmp_path).finished  # Nobody is left to ask.


def test_workers_that_die_with_the_search_lose_their_trials_to_the_next_that_ask(tmp_path):
    oracle = opened(make(), tmp_path)
    begun = {oracle.create_trial(worker).trial_id for worker in ("a", "b")}
    again = opened(make(), tmp_path)
    assert {again.create_trial(worker).trial_id for worker in ("c", "d")} == begun
