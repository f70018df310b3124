"""What chooses the trials: killed at any moment it goes on the same, with any number of workers."""

import collections
import contextlib
import errno
import hashlib
import os
import pathlib
import shutil
import stat
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures

import keras_tuner
import pytest
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.src.distribute import oracle_client

from pizza_steak.errors import UserError
from tuning.trials import distribution, engine, processes

RUNNING, IDLE, STOPPED = TrialStatus.RUNNING, TrialStatus.IDLE, TrialStatus.STOPPED
COMPLETED, FAILED = TrialStatus.COMPLETED, TrialStatus.FAILED
TUNERS = ("random", "bayesian", "hyperband", "grid")
FINALS = engine.Finals(count=2, images=(10, 20, 20), epochs=4, reuse=True)
# The trials of each round of hyperband with 9 epochs, by bracket and round.
ROUNDS = {(2, 0): 9, (2, 1): 3, (2, 2): 1, (1, 0): 5, (1, 1): 2, (0, 0): 3}
PATIENCE = 60  # Seconds after which a test fails that waits for another thread.
KNOWN = [
    {"blocks": 1, "smoothing": 0.05, "normalized": True, "flipped": 1},
    {"blocks": 0, "smoothing": 0.0, "normalized": True},
]


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


def make(tuner: str = "random", hyperparameters=None, **options) -> engine.Durable:
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
        return engine.HyperbandOracle(**{"max_epochs": 4} | options)
    if tuner == "grid":
        return engine.GridSearchOracle(**options)
    options = {"most_trials": 4} | options
    if tuner == "bayesian":
        oracle = engine.BayesianOptimizationOracle(**{"num_initial_points": 2} | options)
        gpr = oracle.gpr.set_params(optimizer=None)  # Twenty fits a trial take most of the time.
        oracle._make_gpr = lambda: gpr
        return oracle
    return engine.RandomSearchOracle(**options)


def opened(oracle: engine.Durable, folder) -> engine.Durable:
    """An oracle at work in a folder, with what another left there."""
    oracle._set_project_dir(folder, "oracle")
    if (folder / "oracle" / "oracle.json").exists():
        oracle.reload()
    return oracle


def settings(trial: Trial) -> dict:
    """The point of the search space that a trial tries."""
    return {n: value for n, value in trial.hyperparameters.values.items() if "/" not in n}


def score(trial: Trial) -> float:
    """The result of a trial, from its settings and its fold alone."""
    numbers = sorted((name, float(value)) for name, value in settings(trial).items())
    text = repr([*numbers, engine.fold_of(trial)])
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 16**6


def run(trial: Trial, unwanted: threading.Event | None = None) -> dict[str, float]:
    result = score(trial)
    if result < 0.3:
        raise keras_tuner.errors.FailedTrialError("as it happens")
    return {"val_accuracy": result}


def search(oracle: engine.Durable | engine.Client) -> None:
    distribution.work(oracle, "worker", run)


def end(oracle: engine.Durable, trial: Trial, status: str = COMPLETED, result: float = 0.5):
    """What a worker tells of a trial that has ended."""
    if status == COMPLETED:
        oracle.update_trial(trial.trial_id, {oracle.objective.name: result})
    trial.status = status
    oracle.end_trial(trial)


