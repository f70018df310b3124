"""The test of a model: its predictions for a split, and what they are worth."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainers import data as run_data
from trainers.finished import loading
from trainers.models import networks
from trainers.runs import scores


@dataclasses.dataclass(frozen=True)
class Tested:
    """What a model predicts for the N images of a split.

    Attributes:
      labels: Class indices of the images, int64 of shape (N,).
      probabilities: float32 of shape (N, C).
      loss: The mean cross-entropy, without class weights or label smoothing.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    loss: float

    @property
    def predicted(self) -> np.ndarray:
        """The predicted class indices, of shape (N,)."""
        return self.probabilities.argmax(axis=-1)

    @property
    def correct(self) -> np.ndarray:
        """Whether each prediction is right: bool of shape (N,)."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        """The share of correct predictions."""
        return float(np.mean(self.correct))

    @property
    def accuracy_interval(self) -> list[float]:
        """The 95 % interval of the accuracy: [low, high]."""
        return scores.interval(int(self.correct.sum()), len(self.labels))

    @property
    def confusion_matrix(self) -> np.ndarray:
        """Numbers of images by true class (rows) and predicted class: int of shape (C, C)."""
        count = self.probabilities.shape[1]
        return tf.math.confusion_matrix(self.labels, self.predicted, count).numpy()


def test(model: keras.Model, data: run_data.Data, purpose: str, batch_size: int) -> Tested:
    """Predicts the images of a split, and compares with their labels."""
    outputs = model.predict(data.batches(purpose, batch_size), verbose=0)
    labels = data.labels(purpose)
    probabilities = loading.class_probabilities(outputs)
    return Tested(labels, probabilities, _mean_loss(labels, outputs))


def result(tested: Tested, data: run_data.Data) -> dict[str, Any]:
    """Returns what result.json says of the test of a run."""
    return {
        "test_images": len(tested.labels),
        "test_accuracy": tested.accuracy,
        "test_accuracy_interval": tested.accuracy_interval,
        "test_loss": tested.loss,
        "test_images_chose_the_model": data.shared("test", "validation") > 0,
        "test_by_class": scores.by_class(tested.confusion_matrix, data.classes),
        **scores.largest_class(tested.labels, data.classes),
    }


def _mean_loss(labels: np.ndarray, outputs: np.ndarray) -> float:
    loss = networks.loss_for(outputs.shape[1])
    return float(loss(labels.astype(np.float32)[:, np.newaxis], outputs))
