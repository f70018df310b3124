"""Evaluates the model of a finished run on any images of its classes."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import calibration, metrics

from pizza_steak import decoding, figures, records, splits
from pizza_steak.archive import ReadingOptions, find_parts
from pizza_steak.atomic import output_file, remove
from pizza_steak.errors import ArchiveError, UserError, told
from pizza_steak.text_width import padded, text_width
from trainers import data as run_data
from trainers import user_code
from trainers.configuration import DataConfig, EvaluateConfig, EvaluationConfig
from trainers.finished import activation_maps, loading, testing
from trainers.pages import plots
from trainers.runs import run_directory, scores

_CALIBRATION_BINS = 10
_MISTAKES_DRAWN = 24
_MAPS_DRAWN = 9  # Of right predictions, and as many of wrong ones.
_TOP = 5
_CONFUSIONS_SHOWN = 10
_WIDTH_SHOWN = 100


@dataclasses.dataclass(frozen=True)
class Explained:
    """M images, and which parts of them the predictions depend on.

    Attributes:
      images: The images as the model sees them: uint8 of shape (M, H, W, C).
      maps: The activation maps of the predicted classes: float32 of shape (M, H, W), 0 to 1.
      predictions: The M predictions, as in "mistakes" of evaluation.json.
    """

    images: np.ndarray
    maps: np.ndarray
    predictions: Sequence[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
      values: The content of evaluation.json.
      mistakes: The images with the most confident mistakes, upright and in their own aspect ratio:
        M arrays, uint8 of shape (H, W, 3).
      explained: The most confident right and wrong predictions, if --activation_maps is given.
    """

    values: dict[str, Any]
    mistakes: Sequence[np.ndarray]
    explained: Explained | None = None

    def summary(self) -> str:
        """Returns the results as text."""
        values = self.values
        area = "not defined" if values["roc_auc"] is None else f"{values['roc_auc']:.4f}"
        blocks = [
            f"{values['dataset']}, {values['split']}: {values['images']:,} images\n"
            f"accuracy {self._accuracy()}, loss {values['loss']:.4f}\n"
            f"ROC AUC {area}, "
            f"expected calibration error {values['expected_calibration_error']:.4f}"
            f"{self._top_accuracy()}",
            *self._cautions(),
            self._class_table(),
            self._confusions(),
        ]
        return "\n\n".join(blocks)

    def _accuracy(self) -> str:
        values = self.values
        return scores.accuracy_text(
            values["accuracy"], values["accuracy_interval"], values["images"]
        )

    def _top_accuracy(self) -> str:
        accuracy = self.values.get(f"top_{_TOP}_accuracy")
        return "" if accuracy is None else f", top-{_TOP} accuracy {accuracy:.4f}"

    def _cautions(self) -> list[str]:
        values = self.values
        lines = scores.not_learned(values, values["accuracy_interval"])
        for name, said in (
            ("validated_on", "chose the best epoch: expect less on new ones"),
            ("trained_on", "were trained on: this is no test"),
        ):
            if values[name]:
                lines.append(f"{values[name]:,} of these images {said}")
        if values["trained_on"] is None:
            lines.append(
                "not known whether the run was trained on these images: its own are gone or changed"
            )
        return ["\n".join(lines)] if lines else []

    def write(self, asked: EvaluationConfig) -> pathlib.Path:
        """Writes the results and the figures, and returns the folder of the figures.

        Raises:
          UserError: A file cannot be written.
        """
        values, out_dir = self.values, pathlib.Path(self.values["run"], "evaluation")
        if asked.out_dir:
            out_dir = pathlib.Path(asked.out_dir).expanduser()
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"out_dir {out_dir}: {told(error)}; pass another --out_dir") from error
        if self.explained and asked.activation_maps:
            plots.activation_maps(
                self.explained.images,
                self.explained.maps,
                [_caption(prediction) for prediction in self.explained.predictions],
                pathlib.Path(asked.activation_maps),
            )
        with output_file(asked.json or out_dir / "evaluation.json") as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        matrix, classes = np.array(values["confusion_matrix"]), list(values["by_class"])
        plots.confusion_matrix(matrix, classes, out_dir / "confusion_matrix.png")
        calibration_error = values["expected_calibration_error"]
        plots.calibration(values["calibration"], calibration_error, out_dir / "calibration.png")
        self._draw_mistakes(out_dir / "mistakes.png")
        return out_dir

    def _draw_mistakes(self, path: pathlib.Path) -> None:
        remove(path)  # Without mistakes, no figure of an earlier evaluation may stay.
        if self.mistakes:
            shown = self.values["mistakes"][: len(self.mistakes)]
            captions = [_caption(mistake) for mistake in shown]
            figures.picture_grid(self.mistakes, captions, path)

    def _class_table(self) -> str:
        rows = [*self.values["by_class"].items(), ("macro average", self.values["macro_average"])]
        width = max(text_width(name) for name, _ in rows) + 2
        measures = ("precision", "recall", "f1-score")
        lines = [" " * width + "".join(f"{name:>11}" for name in (*measures, "images"))]
        for name, row in rows:
            numbers = "".join(f"{row[measure]:>11.4f}" for measure in measures)
            lines.append(f"{padded(name, width)}{numbers}{row['support']:>11,.0f}")
        return "\n".join(lines)

    def _confusions(self) -> str:
        """Returns the confusion matrix, or if it is too wide the most frequent confusions."""
        names, matrix = list(self.values["by_class"]), self.values["confusion_matrix"]
        width = max(map(text_width, (*names, f"{self.values['images']:,}"))) + 2
        if width * (len(names) + 1) <= _WIDTH_SHOWN:
            lines = ["rows: true classes, columns: predicted classes"]
            headings = (" " * (width - text_width(name)) + name for name in names)
            lines.append(" " * width + "".join(headings))
            for name, counts in zip(names, matrix, strict=True):
                lines.append(padded(name, width) + "".join(f"{n:>{width},}" for n in counts))
            return "\n".join(lines)
        confusions = [
            (count, f"true {names[true]}, predicted {names[predicted]}")
            for (true, predicted), count in np.ndenumerate(matrix)
            if true != predicted and count
        ]
        largest = sorted(confusions, reverse=True)[:_CONFUSIONS_SHOWN]
        return "\n".join(
            ["most frequent mistakes", *(f"{count:>6,}  {text}" for count, text in largest)]
        )