def in_turn(
    oracle: engine.Durable,
    outcome: Callable[[Trial], float | None],
    workers: Sequence[str] = ("a",),
    on_answer: Callable[[Trial, list[Trial]], None] = lambda answer, others: None,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Runs a search to its end: all workers ask in turn, and the trial that is oldest ends.

    Args:
      oracle: The oracle.
      outcome: Returns the result of a trial; None for a failure.
      workers: The names of the workers.
      on_answer: Called with each answer to a worker, and with the trials that run then.
      on_step: Called after each answer and each end.
    """
    running, left = {}, list(workers)
    while left:
        for worker in [worker for worker in left if worker not in running]:
            answer = oracle.create_trial(worker)
            on_answer(answer, [*running.values()])
            if answer.status == STOPPED:
                left.remove(worker)
            if answer.status == RUNNING:
                running[worker] = answer
            on_step()
        assert running or not left  # Nobody would ever wake those that wait.
        if running:
            trial = running.pop(next(iter(running)))
            result = outcome(trial)
            end(oracle, trial, FAILED if result is None else COMPLETED, result)
            on_step()
    assert oracle.finished


def begin(call: Callable, *arguments) -> futures.Future:
    """Calls a function in a thread that does not keep the tests from their end."""
    future: futures.Future = futures.Future()

    def run():
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def table(oracle: engine.Durable) -> list[tuple]:
    """All trials in their order, and the order in which they ended."""
    trials = [oracle.trials[trial_id] for trial_id in oracle.start_order]
    assert len(oracle.trials) == len(trials)
    assert oracle.ended_after.keys() == set(oracle.end_order)
    rows = [(t.trial_id, t.status, t.score, t.hyperparameters.values) for t in trials]
    return [*rows, *oracle.end_order]


def finals(oracle: engine.Durable) -> list[tuple]:
    """The finals: the run whose settings they have, and their fold."""
    trials = filter(engine.is_final, oracle.trials.values())
    return sorted((engine.finalist_of(trial), engine.fold_of(trial)) for trial in trials)


def contents(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The table of each tuner's search that nothing disturbed."""
    tables = {}
    for tuner in TUNERS:
        oracle = opened(make(tuner), tmp_path_factory.mktemp(tuner))
        search(oracle)
        tables[tuner] = table(oracle)
    return tables


# Killed.


@pytest.fixture
def kill(monkeypatch):
    """`kill(write)`: ends the search in the middle of a write, counted from 1."""
    original = engine.atomic_path

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

        monkeypatch.setattr(engine, "atomic_path", atomic_path)

    return kill


@pytest.fixture
def killed_at_each_write(kill, tmp_path):
    """`killed_at_each_write(make)`: yields writes, and searches that were killed there and resumed.

    `make` makes their oracle. They begin at the write `first`, in copies of `folder`. The last one
    ends before its write.
    """

    def kill_each(make: Callable[[], engine.Durable], first: int = 1, folder=None):
        write, killed = first - 1, True
        while killed:
            write += 1
            copy = tmp_path / f"killed at write {write}"
            if folder:
                shutil.copytree(folder, copy)
            else:
                copy.mkdir()
            killed = False
            try:
                kill(write)
                search(opened(make(), copy))
            except Killed:
                killed = True
            kill(None)
            oracle = opened(make(), copy)
            search(oracle)
            yield write, oracle

    return kill_each


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_search_killed_at_any_write_goes_on_as_if_it_had_not_been(
    undisturbed, killed_at_each_write, tuner
):
    # Of a Gaussian process the first trials are by chance, as those of "random".
    first = 11 if tuner == "bayesian" else 1
    for write, oracle in killed_at_each_write(lambda: make(tuner), first):
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
            search(oracle)
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


@pytest.mark.parametrize("text", ["", "{}", '{"half of it'])
def test_a_damaged_state_is_told_and_not_gone_on_with(tmp_path, text):
    search(opened(make(), tmp_path))
    (tmp_path / "oracle/oracle.json").write_text(text)
    with pytest.raises((OSError, ValueError, LookupError)):
        opened(make(), tmp_path)


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("text", [None, "", "{}", '{"half of it'])
def test_a_damaged_trial_counts_as_failed_and_the_search_goes_on(tmp_path, caplog, tuner, text):
    oracle = opened(make(tuner), tmp_path)
    for _ in range(3):
        end(oracle, oracle.create_trial("worker"))
    file = tmp_path / "oracle/trial_0001/trial.json"
    file.unlink() if text is None else file.write_text(text)
    oracle = opened(make(tuner), tmp_path)
    search(oracle)
    assert caplog.messages == [f"{file} is damaged: the trial counts as failed"]
    assert oracle.trials["0001"].status == FAILED
    assert sum(trial.status == COMPLETED for trial in oracle.trials.values()) >= 2


# What is tried.


@pytest.mark.parametrize("tuner", TUNERS)
def test_the_same_seed_gives_the_same_search_and_another_one_another(undisturbed, tmp_path, tuner):
    tables = {}
    for seed in (2, 3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        oracle = opened(make(tuner, seed=seed), folder)
        search(oracle)
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
    search(oracle)
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
    oracle = opened(make(tuner, space(), most_trials=100), tmp_path)
    search(oracle)
    tried = [tuple(row[-1].items()) for row in table(oracle) if isinstance(row, tuple)]
    assert len(tried) == len(set(tried)) == 2 + 2 * 2 + 2


# Known points.


KNOWN_WITH_RATE = [{**point, "rate": 2e-3} for point in KNOWN]


def with_known_points(tuner: str, **options) -> engine.Durable:
    """Two points to try first, one of them twice, with one among them that does not fit."""
    one, other = KNOWN_WITH_RATE
    first = [one, {**other, "blocks": 2}, one, other]
    return make(tuner, first=first, fits=lambda values: values["blocks"] != 2, **options)


@pytest.mark.parametrize("tuner", ["random", "bayesian", "hyperband"])
def test_known_points_that_fit_are_the_first_trials_each_once(tmp_path, tuner):
    oracle = opened(with_known_points(tuner, most_trials=3), tmp_path)
    in_turn(oracle, score)
    tried = [settings(oracle.trials[trial_id]) for trial_id in oracle.start_order]
    assert tried[:2] == KNOWN_WITH_RATE
    assert len(tried) == 3
    assert not any(point in KNOWN_WITH_RATE for point in tried[2:])


def test_a_gaussian_process_waits_for_all_known_points(tmp_path):
    options = {"first": KNOWN_WITH_RATE, "num_initial_points": 1, "most_trials": 2}
    oracle = opened(make("bayesian", **options), tmp_path)
    in_turn(oracle, score)
    assert [settings(trial) for trial in oracle.trials.values()] == KNOWN_WITH_RATE


@pytest.mark.parametrize("tuner", ["random", "bayesian", "hyperband"])
def test_a_kill_at_any_write_neither_repeats_nor_loses_a_known_point(
    killed_at_each_write, tmp_path, tuner
):
    most_trials = 2 if tuner == "bayesian" else 3  # Its third is not by chance.
    whole = opened(with_known_points(tuner, most_trials=most_trials), tmp_path)
    search(whole)
    for write, oracle in killed_at_each_write(
        lambda: with_known_points(tuner, most_trials=most_trials)
    ):
        assert table(oracle) == table(whole), write
    assert write > 3 * len(oracle.trials)


def test_a_small_space_with_known_points_is_tried_whole_each_point_once(tmp_path):
    oracle = opened(make("random", space(), first=KNOWN, most_trials=100), tmp_path)
    in_turn(oracle, score)
    tried = [tuple(settings(trial).items()) for trial in oracle.trials.values()]
    assert [dict(point) for point in tried[:2]] == KNOWN
    assert len(tried) == len(set(tried)) == 8


# Hyperband.


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


def rounds(oracle: engine.Durable) -> dict[tuple[int, int], list[Trial]]:
    """The trials of each round of hyperband, by bracket and round, in their order."""
    found = collections.defaultdict(list)
    for trial_id in oracle.start_order:
        trial = oracle.trials[trial_id]
        # Of a promoted trial Keras Tuner notes the newest bracket.
        first = oracle.trials[engine.run_of(trial)].hyperparameters.values
        found[first["tuner/bracket"], trial.hyperparameters.values["tuner/round"]].append(trial)
    return found


@pytest.mark.parametrize("workers", ["a", "abc"])
@pytest.mark.parametrize(
    "fails",
    [
        lambda number: False,
        lambda number: number % 2 == 0,
        lambda number: number % 9 != 5,
        lambda number: True,
    ],
    ids=["none", "every other", "all but one of a round", "all"],
)
def test_hyperband_takes_failed_trials_for_the_worst_of_their_round(
    monkeypatch, tmp_path, workers, fails
):
    monkeypatch.setattr(engine, "_MOST_FAILURES_IN_A_ROW", 1000)
    oracle = opened(make("hyperband", max_epochs=9), tmp_path)
    in_turn(oracle, lambda t: None if fails(int(t.trial_id)) else score(t), workers)
    found = rounds(oracle)
    assert {place: len(trials) for place, trials in found.items()} == ROUNDS
    for (bracket, number), trials in found.items():
        following = found.get((bracket, number + 1), [])
        names = [trial.hyperparameters.values["tuner/trial_id"] for trial in following]
        promoted = [oracle.trials[name] for name in names]
        others = [trial for trial in trials if trial not in promoted]
        if any(trial.status == FAILED for trial in promoted):
            assert all(trial.status == FAILED for trial in others)
        if len(workers) == 1:
            statuses = [trial.status for trial in promoted]
            assert statuses == sorted(statuses)  # COMPLETED, then FAILED.
            worst = min((t.score for t in promoted if t.status == COMPLETED), default=1)
            assert not promoted or all(
                trial.score <= worst for trial in others if trial.status == COMPLETED
            )


def test_no_trial_of_hyperband_has_less_than_the_least_epochs(tmp_path):
    oracle = opened(make("hyperband", max_epochs=27, min_epochs=3), tmp_path)
    in_turn(oracle, score)
    epochs = {
        place: {trial.hyperparameters.values["tuner/epochs"] for trial in trials}
        for place, trials in rounds(oracle).items()
    }
    first = {bracket: found for (bracket, number), found in epochs.items() if number == 0}
    assert first == {2: {3}, 1: {9}, 0: {27}}
    assert set().union(*epochs.values()) == {3, 9, 27}


def test_promoted_trials_continue_the_run_of_the_first_trial(tmp_path):
    oracle = opened(make("hyperband", max_epochs=9), tmp_path)
    in_turn(oracle, score)
    ((last,),) = [found for place, found in rounds(oracle).items() if place == (2, 2)]
    chain = [last]
    while before := chain[-1].hyperparameters.values.get("tuner/trial_id"):
        chain.append(oracle.trials[before])
    assert [trial.hyperparameters.values["tuner/epochs"] for trial in chain] == [9, 3, 1]
    assert {engine.run_of(trial) for trial in chain} == {chain[-1].trial_id}
    assert all(settings(trial) == settings(last) for trial in chain)
    runs = {engine.run_of(trial) for trial in oracle.trials.values()}
    assert len(runs) == sum(size for (_, number), size in ROUNDS.items() if number == 0)


@pytest.mark.parametrize("workers", ["a", "abc"])
def test_promotable_are_the_completed_trials_of_rounds_of_which_more_can_be_promoted(
    tmp_path, workers
):
    oracle = opened(make("hyperband", max_epochs=9), tmp_path)
    sizes = collections.Counter()

    def check():
        found, expected = rounds(oracle), set()
        for (bracket, number), trials in found.items():
            following = found.get((bracket, number + 1), [])
            if len(following) < ROUNDS.get((bracket, number + 1), 0):
                gone = {engine.run_of(trial) for trial in following}
                completed = {engine.run_of(t) for t in trials if t.status == COMPLETED}
                expected |= completed - gone
        assert oracle.promotable == expected
        sizes[len(expected)] += 1

    in_turn(
        oracle, lambda t: None if int(t.trial_id) % 4 == 0 else score(t), workers, on_step=check
    )
    assert len(sizes) > 3
    assert not oracle.promotable


@pytest.mark.parametrize("workers", ["a", "abc"])
def test_each_run_that_is_continued_was_promotable_until_then(tmp_path, workers):
    oracle = opened(make("hyperband", max_epochs=9), tmp_path)
    promotable, continued = [set()], 0

    def check(answer, others):
        nonlocal continued
        if "tuner/trial_id" in answer.hyperparameters.values:
            assert engine.run_of(answer) in promotable[-1]
            continued += 1

    in_turn(oracle, score, workers, check, lambda: promotable.append(oracle.promotable))
    assert continued == 3 + 1 + 2


# Finals.


# The results of the second and of the fourth run, and their results on the other folds: the better
# trial is worse there. The others have 0.1.
BEST = {1: 0.9, 3: 0.8}
ON_FOLDS = {(1, 1): 0.4, (1, 2): 0.4, (3, 1): 0.7, (3, 2): 0.6}


def runs(oracle: engine.Durable) -> list[str]:
    """The runs in the order in which they began, without those of finals."""
    trials = [oracle.trials[trial_id] for trial_id in oracle.start_order]
    return [*dict.fromkeys(engine.run_of(t) for t in trials if not engine.is_final(t))]


def by_order(oracle: engine.Durable, best=BEST, on_folds=ON_FOLDS):
    """Gives each trial the result that its run has by the order of the runs."""

    def outcome(trial: Trial) -> float | None:
        if finalist := engine.finalist_of(trial):
            number = runs(oracle).index(finalist)
            return on_folds.get((number, engine.fold_of(trial)), best[number])
        return best.get(runs(oracle).index(engine.run_of(trial)), 0.1)

    return outcome


def with_finals(tuner: str = "random", **options) -> engine.Durable:
    if tuner == "bayesian":
        options = {"num_initial_points": 4} | options  # A Gaussian process takes most of the time.
    return make(tuner, **{"finals": FINALS} | options)


@pytest.mark.parametrize("tuner", TUNERS)
def test_each_of_the_two_best_runs_is_validated_once_on_each_fold_and_the_best_on_all_wins(
    tmp_path, tuner
):
    oracle = opened(with_finals(tuner), tmp_path)
    in_turn(oracle, by_order(oracle))
    names = runs(oracle)
    assert finals(oracle) == [(names[number], fold) for number in (1, 3) for fold in (1, 2)]
    assert [
        (engine.run_of(one.trial), dict(one.scores), one.pooled) for one in oracle.finalists
    ] == [
        (names[3], {0: 0.8, 1: 0.7, 2: 0.6}, pytest.approx((8 + 14 + 12) / 50)),
        (names[1], {0: 0.9, 1: 0.4, 2: 0.4}, pytest.approx((9 + 8 + 8) / 50)),
    ]
    assert [engine.run_of(trial) for trial in oracle.ranking[:2]] == [names[1], names[3]]
    assert engine.run_of(oracle.best_trial) == names[3]
    for trial in filter(engine.is_final, oracle.trials.values()):
        finalist = oracle.trials[engine.finalist_of(trial)]
        assert settings(trial) == settings(finalist)
        assert trial.hyperparameters.values["tuner/epochs"] == 4


def test_of_losses_the_lowest_on_all_folds_wins(tmp_path):
    oracle = opened(with_finals(objective="val_loss"), tmp_path)
    accuracy = by_order(oracle)
    in_turn(oracle, lambda trial: 1 - accuracy(trial))
    assert engine.run_of(oracle.ranking[0]) == runs(oracle)[1]
    assert engine.run_of(oracle.best_trial) == runs(oracle)[3]


def test_a_finalist_with_fewer_epochs_has_a_final_on_the_first_fold_too(tmp_path):
    oracle = opened(with_finals("hyperband"), tmp_path)
    results = by_order(oracle, {0: 0.7, 1: 0.7, 2: 0.6, 3: 0.5}, {})

    def outcome(trial):
        promoted = "tuner/trial_id" in trial.hyperparameters.values
        return 0.0 if promoted else results(trial)

    in_turn(oracle, outcome)
    names = runs(oracle)
    assert finals(oracle) == [(names[number], fold) for number in (2, 3) for fold in (0, 1, 2)]
    assert engine.run_of(oracle.best_trial) == names[2]


def test_no_trial_is_its_own_final_where_the_finals_have_other_epochs(tmp_path):
    other = engine.Finals(count=2, images=(10, 20, 20), epochs=4, reuse=False)
    oracle = opened(with_finals(finals=other), tmp_path)
    in_turn(oracle, by_order(oracle))
    names = runs(oracle)
    assert finals(oracle) == [(names[number], fold) for number in (1, 3) for fold in (0, 1, 2)]


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_final_that_fails_excludes_its_finalist_and_is_not_repeated(tmp_path, tuner):
    oracle = opened(with_finals(tuner), tmp_path)
    in_turn(oracle, by_order(oracle, on_folds=ON_FOLDS | {(3, 2): None}))
    names = runs(oracle)
    assert finals(oracle) == [(names[number], fold) for number in (1, 3) for fold in (1, 2)]
    assert engine.run_of(oracle.best_trial) == names[1]
    assert [one.pooled for one in oracle.finalists] == [pytest.approx(0.5), None]
    again = opened(with_finals(tuner), tmp_path)
    assert again.create_trial("a").status == STOPPED


@pytest.mark.parametrize("finalists", [1, 2])
@pytest.mark.parametrize("tuner", TUNERS)
def test_there_are_no_finals_of_one_finalist_or_on_one_fold(
    undisturbed, tmp_path, tuner, finalists
):
    images = (10, 20, 20) if finalists == 1 else (10,)
    none = engine.Finals(count=finalists, images=images, epochs=4)
    oracle = opened(make(tuner, finals=none), tmp_path)
    search(oracle)
    assert table(oracle) == undisturbed[tuner]
    assert not oracle.finalists
    assert oracle.best_trial in oracle.ranking


def test_without_finals_a_trial_of_all_epochs_wins(tmp_path):
    oracle = opened(make("hyperband", finals=engine.Finals(epochs=4)), tmp_path)

    def outcome(trial):
        return 0.5 if trial.hyperparameters.values["tuner/epochs"] == 4 else 0.9

    in_turn(oracle, outcome)
    assert oracle.ranking[0].hyperparameters.values["tuner/epochs"] == 2
    assert oracle.best_trial.hyperparameters.values["tuner/epochs"] == 4


@pytest.mark.parametrize("tuner", TUNERS)
def test_finals_killed_at_any_write_go_on_as_if_they_had_not_been(
    killed_at_each_write, tmp_path, tuner
):
    searched, whole = tmp_path / "searched", tmp_path / "whole"
    searched.mkdir()
    search(opened(make(tuner), searched))
    shutil.copytree(searched, whole)
    undisturbed = opened(make(tuner, finals=FINALS), whole)
    search(undisturbed)
    assert finals(undisturbed)
    for write, oracle in killed_at_each_write(lambda: make(tuner, finals=FINALS), 1, searched):
        assert table(oracle) == table(undisturbed), write
        assert oracle.finalists[0].scores == undisturbed.finalists[0].scores
        assert oracle.best_trial.trial_id == undisturbed.best_trial.trial_id
    assert write > 3 * len(finals(oracle))


@pytest.mark.parametrize("tuner", TUNERS)
def test_finals_wait_for_the_last_trial_and_then_run_at_the_same_time(tmp_path, tuner):
    oracle = opened(with_finals(tuner), tmp_path)
    waited, together = 0, 1

    def on_answer(answer, others):
        nonlocal waited, together
        if answer.status == IDLE:
            waited += any(not engine.is_final(trial) for trial in others)
        elif answer.status == RUNNING and engine.is_final(answer):
            assert all(map(engine.is_final, others))
            together = max(together, 1 + len(others))

    in_turn(oracle, by_order(oracle), "ab", on_answer)
    assert waited
    assert together == 2
    names = runs(oracle)
    assert finals(oracle) == [(names[number], fold) for number in (1, 3) for fold in (1, 2)]


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_finished_sweep_goes_on_with_more_trials_and_runs_the_missing_finals_alone(
    tmp_path, tuner
):
    oracle = opened(with_finals(tuner, most_trials=4), tmp_path)
    in_turn(oracle, by_order(oracle))
    before = finals(oracle)
    assert {run for run, _ in before} == {runs(oracle)[1], runs(oracle)[3]}

    again = opened(with_finals(tuner, most_trials=5), tmp_path)
    assert not again.finished
    best = BEST | {4: 0.95}
    in_turn(again, by_order(again, best, ON_FOLDS | {(4, 1): 0.9, (4, 2): 0.9}))
    assert sum(not engine.is_final(trial) for trial in again.trials.values()) == 5
    new = finals(again)
    assert len(new) == len(set(new))
    fifth = runs(again)[4]
    assert {run for run, _ in set(new) - set(before)} == {fifth}
    assert {(fifth, 1), (fifth, 2)} <= set(new)
    assert engine.run_of(again.best_trial) == fifth


@pytest.mark.parametrize(
    ("before", "after", "trials"),
    [
        ({"hyperband_iterations": None, "most_trials": 4}, {"hyperband_iterations": 1}, 10),
        (
            {"hyperband_iterations": 1},
            {"hyperband_iterations": None, "most_trials": 12},
            12,
        ),
    ],
    ids=["without a limit", "with more trials"],
)
def test_hyperband_goes_on_until_the_limits_that_it_is_resumed_with(
    tmp_path, before, after, trials
):
    oracle = opened(make("hyperband", **before), tmp_path)
    in_turn(oracle, score)
    again = opened(make("hyperband", **after), tmp_path)

    def on_answer(answer, others):
        assert len(again.trials) <= trials

    in_turn(again, score, on_answer=on_answer)
    assert len(again.trials) == trials


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
    oracle = opened(make(most_trials=100), tmp_path)
    statuses = [*[FAILED] * 4, COMPLETED, *[FAILED] * 5]
    for status in statuses:
        trial = oracle.create_trial("worker")
        assert trial.status == RUNNING
        end(oracle, trial, status)
    assert oracle.hopeless
    assert oracle.create_trial("worker").status == STOPPED
    assert oracle.finished
    # Who starts it again means to go on.
    assert opened(make(most_trials=100), tmp_path).create_trial("worker").status == RUNNING


def test_a_worker_that_has_a_trial_gets_it_again_after_five_failures_of_others(tmp_path):
    oracle = opened(make(most_trials=100), tmp_path)
    trial = oracle.create_trial("a")
    for _ in range(5):
        end(oracle, oracle.create_trial("b"), FAILED)
    assert oracle.hopeless
    assert oracle.create_trial("b").status == IDLE
    again = oracle.create_trial("a")
    assert (again.status, again.trial_id) == (RUNNING, trial.trial_id)
    end(oracle, again, FAILED)
    assert {oracle.create_trial(worker).status for worker in "ab"} == {STOPPED}
    assert oracle.finished


def test_a_result_that_is_told_again_counts_once_and_not_after_the_end(tmp_path):
    oracle = opened(make(), tmp_path)
    trial = Trial.from_proto(oracle.create_trial("a").to_proto())
    for _ in range(3):  # Three times 0.1, divided by three, is more than 0.1.
        oracle.update_trial(trial.trial_id, {"val_accuracy": 0.1})
    trial.status = COMPLETED
    oracle.end_trial(trial)
    assert oracle.trials[trial.trial_id].score == 0.1
    before = table(oracle), contents(tmp_path)
    end(oracle, trial, result=0.9)
    assert (table(oracle), contents(tmp_path)) == before


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
    search(oracle)
    assert told == oracle.end_order


# Several workers.


def test_a_worker_without_a_trial_waits_while_another_has_one(tmp_path):
    oracle = opened(make(most_trials=1), tmp_path)
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
    oracle = opened(make(most_trials=2, worker_timeout=30.0), tmp_path)
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
    assert rows == [("0000", COMPLETED, 0.5), ("0001", COMPLETED, 0.5)]


def test_a_trial_that_was_taken_back_and_then_ended_is_not_tried_again_after_a_kill(tmp_path):
    oracle = opened(make(most_trials=2), tmp_path)
    trial = Trial.from_proto(oracle.create_trial("a").to_proto())
    oracle.take_back("a")
    end(oracle, trial)
    again = opened(make(most_trials=2), tmp_path)
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
    trial = opened(make(remote=True, most_trials=1), tmp_path).create_trial("a")
    again = opened(make(remote=True, most_trials=1), tmp_path)
    end(again, trial)
    assert not again.finished
    assert again.create_trial("a").status == STOPPED
    assert again.finished
    assert opened(make(remote=True, most_trials=1), tmp_path).finished  # Nobody is left to ask.


@pytest.mark.parametrize("tuner", ["random", "hyperband", "grid"])
def test_a_chief_that_is_started_again_after_the_end_waits_for_nobody(tmp_path, tuner):
    in_turn(opened(make(tuner, remote=True), tmp_path), score, "ab")
    assert opened(make(tuner, remote=True), tmp_path).finished


def test_workers_that_die_with_the_search_lose_their_trials_to_the_next_that_ask(tmp_path):
    oracle = opened(make(), tmp_path)
    begun = {oracle.create_trial(worker).trial_id for worker in ("a", "b")}
    again = opened(make(), tmp_path)
    assert {again.create_trial(worker).trial_id for worker in ("c", "d")} == begun


@pytest.mark.parametrize("tuner", ["random", "hyperband"])
def test_the_chief_may_ask_whether_it_has_finished_while_a_worker_gets_a_trial(
    monkeypatch, tmp_path, tuner
):
    oracle = opened(make(tuner, finals=FINALS), tmp_path)
    end(oracle, oracle.create_trial("a"))
    original, begun = engine.is_final, []

    def is_final(trial):
        if not begun:
            begun.append(threading.Thread(target=oracle.create_trial, args=["b"], daemon=True))
            begun[0].start()
            begun[0].join(0.2)
        return original(trial)

    monkeypatch.setattr(engine, "is_final", is_final)
    assert not oracle.finished
    begun[0].join(PATIENCE)
    assert len(oracle.trials) == 2


# Errors of the oracle itself.


def fail_to_write(path, state):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("method", ["create_trial", "update_trial", "end_trial", "take_back"])
def test_a_full_disk_blocks_no_other_worker_and_the_chief_says_so(monkeypatch, tmp_path, method):
    oracle = opened(make(), tmp_path)
    trial = oracle.create_trial("a")
    if method == "end_trial":
        oracle.update_trial(trial.trial_id, {"val_accuracy": 0.5})
        trial.status = COMPLETED
    arguments = {
        "create_trial": ["b"],
        "update_trial": [trial.trial_id, {"val_accuracy": 0.5}],
        "end_trial": [trial],
        "take_back": ["a"],
    }
    with monkeypatch.context() as full:
        full.setattr(oracle, "_write", fail_to_write)
        with pytest.raises(OSError, match="No space left"):
            getattr(oracle, method)(*arguments[method])
    assert begin(oracle.create_trial, "c").result(PATIENCE).status == RUNNING
    with pytest.raises(OSError, match="No space left"):
        begin(distribution.wait_for_workers, oracle).result(PATIENCE)


def test_an_error_of_the_callback_blocks_no_other_worker_and_the_chief_says_so(tmp_path):
    def on_end(trial):
        raise RuntimeError("no table")

    oracle = opened(make(), tmp_path)
    oracle.on_end = on_end
    trial = oracle.create_trial("a")
    with pytest.raises(RuntimeError, match="no table"):
        end(oracle, trial)
    assert begin(oracle.create_trial, "b").result(PATIENCE).status == RUNNING
    with pytest.raises(RuntimeError, match="no table"):
        begin(distribution.wait_for_workers, oracle).result(PATIENCE)
    assert opened(make(), tmp_path).trials[trial.trial_id].status == COMPLETED


def test_a_search_after_a_full_disk_goes_on_as_if_it_had_not_been(
    monkeypatch, undisturbed, tmp_path
):
    for method in ("save", "_save_trial"):
        for trials in range(3):
            folder = tmp_path / f"{method} {trials}"
            folder.mkdir()
            oracle, original = opened(make(), folder), getattr(engine.Durable, method)

            def write(self, *arguments, trials=trials, original=original):
                if len(self.trials) > trials:
                    fail_to_write(None, None)
                original(self, *arguments)

            with monkeypatch.context() as full:
                full.setattr(engine.Durable, method, write)
                with pytest.raises(OSError, match="No space left"):
                    search(oracle)
            again = opened(make(), folder)
            search(again)
            assert table(again) == undisturbed["random"]


# Workers of other machines.


def test_what_a_worker_of_a_replaced_sweep_tells_changes_nothing(tmp_path):
    told: list[Trial] = []
    oracle = opened(make(), tmp_path)
    end(oracle, oracle.create_trial("a"))
    oracle.create_trial("a")
    oracle.on_end = told.append
    before = table(oracle), contents(tmp_path), dict(oracle.ongoing_trials)
    assert oracle.get_trial("0100").status == STOPPED
    assert oracle.update_trial("0100", {"val_accuracy": 1.0}).status == STOPPED
    for status in (COMPLETED, FAILED):
        oracle.end_trial(Trial(with_a_number(), trial_id="0100", status=status))
    assert (table(oracle), contents(tmp_path), dict(oracle.ongoing_trials)) == before
    assert not told
    assert oracle.error is None
    assert oracle.failures_in_a_row == 0


@pytest.fixture
def quick(monkeypatch):
    """Workers that wait for fractions of a second, without Keras Tuner's variables."""
    for name in ("TUNER_ID", "ORACLE_IP", "ORACLE_PORT"):
        monkeypatch.delenv(f"KERASTUNER_{name}", raising=False)
    monkeypatch.setattr(oracle_client, "TIMEOUT", oracle_client.TIMEOUT)  # The client sets it.
    monkeypatch.setattr(engine, "_CALL_SECONDS", 0.3)
    monkeypatch.setattr(distribution, "_HEARTBEAT_SECONDS", 0.02)
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.02)))


