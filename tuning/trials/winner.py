"""The winner of a sweep: the best settings, trained on all training images."""

import dataclasses
import pathlib
import statistics
from collections.abc import Callable

from keras_tuner.engine.trial import Trial

from pizza_steak import atomic
from pizza_steak.errors import UserError
from trainers import user_code
from trainers.configuration import AveragingConfig, FitConfig, RunConfig
from trainers.runs import identity
from trainers.runs.run_directory import Run, open_run
from tuning.pages import page
from tuning.trials import execution, images, processes
from tuning.trials.plan import Plan
from tuning.trials.progress import Progress


def train(progress: Progress) -> page.Winner | None:
    """Trains the best settings on all training images, as they were scored, and tests the model.

    Returns:
      None if no trial is completed.

    Raises:
      UserError: The training failed.
    """
    if not (best := progress.oracle.best_trial):
        return None
    plan, folder = progress.plan, progress.plan.folder.path
    config = _final_config(progress, best)
    flags = identity.to_flagfile(config)
    with atomic.atomic_path(folder / "best.flags") as temporary:
        temporary.write_text(
            f"# Trial {best.trial_id}: {progress.best_so_far}\n{flags}", encoding="utf-8"
        )
    final = plan.config.final
    if final.final_models == 1 and not final.average_flips:
        _fit(plan, config, folder / "best")
    else:
        seeds = [config.optimisation.seed + number for number in range(final.final_models)]
        members = [folder / "members" / f"seed-{seed}" for seed in seeds]
        for seed, member in zip(seeds, members, strict=True):
            optimisation = dataclasses.replace(config.optimisation, seed=seed)
            _fit(plan, dataclasses.replace(config, optimisation=optimisation), member)
        _average(plan, config, members, folder / "best")
    return page.Winner(best.trial_id, flags, open_run(str(folder / "best")).result)


def _fit(plan: Plan, config: FitConfig, run_dir: pathlib.Path) -> None:
    there = Run(run_dir)
    run = RunConfig(str(run_dir), tensorboard=plan.config.final.tensorboard)
    config = dataclasses.replace(config, run=run)
    same = (run_dir / "run.flags").exists() and not identity.changes(there.config, config)
    if there.finished and "members" in there.result:
        same = False  # An average has the flags of its first member.
    same = same and not there.is_damaged
    run = dataclasses.replace(run, resume=same, overwrite=not same)
    _call(execution.fit, dataclasses.replace(config, run=run))


def _average(
    plan: Plan, config: FitConfig, members: list[pathlib.Path], run_dir: pathlib.Path
) -> None:
    model = config.model.model
    asked = AveragingConfig(
        runs=tuple(map(str, members)),
        run_dir=str(run_dir),
        average_flips=plan.config.final.average_flips,
        overwrite=True,
        data_dir=config.data.data_dir,
        code=(model,) if user_code.is_function(model) else (),
    )
    _call(execution.average, asked)


def _call(function: Callable, config: FitConfig | AveragingConfig) -> None:
    try:
        processes.run(function, config)
    except (UserError, processes.ProcessError) as error:
        raise UserError(f"best.flags: {error}") from error


def _final_config(progress: Progress, best: Trial) -> FitConfig:
    """Returns the flags of the final training."""
    plan, asked = progress.plan, progress.plan.config
    config = plan.space.fit_config(best.hyperparameters.values)
    epochs = plan.finals.epochs
    if asked.trial.early_stopping_patience is not None and asked.final.final_epochs is None:
        # A training without validation cannot stop early: it takes as many epochs as the finals.
        finals = progress.finals_of(best)
        if not finals or progress.oracle.is_own_final(best):
            finals = [*finals, best]
        epochs = round(statistics.mean(progress.epochs(trial) for trial in finals))
    optimisation = dataclasses.replace(
        config.optimisation, epochs=epochs, early_stopping_patience=None
    )
    data = images.final_flags(config.data, plan.data)
    return dataclasses.replace(config, data=data, optimisation=optimisation)
