"""Training, evaluation and prediction, as commands over a library.

    import trainers

    run = trainers.train(archive="holiday_photos.zip", epochs=20)
    run.predict("photo.jpg")

`train` trains a classifier, as `python -m trainers.fit` does. `open_run` opens a run that is
finished.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.training.from_python import TrainedRun, open_run, train

__all__ = ["TrainedRun", "open_run", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from trainers.training import from_python

        return getattr(from_python, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