@pytest.fixture
def address():
    with distribution.private_address() as address:
        yield address


def listening() -> set[str]:
    """The TCP sockets of this process that listen, by their inodes."""
    own = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            own.add(os.readlink(f"/proc/self/fd/{name}"))
    found = set()
    for name in ("tcp", "tcp6"):
        for line in pathlib.Path("/proc/self/net", name).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found.add(f"socket:[{fields[9]}]")
    return found & own


@pytest.mark.parametrize("tuner", ["random", "hyperband"])
def test_a_worker_that_talks_to_the_chief_over_a_socket_changes_nothing(
    quick, undisturbed, tmp_path, address, tuner
):
    environment = dict(os.environ)
    oracle = opened(make(tuner), tmp_path)
    with distribution.serving(oracle, address):
        client = engine.Client(make(tuner), address, lambda: False)
        begin(search, client).result(PATIENCE)
        begin(distribution.wait_for_workers, oracle).result(PATIENCE)
    assert table(oracle) == undisturbed[tuner]
    assert dict(os.environ) == environment


def test_only_processes_of_this_user_on_this_machine_can_reach_a_private_address(quick):
    before = listening()
    with distribution.private_address() as address:
        socket = pathlib.Path(address.removeprefix("unix:"))
        with distribution.serving(make(), address):
            assert stat.S_ISSOCK(socket.stat().st_mode)
            assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
            assert listening() == before
            with distribution.serving(make(), "localhost:0"):
                assert listening() > before
    assert not socket.parent.exists()