def _caption(prediction: dict[str, Any]) -> str:
    return (
        f"true {prediction['class']},\n"
        f"predicted {prediction['predicted']} ({100 * prediction['probability']:.0f} %)\n"
        f"{pathlib.PurePosixPath(prediction['file']).name}"
    )


def evaluate(run: run_directory.Run, config: EvaluateConfig) -> Evaluation:
    """Evaluates the model of a finished run.

    Images take the same way as in training, so that loss and accuracy on the test split are those
    of the run's result.json.

    Raises:
      UserError: The model or the images cannot be loaded, or the images have other classes.
    """
    user_code.import_all(config.evaluation.code)
    data_config = run_data.with_batch_size(_data_config(run, config))
    _check_classes(run, data_config)
    purpose, split = _split(run, config, data_config)
    model = loading.load_model(run)
    data = run_data.load(data_config, split, scored=[purpose])
    if _has_own_images(run, config):
        run.warn_of_other_images(data.records.fingerprint)
    if purpose not in data.rows:
        raise UserError(f"--split={purpose}: {run.path} was trained without one")
    tested = testing.test(model, data, purpose, run_data.batch_size_of(data_config))
    labels, predicted = tested.labels, tested.predicted
    rows = metrics.classification_report(
        labels,
        predicted,
        labels=list(range(len(data.classes))),
        zero_division=0,
        output_dict=True,
    )
    confidence = tested.probabilities.max(axis=-1)
    bins = calibration_bins(confidence, tested.correct)
    surest = np.argsort(-confidence, kind="stable")
    right, mistakes = surest[tested.correct[surest]], surest[~tested.correct[surest]]
    evaluated = data.rows[purpose]

    def predictions(places: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "file": data.records.filenames[evaluated[place]],
                "class": data.classes[labels[place]],
                "predicted": data.classes[predicted[place]],
                "probability": float(confidence[place]),
            }
            for place in places
        ]

    def originals(places: np.ndarray) -> list[np.ndarray]:
        encoded = data.records.encoded(data.rows[purpose][places])
        return [np.asarray(decoding.upright_image(one, figures.LONGEST)) for one in encoded]

    values = {
        "run": str(run.path),
        "dataset": data.records.builder.info.full_name,
        "split": data.splits[purpose],
        "images": len(labels),
        "loss": tested.loss,
        "accuracy": tested.accuracy,
        "accuracy_interval": tested.accuracy_interval,
        **scores.largest_class(labels, data.classes),
        **_seen(run, config, data.records.digests[data.rows[purpose]]),
        **top_accuracy(labels, tested.probabilities),
        "roc_auc": roc_auc(labels, tested.probabilities),
        "expected_calibration_error": expected_calibration_error(bins),
        "by_class": {name: rows[str(label)] for label, name in enumerate(data.classes)},
        "macro_average": rows["macro avg"],
        "confusion_matrix": tested.confusion_matrix.tolist(),
        "calibration": bins,
        "mistakes": predictions(mistakes),
    }
    explained = None
    if config.evaluation.activation_maps:
        places = np.concatenate([right[:_MAPS_DRAWN], mistakes[:_MAPS_DRAWN]])
        shown = data.pictures.gather(data.rows[purpose][places]).numpy()
        maps = activation_maps.activation_maps(model, shown, predicted[places])
        explained = Explained(shown, maps, predictions(places))
    return Evaluation(values, originals(mistakes[:_MISTAKES_DRAWN]), explained)


def _data_config(run: run_directory.Run, config: EvaluateConfig) -> DataConfig:
    """Returns the data flags of the run, with those that are given in their place."""
    asked = {name: value for name, value in vars(config.data).items() if value is not None}
    return dataclasses.replace(run.config.data, **asked)


