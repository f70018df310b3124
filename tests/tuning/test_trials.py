"""Trials: how they are trained, scored, pruned and kept, and by whom."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator

import keras
import numpy as np
import pytest
from keras_tuner.engine.trial import Trial
from small_runs import layout, parse_flags, result_of, rows, train_and_test

from pizza_steak.errors import UserError
from trainers.runs import run_directory
from tuning.configuration import SweepConfig
from tuning.pages.table import Row
from tuning.trials import distribution, engine, execution, processes, running, winner
from tuning.trials.execution import Execution, Pruning
from tuning.trials.plan import Plan
from tuning.trials.progress import Progress

# 16 images train and 8 validate, so there are three folds.
FLAGS = [
    "--validation_fraction=0.34",
    "--batch_size=8",
    "--learning_rate=0.01",
    "--learning_rate_schedule=constant",
    "--weight_decay=0",
    "--dropout=0",
    "--label_smoothing=0",
    "--finalists=1",
    "--notensorboard",
]
TINY = [
    "--image_size=16",
    "--filters=2",
    "--blocks=1",
    "--convolutions=1",
    "--kernel_size=3",
    "--pool_size=2",
    "--dense_layers=0",
    "--batch_normalization=false",
    "--horizontal_flip=false",
    "--zoom_range=0",
    "--width_shift_range=0",
    "--height_shift_range=0",
    "--rotation_range=0",
    "--brightness_range=none",
    "--mixup=none",
    "--ema=none",
]


@dataclasses.dataclass
class Sweep:
    """A sweep in this process.

    Attributes:
      progress: What it has reached.
      backups: The names of the runs with a backup, after each trial.
      page: The page after the first trial.
      winner: The final training; None before it.
    """

    progress: Progress
    backups: list[set[str]] = dataclasses.field(default_factory=list)
    page: str = ""
    winner: object = None

    @property
    def plan(self) -> Plan:
        return self.progress.plan

    @property
    def folder(self) -> pathlib.Path:
        return self.plan.folder.path

    @property
    def oracle(self) -> engine.Durable:
        return self.progress.oracle

    @property
    def rows(self) -> list[Row]:
        return self.progress.rows

    @property
    def trials(self) -> list[Trial]:
        return [self.oracle.trials[name] for name in self.oracle.start_order]

    def outcome(self, trial: Trial | str, number: int = 0) -> dict:
        if isinstance(trial, str):
            trial = self.oracle.trials[trial]
        return self.plan.executions(trial)[number].outcome

    def note(self, trial: Trial) -> None:
        self.progress.report(trial)
        self.backups.append({path.parent.name for path in self.folder.glob("*/*/backup")})
        self.page = self.page or self.written_page

    @property
    def written_page(self) -> str:
        return (self.folder / "sweep.html").read_text()


@pytest.fixture(scope="module", autouse=True)
def here() -> Iterator[None]:
    """All that would run in a process of its own runs in this one."""

    def call(function: Callable, *arguments, **options):
        function(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "run", call)
        patch.setattr(
            processes.Server,
            "run",
            lambda self, function, *arguments, limit=None: function(*arguments),
        )
        yield


@pytest.fixture(scope="module")
def make_plan(small_flags, tmp_path_factory):
    """`make_plan(*flags)`: the plan of a sweep in a folder of its own."""

    def make(*flags: str, tiny: bool = True) -> Plan:
        folder = tmp_path_factory.mktemp("sweeps") / "sweep"
        argv = [*small_flags[:2], *FLAGS, *(TINY if tiny else ()), f"--sweep_dir={folder}", *flags]
        return Plan.make(parse_flags(*argv, config=SweepConfig))

    return make


@pytest.fixture(scope="module")
def run_sweep(make_plan):
    """`run_sweep(*flags, finish=False)`: a sweep; `finish` trains the winner too."""

    def run(*flags: str, finish: bool = False, tiny: bool = True) -> Sweep:
        plan = make_plan(*flags, tiny=tiny)
        plan.folder.start()
        oracle = plan.make_oracle(remote=False)
        plan.folder.open_oracle(oracle)
        sweep = Sweep(Progress(plan, oracle))
        oracle.on_end = sweep.note
        running.run_trials(plan, oracle, distributed=False)
        if finish:
            sweep.winner = winner.train(sweep.progress)
        sweep.progress.write(sweep.winner)
        return sweep

    return run


def validation(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """The validation images of the trials, and their labels, 0 or 1."""
    batches = list(plan.data.batches("validation", 8))
    images, labels = (np.concatenate([batch[i] for batch in batches]) for i in range(2))
    return images, labels.reshape(-1)


def saved_model(sweep: Sweep, run: str) -> tuple[np.ndarray, np.ndarray]:
    """What the kept model of a run predicts for the validation images, and their labels."""
    images, labels = validation(sweep.plan)
    model = keras.models.load_model(sweep.folder / "trials" / run / "model.keras")
    return model.predict(images, verbose=0).reshape(-1), labels


def cross_entropy(outputs: np.ndarray, labels: np.ndarray, smoothing: float = 0.0) -> float:
    labels = labels * (1 - smoothing) + smoothing / 2
    return float(-(labels * np.log(outputs) + (1 - labels) * np.log(1 - outputs)).mean())


def kept_models(sweep: Sweep) -> set[str]:
    """The names of the runs that have a model."""
    return {path.parent.name for path in sweep.folder.glob("*/*/model.keras")}


def assert_keeps_the_best(sweep: Sweep, count: int) -> None:
    """Just the best runs have a model, and it is that of the last epoch."""
    best = sweep.oracle.ranking[:count]
    assert kept_models(sweep) == {engine.run_of(trial) for trial in best}
    assert len(best) == count
    for trial in best:
        outputs, labels = saved_model(sweep, engine.run_of(trial))
        history = sweep.outcome(trial)["history"]
        assert ((outputs > 0.5) == labels).mean() == pytest.approx(history["val_accuracy"][-1])
        assert cross_entropy(outputs, labels) == pytest.approx(history["val_loss"][-1], rel=1e-4)


# The score.


def test_the_score_is_the_mean_of_the_last_three_epochs_or_of_fewer():
    assert execution.score([0.75]) == 0.75
    assert execution.score([0.5, 1.0]) == 0.75
    assert execution.score([9.0, 1.0, 2.0, 6.0]) == 3.0


@pytest.fixture(scope="module")
def smoothed(run_sweep):
    """A sweep of two trials that differ in label smoothing, scored by their loss."""
    options = ["--objective=val_loss", "--tuner=grid", "--keep=2", "--max_epochs=4"]
    return run_sweep("--label_smoothing=0,0.1", *options)


def test_a_trial_counts_by_its_last_three_epochs(smoothed):
    assert [row.epochs for row in smoothed.rows] == [4, 4]
    for row in smoothed.rows:
        losses = smoothed.outcome(row.trial)["history"]["val_loss"]
        assert row.objective == pytest.approx(math.fsum(losses[1:]) / 3)
        assert row.objective != pytest.approx(min(losses))


def test_losses_are_compared_without_label_smoothing(smoothed):
    assert [row.settings["label_smoothing"] for row in smoothed.rows] == [0, 0.1]
    for row in smoothed.rows:
        outputs, labels = saved_model(smoothed, row.run)
        loss = smoothed.outcome(row.trial)["history"]["val_loss"][-1]
        assert loss == pytest.approx(cross_entropy(outputs, labels), rel=1e-4)
        assert loss != pytest.approx(cross_entropy(outputs, labels, 0.1), rel=1e-3)
    best = min(smoothed.rows, key=lambda row: row.objective)
    assert smoothed.oracle.best_trial.trial_id == best.trial


def test_several_executions_have_their_own_seeds_and_count_by_their_mean(run_sweep):
    options = ["--executions_per_trial=2", "--max_trials=1", "--max_epochs=2", "--keep=1"]
    sweep = run_sweep("--objective=val_loss", *options)
    (trial,) = sweep.trials
    runs = [sweep.folder / "trials" / name for name in ("0000", "0000-2")]
    assert [one.run.path for one in sweep.plan.executions(trial)] == runs
    configs = [run_directory.Run(run).config for run in runs]
    assert [config.optimisation.seed for config in configs] == [42, 43]
    assert configs[0].model == configs[1].model
    losses = [result_of(run)["history"]["val_loss"] for run in runs]
    assert losses[0] != losses[1]
    assert [sweep.outcome(trial, number)["history"]["val_loss"] for number in (0, 1)] == losses
    assert sweep.rows[0].objective == pytest.approx(math.fsum(losses[0] + losses[1]) / 4)
    assert kept_models(sweep) == {"0000", "0000-2"}


def test_the_final_training_takes_as_many_epochs_as_its_finals(run_sweep):
    # The loss never improves, so that each training stops after its second epoch.
    options = ["--learning_rate=1e-12", "--early_stopping_patience=1", "--max_epochs=6"]
    sweep = run_sweep(*options, "--filters=2,3", "--max_trials=2", "--finalists=2", finish=True)
    trials = [row for row in sweep.rows if not row.finalist]
    finals = [row for row in sweep.rows if row.finalist]
    assert [row.epochs for row in trials] == [2, 2]
    assert [(row.finalist, row.fold, row.epochs) for row in finals] == [
        (row.run, fold, 2) for row in trials for fold in (1, 2)
    ]
    optimisation = run_directory.open_run(sweep.folder / "best").config.optimisation
    assert (optimisation.epochs, optimisation.early_stopping_patience) == (2, None)
    assert len(rows(sweep.folder / "best")) == 2


@pytest.fixture
def scored(monkeypatch):
    """`scored(score)`: no trial is trained; `score(execution)` is its accuracy in each epoch."""

    def score_by(score: Callable[[Execution], float]) -> None:
        def call(function: Callable, one, **options):
            if function is not execution.train:
                return function(one)
            values = [score(one)] * one.epochs
            costs = {"seconds": 1.0, "cpu_seconds": 1.0, "parameters": 1, "predict_cpu_ms": None}
            history = {"loss": values, "val_accuracy": values}
            one.end({**costs, "pruned": False, "history": history})

        monkeypatch.setattr(processes, "run", call)

    return score_by


def test_the_final_training_is_as_long_as_finals_and_not_as_a_trial_that_ended_before(
    run_sweep, scored
):
    # The first of three trials is promoted, and the second wins the finals.
    scores = {"0000": 0.9, "0001": 0.8, "0002": 0.1, "0003": 0.85}
    rates = {}

    def score(one: Execution) -> float:
        rate = one.config.optimisation.learning_rate
        if one.run.path.parent.name == "finals":
            return 1.0 if rate == rates["0001"] else 0.5
        rates[one.name] = rate
        return scores.get(one.name, 0.2)

    scored(score)
    options = ["--tuner=hyperband", "--max_epochs=3", "--early_stopping_patience=9"]
    sweep = run_sweep("--learning_rate=0.001:0.01:log", "--finalists=2", *options, finish=True)
    assert engine.run_of(sweep.oracle.trials["0003"]) == "0000"
    assert sweep.winner.trial == "0001"
    assert sweep.rows[1].epochs == 1
    assert len(rows(sweep.folder / "best")) == 3


# What is kept.


@pytest.fixture(scope="module")
def promoted(run_sweep):
    """A sweep by hyperband with averaged weights, which keeps two models."""
    options = ["--tuner=hyperband", "--max_epochs=3", "--keep=2", "--ema=0.5"]
    return run_sweep("--learning_rate=0.001:0.01:log", "--optimizer=adam", *options)


def test_the_best_two_models_are_kept_after_their_last_epoch(promoted):
    assert_keeps_the_best(promoted, 2)
    continued = [t for t in promoted.oracle.ranking[:2] if engine.run_of(t) != t.trial_id]
    assert len(continued) == 1


def test_a_promoted_trial_goes_on_where_the_trial_before_it_ended(promoted):
    (longer,) = (trial for trial in promoted.trials if engine.run_of(trial) != trial.trial_id)
    before = promoted.outcome(engine.run_of(longer))["history"]
    after = promoted.outcome(longer)["history"]
    assert (len(before["loss"]), len(after["loss"])) == (1, 3)
    assert all(after[name][:1] == values for name, values in before.items())
    assert not (promoted.folder / "trials" / longer.trial_id).exists()


def test_a_backup_is_kept_as_long_as_a_trial_may_continue_it(promoted):
    (longer,) = (trial for trial in promoted.trials if engine.run_of(trial) != trial.trial_id)
    first = [t.trial_id for t in promoted.trials if t.hyperparameters.values["tuner/epochs"] == 1]
    assert len(first) == 3
    backups = dict(zip(promoted.oracle.end_order, promoted.backups, strict=True))
    for number, trial_id in enumerate(first, 1):
        assert backups[trial_id] == {*first[:number]}
    others = set(promoted.oracle.trials) - {*first, longer.trial_id}
    assert len(others) == 2
    for trial_id in others:
        assert trial_id not in backups[trial_id]
    assert promoted.backups[-1] == set()


def test_a_trial_with_a_damaged_backup_trains_it_again(promoted, run_sweep, monkeypatch, caplog):
    (longer,) = (trial for trial in promoted.trials if engine.run_of(trial) != trial.trial_id)
    train, damaged = running.Runner._train, []

    def damage_and_train(self, one, unwanted):
        if one.run.has_progress:  # It is the promoted one.
            for backup in one.run.backup.glob("*.npz"):
                backup.write_bytes(bytes(backup.stat().st_size))
            damaged.append(one.run.path)
        train(self, one, unwanted)

    monkeypatch.setattr(running.Runner, "_train", damage_and_train)
    options = ["--tuner=hyperband", "--max_epochs=3", "--keep=2", "--ema=0.5"]
    again = run_sweep("--learning_rate=0.001:0.01:log", "--optimizer=adam", *options)
    (path,) = damaged
    assert f"{path}: its backup is damaged; it starts anew" in caplog.messages
    history = promoted.outcome(longer)["history"]
    assert again.outcome(longer.trial_id)["history"] == history


def test_a_final_training_with_a_damaged_backup_starts_anew(run_sweep, monkeypatch):
    sweep = run_sweep("--max_trials=1", "--max_epochs=1", finish=True)
    before = sweep.winner.result["test_loss"]
    best = sweep.folder / "best"
    (best / "result.json").unlink()
    (best / "backup").mkdir()
    (best / "backup" / "latest.npz").write_bytes(b"damaged")
    assert winner.train(sweep.progress).result["test_loss"] == before


def test_what_a_killed_sweep_left_is_removed_but_not_what_workers_write(make_plan):
    folder = make_plan("--max_trials=1", "--max_epochs=1").folder
    folder.start()
    names = ("trials.csv", "oracle/oracle.json", "oracle/trial_0000/trial.json", "trials/0000/x")
    left = []
    for path in map(folder.path.joinpath, names):
        path.parent.mkdir(parents=True, exist_ok=True)
        left.append(path.with_name(f".{'0' * 32}.{path.name}"))
        left[-1].write_text("half")
    folder.start()
    assert [path.exists() for path in left] == [False, False, False, True]


def test_a_backup_that_a_kill_left_after_the_last_trial_is_removed(run_sweep):
    sweep = run_sweep("--max_trials=1", "--max_epochs=1")
    backup = sweep.folder / "trials" / "0000" / "backup"
    assert not backup.exists()
    backup.mkdir()
    sweep.progress.write()
    assert not backup.exists()
    assert (sweep.folder / "trials" / "0000" / "result.json").exists()


# Pruning.


def test_a_median_is_one_of_five_scores_or_more():
    histories = [[float(number), 0.0, 0.0] for number in range(5)]
    assert running.medians(histories, 1) == [2.0, 1.0, 2 / 3]
    assert running.medians(histories, 2) == [None, 1.0, pytest.approx(2 / 3)]
    assert running.medians(histories[1:], 1) == [None, None, None]
    assert running.medians([], 1) == []
    # Those that were pruned before count for the epochs that they have.
    assert running.medians([*histories, [9.0]], 1) == [2.5, 1.0, pytest.approx(2 / 3)]
    # A score is the mean of three epochs.
    steady = [[1.0, 2.0, 3.0, 4.0]] * 5
    assert running.medians(steady, 1) == [1.0, 1.5, 2.0, 3.0]


def test_a_trial_is_pruned_where_its_score_is_worse_than_the_limit():
    accuracy = Pruning("val_accuracy", [None, 0.5], minimized=False)
    assert not accuracy.stops([0.1])
    assert accuracy.stops([0.1, 0.8])
    assert not accuracy.stops([0.2, 0.8])
    assert not accuracy.stops([0.1, 0.1, 0.1])
    loss = Pruning("val_loss", [None, 0.5], minimized=True)
    assert loss.stops([0.8, 0.3])
    assert not loss.stops([0.8, 0.2])
    assert not loss.stops([9.0])


@pytest.fixture(scope="module")
def pruned(run_sweep):
    """A sweep whose sixth trial learns nothing, while all others do."""
    rates = "--learning_rate=0.01,0.011,0.012,0.013,0.014,1e-9"
    options = ["--prune=median", "--min_epochs=2", "--max_epochs=3", "--tuner=grid", "--keep=2"]
    return run_sweep(rates, "--objective=val_loss", *options)


def test_a_trial_below_the_median_is_stopped_early(pruned):
    *others, last = pruned.rows
    assert last.settings["learning_rate"] == 1e-9
    assert (last.status, last.epochs) == ("pruned", 2)
    assert len(rows(pruned.folder / "trials" / last.run)) == 2
    assert [(row.status, row.epochs) for row in others] == [("completed", 3)] * 5
    losses = pruned.outcome(last.trial)["history"]["val_loss"]
    assert last.objective == pytest.approx(sum(losses) / 2)
    assert "5 completed, 1 pruned" in pruned.written_page


def test_the_models_of_the_best_trials_are_kept_and_no_backup_is(pruned):
    assert_keeps_the_best(pruned, 2)
    assert pruned.backups == [set()] * 6


@pytest.fixture
def train_with_limits(make_plan):
    """`train_with_limits(*limits)`: the outcome of a trial of two epochs that `limits` prune."""

    def train(*limits: float | None) -> dict:
        plan = make_plan("--max_epochs=2", "--max_trials=1")
        plan.folder.start()
        oracle = plan.make_oracle(remote=False)
        plan.folder.open_oracle(oracle)
        pruning = Pruning("val_loss", limits, minimized=True)
        (one,) = plan.executions(oracle.create_trial("worker"), pruning)
        execution.train(one)
        return one.outcome

    return train


def test_a_trial_that_took_all_its_epochs_was_not_pruned(train_with_limits):
    outcome = train_with_limits(None, 0.0)
    assert (outcome["pruned"], len(outcome["history"]["loss"])) == (False, 2)
    outcome = train_with_limits(0.0, None)
    assert (outcome["pruned"], len(outcome["history"]["loss"])) == (True, 1)


def test_an_unreadable_image_is_no_verdict_on_the_settings(make_plan, make_archive):
    files = layout(train_and_test("dark", "light")) | {"train/dark/03.png": b"no image"}
    flags = (f"--archive={make_archive(files)}", "--decoded_cache=none", "--max_trials=1")
    plan = make_plan(*flags)
    plan.folder.start()
    oracle = plan.make_oracle(remote=False)
    plan.folder.open_oracle(oracle)
    (one,) = plan.executions(oracle.create_trial("worker"), None)
    with pytest.raises(UserError, match=r"cannot be decoded: train/dark/03\.png"):
        execution.train(one)
    assert one.outcome is None


# Its costs.


def test_a_row_has_the_parameters_and_the_time_of_a_prediction(smoothed):
    for row in smoothed.rows:
        model = keras.models.load_model(smoothed.folder / "trials" / row.run / "model.keras")
        assert row.parameters == model.count_params()
        assert 0 < row.latency < 1000
    header, *lines = (smoothed.folder / "trials.csv").read_text().splitlines()
    places = [header.split(",").index(name) for name in ("parameters", "predict_cpu_ms")]
    for row, line in zip(smoothed.rows, lines, strict=True):
        written = [line.split(",")[place] for place in places]
        assert written == [str(row.parameters), str(row.latency)]


def test_a_head_that_is_trained_alone_counts_with_the_network_before_it(run_sweep, head_flags):
    model = next(flag for flag in head_flags if flag.startswith("--model="))
    options = ["--optimizer=adam", "--max_trials=1", "--max_epochs=2", "--keep=1", "--ema=0.5"]
    sweep = run_sweep(model, *options, tiny=False)
    (row,) = sweep.rows
    assert sweep.plan.space.has_heads_only
    saved = keras.models.load_model(sweep.folder / "trials" / row.run / "model.keras")
    assert row.parameters == saved.count_params()
    assert 0 < row.latency < 1000
    assert_keeps_the_best(sweep, 1)
    assert sweep.backups == [set()]


def test_the_page_refreshes_itself_until_the_sweep_has_ended(smoothed):
    refresh = 'http-equiv="refresh"'
    assert refresh in smoothed.page
    assert "Sweep of 1 trial<" in smoothed.page
    assert refresh not in smoothed.written_page


# The final training.


def test_a_sweep_that_goes_on_without_averaging_trains_its_best_anew(run_sweep):
    sweep = run_sweep("--max_trials=1", "--max_epochs=1", "--average_flips", finish=True)
    assert sweep.winner.result["members"] == [str(sweep.folder / "members" / "seed-42")]
    plan = sweep.plan
    final = dataclasses.replace(plan.config.final, average_flips=False)
    plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, final=final))
    result = winner.train(Progress(plan, sweep.oracle)).result
    assert "members" not in result
    assert len(result["history"]["loss"]) == 1


# Workers.


@pytest.fixture
def chief(make_plan) -> Iterator[tuple[Plan, engine.Durable, str]]:
    """The plan of a chief, its oracle, and the address where it answers."""
    plan = make_plan("--max_epochs=1", "--max_trials=1")
    plan.folder.start()
    oracle = plan.make_oracle(remote=True)
    plan.folder.open_oracle(oracle)
    with (
        distribution.private_address() as address,
        distribution.serving(oracle, address),
    ):
        yield plan, oracle, address


def refusal(plan: Plan, oracle: engine.Durable, address: str) -> str:
    """The one line with which a worker ends; it has changed nothing."""
    with pytest.raises(UserError) as caught:
        running.work(plan, "worker", address)
    (line,) = str(caught.value).splitlines()
    assert oracle.trials == {}
    assert not list(plan.folder.path.glob("trials/*"))
    return line


def test_a_worker_with_the_flags_of_the_chief_runs_its_trials(chief):
    plan, oracle, address = chief
    assert running.work(plan, "worker", address) == "worker: 1 trials"
    assert [trial.status for trial in oracle.trials.values()] == ["COMPLETED"]


def test_a_worker_with_other_flags_is_refused(chief, make_plan):
    plan, oracle, address = chief
    folder = f"--sweep_dir={plan.folder.path}"
    other = make_plan("--max_epochs=2", "--max_trials=1", folder)
    assert "(--max_epochs=1, now --max_epochs=2)" in refusal(other, oracle, address)


def test_a_worker_with_another_archive_is_refused(chief, make_plan, make_archive):
    plan, oracle, address = chief
    archive = make_archive(layout(train_and_test("dark", "middle")), name="shades")
    flags = ["--max_epochs=1", "--max_trials=1", f"--sweep_dir={plan.folder.path}"]
    other = make_plan(*flags, f"--archive={archive}")
    assert f"now --archive={archive}" in refusal(other, oracle, address)


def test_a_worker_that_does_not_share_the_folder_is_refused(chief, make_plan):
    _, oracle, address = chief
    other = make_plan("--max_epochs=1", "--max_trials=1")
    line = refusal(other, oracle, address)
    assert line.startswith(f"sweep_dir {other.folder.path}: ")
    assert "expected a folder that chief and workers share" in line