def test_a_worker_ends_when_the_sweep_has_ended_and_the_chief_is_gone(quick, tmp_path, address):
    chief, ended = contextlib.ExitStack(), threading.Event()
    oracle = opened(make(remote=True), tmp_path)
    client = engine.Client(make(), address, ended.is_set)

    def run_and_lose_the_chief(trial, unwanted):
        chief.close()
        ended.set()
        assert unwanted.wait(PATIENCE)
        return {"val_accuracy": 0.5}

    with chief:
        chief.enter_context(distribution.serving(oracle, address))
        begin(distribution.work, client, "worker", run_and_lose_the_chief).result(PATIENCE)
    assert [trial.status for trial in oracle.trials.values()] == [RUNNING]


def test_a_worker_goes_on_when_the_chief_is_started_again(quick, undisturbed, tmp_path, address):
    chief = contextlib.ExitStack()
    oracles = [opened(make(remote=True), tmp_path)]

    def start():
        chief.enter_context(distribution.serving(oracles[-1], address))

    def start_again():
        oracles.append(opened(make(remote=True), tmp_path))
        start()

    def run_and_lose_the_chief(trial, unwanted):
        if trial.trial_id in ("0001", "0002"):
            chief.close()
            threading.Timer(0.1, start_again).start()
        return run(trial)

    with chief:
        start()
        client = engine.Client(make(), address, lambda: False)
        begin(distribution.work, client, "worker", run_and_lose_the_chief).result(PATIENCE)
    assert len(oracles) == 3
    assert table(oracles[-1]) == undisturbed["random"]
    assert oracles[-1].finished