def _split(
    run: run_directory.Run, config: EvaluateConfig, data: DataConfig
) -> tuple[str, str | None]:
    """Returns which of the run's own splits is evaluated, or "test" and a TFDS split string."""
    split, archive = config.evaluation.split, config.data.archive
    if _has_own_images(run, config):
        return (split or "test", None) if split in (None, *splits.PURPOSES) else ("test", split)
    there = records.split_counts(
        archive=archive, data_dir=data.data_dir, reading=ReadingOptions.of(data)
    )
    return "test", split or ("test" if "test" in there else "all")


def _has_own_images(run: run_directory.Run, config: EvaluateConfig) -> bool:
    archive = config.data.archive
    return archive is None or _place(archive) == _place(run.config.data.archive or "")


def _place(archive: str) -> set[pathlib.Path]:
    path = pathlib.Path(archive).expanduser()
    with contextlib.suppress(ArchiveError):  # A pattern that matches nothing.
        return {part.resolve() for part in find_parts(path)}
    return {path.resolve()}


def _seen(run: run_directory.Run, config: EvaluateConfig, digests: np.ndarray) -> dict[str, Any]:
    """Returns how many of the images the run was trained and validated on; None if not known.

    Args:
      run: The run.
      config: The flags.
      digests: The digests of the evaluated images.
    """
    data = dataclasses.replace(run.config.data, data_dir=config.data.data_dir)
    unknown = dict.fromkeys(["trained_on", "validated_on", "test_images_chose_the_model"])
    if not data.archive and not records.is_prepared(data.dataset, data_dir=data.data_dir):
        return unknown  # It is not worth a download.
    try:
        found = run_data.open_splits(data)
    except UserError:  # The images are gone.
        return unknown
    if found.records.fingerprint != run.environment["fingerprint"]:
        return unknown
    trained, validated = (
        splits.shared(digests, found.records.digests[found.rows.get(purpose, np.arange(0))])
        for purpose in ("train", "validation")
    )
    return dict(zip(unknown, (trained, validated, validated > 0), strict=True))


def _check_classes(run: run_directory.Run, data: DataConfig) -> None:
    if not data.archive:
        return
    there = records.open_archive(
        data.archive, data_dir=data.data_dir, reading=ReadingOptions.of(data)
    ).classes
    expected = run.result["classes"]
    missing = [name for name in expected if name not in there]
    # The archive may have classes that the run left out.
    others = [] if data.classes else [name for name in there if name not in expected]
    if missing or others:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has {', '.join(others)}"] if others else []
        raise UserError(
            f"archive {data.archive}: other classes than the run's (it {' and '.join(parts)}); "
            f"expected the classes of {run.path}"
        )


def top_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Returns "top_5_accuracy": the share of images whose class is among the five most probable.

    Args:
      labels: int array of shape (N,).
      probabilities: Array of shape (N, C).

    Returns:
      0 to 1, or nothing for five classes or fewer, where it is always 1.
    """
    classes = range(probabilities.shape[1])
    if len(classes) <= _TOP:
        return {}
    accuracy = metrics.top_k_accuracy_score(labels, probabilities, k=_TOP, labels=classes)
    return {f"top_{_TOP}_accuracy": float(accuracy)}


def roc_auc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Returns the area under the ROC curve; for more than two classes, the mean of one-vs-rest.

    Args:
      labels: int array of shape (N,).
      probabilities: Array of shape (N, C).

    Returns:
      0 to 1, or None if a class has no image: then the area is not defined.
    """
    classes = range(probabilities.shape[1])
    if set(labels) != set(classes):
        return None
    if len(classes) == 2:
        return float(metrics.roc_auc_score(labels, probabilities[:, 1]))
    return float(metrics.roc_auc_score(labels, probabilities, multi_class="ovr", labels=classes))


def calibration_bins(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """Returns the accuracy of predictions in bins of their confidence.

    Args:
      confidence: The probability of the predicted class, of shape (N,).
      correct: bool array of shape (N,).

    Returns:
      For each tenth of 0 to 1 that has predictions: its bounds "from" and "to", the means of
      "confidence" and "accuracy", and the number of its "images".
    """
    accuracies, confidences = calibration.calibration_curve(
        correct, confidence, n_bins=_CALIBRATION_BINS, pos_label=True
    )
    # calibration_curve puts values on the edge of two bins into the lower one.
    edges = np.linspace(0, 1, _CALIBRATION_BINS + 1)
    counts = np.bincount(np.searchsorted(edges[1:-1], confidence))
    filled = np.flatnonzero(counts)
    columns = {
        "from": edges[filled],
        "to": edges[filled + 1],
        "confidence": confidences,
        "accuracy": accuracies,
        "images": counts[filled],
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def expected_calibration_error(bins: Sequence[dict[str, float]]) -> float:
    """Returns the mean distance of accuracy and confidence over all images (Guo et al., 2017)."""
    distances = [abs(row["accuracy"] - row["confidence"]) for row in bins]
    return float(np.average(distances, weights=[row["images"] for row in bins]))
