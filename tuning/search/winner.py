"""The winner of a search: the settings of the best trial, trained on all training images."""

import dataclasses

from keras_tuner.engine.trial import Trial

from pizza_steak import atomic
from pizza_steak.errors import UserError
from trainers.configuration import FitConfig, RunConfig
from trainers.runs import identity
from trainers.runs.run_directory import Run, kept_epoch, open_run
from tuning.pages import page
from tuning.search import final_data, processes, trials
from tuning.search.plan import Plan
from tuning.search.progress import Progress


def train(progress: Progress) -> page.Winner | None:
    """Trains the settings of the best trial on all training images, and tests the model.

    Returns:
      None if no trial is completed.

    Raises:
      UserError: The training failed.
    """
    if not (best := progress.oracle.best_trial):
        return None
    plan, folder = progress.plan, progress.plan.folder.path
    config = _final_config(plan, best)
    flags = identity.to_flagfile(config)
    with atomic.atomic_path(folder / "best.flags") as temporary:
        temporary.write_text(f"# Trial {best.trial_id}: {progress.best_so_far}\n{flags}")
    there = Run(folder / "best")
    run = RunConfig(str(there.path), tensorboard=plan.config.search.tensorboard)
    config = dataclasses.replace(config, run=run)
    same = (there.path / "run.flags").exists() and not identity.changes(there.config, config)
    run = dataclasses.replace(run, resume=same, overwrite=not same)
    try:
        processes.run(trials.fit, dataclasses.replace(config, run=run))
    except processes.ProcessError as error:
        raise UserError(f"best.flags: {error}") from error
    result = open_run(run.run_dir).result
    if plan.space.data.shared("test", "validation"):
        result["test_images_chose_the_model"] = True
    return page.Winner(best.trial_id, flags, result)


def _final_config(plan: Plan, best: Trial) -> FitConfig:
    """Returns the flags of the final training."""
    config, asked = plan.space.fit_config(best.hyperparameters.values), plan.config
    epochs = asked.search.final_epochs or asked.trial.max_epochs
    if not asked.search.final_epochs and config.optimisation.early_stopping_patience:
        history = plan.executions(best)[0].run.result["history"]
        epochs = kept_epoch(history) + 1
    optimisation = dataclasses.replace(
        config.optimisation, epochs=epochs, early_stopping_patience=None
    )
    data = final_data.data_flags(asked, plan.space.data)
    return dataclasses.replace(config, data=data, optimisation=optimisation)
