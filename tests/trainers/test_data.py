import numpy as np
import pytest
from small_runs import parse_flags

from trainers import data as run_data


@pytest.mark.parametrize("class_weight", [None, {0: 0.1, 1: 3.0}, {1: 3.0}])
@pytest.mark.parametrize("classes", [("c", "a"), ("b", "c")])
def test_labels_and_weights_are_those_of_the_classes_asked_for(
    make_archive, tmp_path, classes, class_weight
):
    names = [
        f"{split}/{name}/{n}.jpg" for split in ("train", "test") for name in "abc" for n in "12"
    ]
    flags = (f"--archive={make_archive(names)}", f"--data_dir={tmp_path}", "--image_size=8")
    splits = ("--validation_split=none", f"--classes={','.join(classes)}")
    data = run_data.load(parse_flags(*flags, *splits).data)
    rows = data.rows["train"]
    asked = [
        classes.index(name.split("/")[-2]) for name in map(data.records.filenames.__getitem__, rows)
    ]
    assert sorted(asked) == [0, 0, 1, 1]
    assert data.labels("train").tolist() == asked
    assert data.counts("train").tolist() == [2, 2]
    (batch,) = data.batches("train", 9, class_weight=class_weight).as_numpy_iterator()
    expected = [np.array(asked, np.float32)]
    if class_weight:
        expected.append(np.array([class_weight.get(label, 0) for label in asked], np.float32))
    assert [part.tobytes() for part in batch[1:]] == [part.tobytes() for part in expected]