def test_a_chief_that_never_answers_is_named(quick, monkeypatch, address):
    monkeypatch.setattr(engine, "_CHIEF_SECONDS", 0.5)
    client = engine.Client(make(), address, lambda: False)
    with pytest.raises(UserError, match=f"^chief {address}: has not answered for"):
        begin(search, client).result(PATIENCE)


def test_an_error_of_the_chief_ends_the_chief_and_the_worker_waits(
    quick, monkeypatch, tmp_path, address
):
    oracle, ended = opened(make(), tmp_path), threading.Event()
    client = engine.Client(make(), address, ended.is_set)
    monkeypatch.setattr(oracle, "_write", fail_to_write)
    with distribution.serving(oracle, address):
        worker = begin(search, client)
        with pytest.raises(OSError, match="No space left"):
            begin(distribution.wait_for_workers, oracle).result(PATIENCE)
        assert not worker.done()
    ended.set()
    worker.result(PATIENCE)


def test_no_call_fails_because_the_chief_stops_during_it(quick, tmp_path):
    oracle, ended = opened(make(remote=True), tmp_path), threading.Event()
    trial = oracle.create_trial("worker")

    def beat(client):
        with contextlib.suppress(engine.EndedError):
            while True:
                assert client.get_trial(trial.trial_id).status == RUNNING

    workers = []
    for _ in range(6):  # A call is seldom at the very place that matters.
        with (
            distribution.private_address() as address,
            distribution.serving(oracle, address),
        ):
            clients = [engine.Client(make(), address, ended.is_set) for _ in range(4)]
            workers += [begin(beat, client) for client in clients]
            time.sleep(0.1)
    ended.set()
    for worker in workers:
        worker.result(PATIENCE)


def test_a_trial_that_was_stopped_has_not_ended_and_its_worker_gets_it_again(tmp_path):
    tried = []
    oracle = opened(make(most_trials=2), tmp_path)

    def run_and_stop_once(trial, unwanted):
        tried.append(trial.trial_id)
        if len(tried) == 1:
            raise processes.StoppedError
        return {"val_accuracy": 0.5}

    distribution.work(oracle, "worker", run_and_stop_once)
    assert tried == ["0000", "0000", "0001"]
    assert [trial.status for trial in oracle.trials.values()] == [COMPLETED, COMPLETED]


@pytest.mark.parametrize("obeys", [True, False])
def test_a_trial_that_nobody_wants_any_more_is_not_ended_and_its_worker_asks_again(
    quick, tmp_path, address, obeys
):
    told, tried = [], []
    oracle = opened(make(remote=True), tmp_path)
    oracle.on_end = lambda trial: told.append((trial.trial_id, trial.status, trial.score))

    def run_and_lose_the_trial(trial, unwanted):
        tried.append(trial.trial_id)
        if len(tried) > 1:
            return {"val_accuracy": 0.5}
        oracle.take_back("worker")
        other = oracle.create_trial("other")
        assert other.trial_id == trial.trial_id
        assert not unwanted.wait(0.1)
        end(oracle, other, result=0.7)
        assert unwanted.wait(PATIENCE)
        if obeys:
            raise processes.StoppedError
        return {"val_accuracy": 0.1}

    with distribution.serving(oracle, address):
        client = engine.Client(make(), address, lambda: False)
        begin(distribution.work, client, "worker", run_and_lose_the_trial).result(PATIENCE)
    assert tried == ["0000", "0001", "0002", "0003"]
    assert told == [("0000", COMPLETED, 0.7), *((name, COMPLETED, 0.5) for name in tried[1:])]
    assert table(opened(make(), tmp_path)) == table(oracle)


@pytest.mark.parametrize("obeys", [True, False])
def test_a_worker_of_a_replaced_sweep_goes_on_with_the_new_one(
    quick, undisturbed, tmp_path, address, obeys
):
    chief = contextlib.ExitStack()
    folders = [tmp_path / name for name in ("old", "new")]
    for folder in folders:
        folder.mkdir()
    old, new = [opened(make(seed=s, remote=True), f) for s, f in zip((3, 2), folders, strict=True)]
    stale = []

    def run_and_replace_the_sweep(trial, unwanted):
        if not stale:
            stale.append(trial)
            chief.close()
            chief.enter_context(distribution.serving(new, address))
            assert unwanted.wait(PATIENCE)
            if obeys:
                raise processes.StoppedError
        return run(trial)

    with chief:
        chief.enter_context(distribution.serving(old, address))
        client = engine.Client(make(), address, lambda: False)
        begin(distribution.work, client, "worker", run_and_replace_the_sweep).result(PATIENCE)
    assert table(new) == undisturbed["random"]
    assert new.error is None
