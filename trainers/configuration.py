"""The flags of the commands: one frozen dataclass per concern, each field a flag."""

import dataclasses
import math
import re
from collections.abc import Sequence

from pizza_steak.configuration import (
    MOST_PIXELS_A_SIDE,
    SourceConfig,
    TransformConfig,
    check_size,
    parse_fold,
)
from pizza_steak.flags import Numbers, flag, same_flag
from trainers import user_code


def _check_address(text: str | None) -> None:
    if text is not None and not re.fullmatch(r"grpc://[^/]+:\d+", text):
        raise ValueError(f"{text!r}: expected grpc://host:port")


def _check_dispatcher(text: str | None) -> None:
    if text is not None and not re.fullmatch(r"[^/]+:\d+", text):
        raise ValueError(f"{text!r}: expected host:port")


def asked_devices(text: str) -> tuple[str, int | tuple[int, ...] | None]:
    """Returns the kind of devices of a --devices, and which of them.

    The kind is "GPU", "CPU" or "" for whatever there is. Which of them is a number of devices, the
    indices of some, or None for all.

    Raises:
      ValueError: It is neither a number, nor indices, nor names such as gpu:3.
    """
    lower = text.lower()
    if lower in ("gpu", "cpu"):
        return lower.upper(), None
    if re.fullmatch("[0-9]{1,4}", lower):
        return "", int(lower)
    if found := re.fullmatch("(?:(gpu|cpu):)?[0-9]{1,4}(?:,(?:\\1:)?[0-9]{1,4})*", lower):
        return (found[1] or "").upper(), tuple(map(int, re.findall("[0-9]+", lower)))
    raise ValueError(
        f"{text!r}: expected a number of devices such as 2, indices such as 0,2, names such as "
        "gpu:3, or cpu"
    )


def executed_steps(text: str) -> int | None:
    """Returns the number of steps of a --steps_per_execution; None for auto.

    Raises:
      ValueError: It is neither "auto" nor a number of steps.
    """
    if text == "auto":
        return None
    if re.fullmatch("[1-9][0-9]{0,5}", text):
        return int(text)
    raise ValueError(f"{text!r}: expected 'auto', or a number of steps from 1 to 999,999")


def _check_whole(value: Numbers) -> None:
    if any(
        isinstance(number, float) for number in (value if isinstance(value, tuple) else [value])
    ):
        raise ValueError("expected whole numbers")


def _check_factor(value: float | None) -> None:
    if value == 0:
        raise ValueError("expected a factor other than 0, which makes all images black")


def _names_code(text: str) -> bool:
    return any(map(user_code.is_function, text.split(",")))  # A sweep has several values.


def _check_functions(texts: Sequence[str]) -> None:
    for text in texts:
        if not user_code.is_function(text):
            raise ValueError(f"{text!r}: expected FILE.py:FUNCTION or MODULE:FUNCTION")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images to use, and how to batch them."""

    dataset: str = flag(
        "pizza_steak/photos",
        "pizza_steak/photos (needs a download), pizza_steak/sample (rendered, needs no network), "
        "or prepared images by a name that python -m pizza_steak.prepared lists.",
    )
    archive: str | None = flag(
        None,
        "Zip file or folder of class folders; or 'part-*.zip'. All that match a pattern are one "
        "data set. It replaces --dataset.",
        per_process=True,
        common=True,
        aliases="data data_path folder input path zip",
    )
    data_dir: str | None = flag(
        None,
        "Folder for records and decoded images; by default ~/tensorflow_datasets.",
        identity=False,
        per_process=True,
        typed=True,
        aliases="cache_dir",
    )
    train_split: str | None = flag(
        None,
        "Images to train on: a TFDS split string such as 'train[:80%]', or a fraction of train; "
        "by default the part of train that is neither validation nor test.",
    )
    validation_split: str | None = flag(
        None,
        "Images to validate on after each epoch: a TFDS split string, a fraction of train, or "
        "none; by default the split validation, or --validation_fraction of train if there is no "
        "such split. With none, the model of the last epoch is kept instead of the best one.",
        aliases="val val_split validation",
    )
    test_split: str | None = flag(
        None,
        "Images to test the best model on after training: a TFDS split string, or a fraction of "
        "train; by default the split test, or --test_fraction of train if there is no such split.",
    )
    validation_fraction: float = flag(
        0.15,
        "Fraction of each class of train to validate on if there is neither a split validation "
        "nor --validation_split.",
        aliases="val_fraction",
    )
    test_fraction: float = flag(
        0.15,
        "Fraction of each class of train to test on if there is neither a split test nor "
        "--test_split.",
    )
    validation_fold: str | None = flag(
        None,
        "Validate on this part of the training images, and train on the rest and on the validation "
        "images: 1/4 to 4/4, with the run without this flag, are a cross-validation in five parts.",
        check=parse_fold,
        aliases="fold k_fold",
    )
    classes: tuple[str, ...] | None = flag(
        None,
        "Classes to use, in the order of their labels; by default all, sorted by name.",
        aliases="class_names labels",
    )
    follow_links: bool = same_flag(SourceConfig, "follow_links")
    zip_encoding: str | None = same_flag(SourceConfig, "zip_encoding")
    max_unpacked_gb: float | None = same_flag(SourceConfig, "max_unpacked_gb")
    image_size: Numbers | None = flag(
        None,
        "Height and width of the images, in pixels; by default what --model wants, or 224. They "
        "are resized; one number is both, two are height and width.",
        minimum=1,
        maximum=MOST_PIXELS_A_SIDE,
        check=check_size,
        common=True,
        aliases="size img_size imgsz input_size resolution target_size",
    )
    aspect_ratio: str = flag(
        "stretch",
        "How to handle images of another aspect ratio: stretch them, crop them to the center, or "
        "pad them with black.",
        ("stretch", "crop", "pad"),
    )
    color_mode: str = flag("rgb", "Color channels of the images.", ("rgb", "grayscale", "rgba"))
    interpolation: str = flag(
        "bilinear",
        "Interpolation method for resizing images.",
        ("bilinear", "nearest", "bicubic", "lanczos3", "lanczos5", "area", "gaussian",
         "mitchellcubic"),
    )  # fmt: skip
    antialias: bool = flag(
        True,
        "Antialias when downscaling, as Pillow does; bilinear, bicubic and lanczos3 then give the "
        "same pixels as Pillow.",
    )
    exif: str = flag(
        "apply",
        "Whether to apply or to ignore the EXIF orientation of images.",
        ("apply", "ignore"),
    )
    max_pixels: int = same_flag(SourceConfig, "max_pixels")
    batch_size: int | None = flag(
        None,
        "Batch size, summed over all devices; by default 32.",
        minimum=1,
        common=True,
        aliases="batch bs",
    )
    batch_size_per_replica: int | None = flag(
        None, "Batch size of each device, in place of --batch_size.", minimum=1
    )
    shuffle_block: int | None = flag(
        None,
        "Train on blocks of so many neighboring images, in random order and 16 mixed at a time, "
        "for a disk that is slow at random places; by default all images are mixed.",
        minimum=1,
        maximum=10**9,
    )
    decoded_cache: str | None = flag(
        None,
        "Where to keep decoded images: on disk for all later runs, in the memory of this run, or "
        "nowhere, to start at once; by default on disk, and nowhere with --data_service.",
        ("disk", "memory", "none"),
        per_process=True,
        aliases="cache",
    )
    data_on_device: bool = flag(
        False,
        "Copy all decoded images to the device's memory once, and gather and augment batches "
        "there. The batches are the same.",
    )
    data_service: str | None = flag(
        None,
        "Address grpc://host:port of a tf.data service that decodes and augments the images; "
        "python -m trainers.data_service prints it.",
        check=_check_address,
        identity=False,
        per_process=True,
        typed=True,
    )
    on_bad_image: str = flag(
        "fail",
        "How to handle unreadable images: end the run, or leave them out with a warning. With "
        "--decoded_cache=none they are found when their batch comes; to leave out those of "
        "validation and test, these are decoded once before.",
        ("fail", "skip"),
    )


@dataclasses.dataclass(frozen=True)
class AugmentationConfig(TransformConfig):
    """How to augment training images, differently in every epoch."""

    contrast_factor: float | None = flag(
        None, "Factor of Keras's RandomContrast, in the model.", minimum=0.0, maximum=1.0
    )
    saturation_factor: float | None = flag(
        None, "Factor of Keras's RandomSaturation, in the model.", minimum=0.0, maximum=1.0
    )
    hue_factor: float | None = flag(
        None, "Factor of Keras's RandomHue, in the model.", minimum=0.0, maximum=1.0
    )
    rand_augment: int | None = flag(
        None,
        "Operations per image of Keras's RandAugment, in the model; slow.",
        minimum=1,
        maximum=100,
    )
    augment_on: str = flag(
        "auto",
        "Where to augment, with the same random numbers: on the host, in the input pipeline, or on "
        "the device, in the training step; auto: on a GPU, else on the host, and with "
        "--data_service in its workers. With --data_on_device it is the device. Keras's own layers "
        "are always in the model.",
        ("auto", "host", "device"),
        identity=False,
    )
    augmentation_cycle: int | None = flag(
        None,
        "Number of augmented versions of each image, which the epochs use in turn; by default "
        "every epoch has its own. The features of a frozen backbone are then computed once for "
        "each version.",
        minimum=1,
    )


# The augmentation of the chapter's model_6 and model_7.
CHAPTERS_AUGMENTATION = AugmentationConfig(
    rotation_range=20.0,
    shear_range=0.2,
    zoom_range=0.2,
    width_shift_range=0.2,
    height_shift_range=0.2,
    horizontal_flip=True,
)


@dataclasses.dataclass(frozen=True)
class NormalizationConfig:
    """How to normalize pixels, in the first layers of the model."""

    rescale: float | None = flag(
        None,
        "Factor of the pixels, which are 0 to 255; by default 1/255, or 1 if --model names a "
        "network that scales them itself.",
        check=_check_factor,
    )
    samplewise_center: bool = flag(False, "Subtract the mean of each image.")
    samplewise_std_normalization: bool = flag(
        False, "Subtract the mean of each image and divide by its standard deviation."
    )
    featurewise_center: bool = flag(False, "Subtract the mean of the training images, per channel.")
    featurewise_std_normalization: bool = flag(
        False,
        "Subtract the mean of the training images and divide by their standard deviation, per "
        "channel.",
    )
    zca_whitening: bool = flag(
        False,
        "Apply ZCA whitening with the covariance of the training images; for small images only.",
    )
    zca_epsilon: float = flag(
        1e-6, "Value added to the singular values in ZCA whitening.", minimum=0.0
    )


def trainable_layers(text: str | None) -> float:
    """Returns the number of layers before the head that --trainable trains; infinity for all.

    Raises:
      ValueError: It is neither "head", "all" nor a number of layers.
    """
    words = {"head": 0.0, "all": math.inf, None: math.inf}
    if text in words:
        return words[text]
    if text is None or not re.fullmatch("[1-9][0-9]*", text):
        raise ValueError(f"{text!r}: expected head, all, or a number of layers")
    return int(text)


_MOST_LAYERS = 100
_MOST_FILTERS = 10_000


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which network to train."""

    model: str = flag(
        "tinyvgg",
        "Network, such as tinyvgg, or efficientnetv2b0 of keras.applications. Built here are "
        "tinyvgg, playground, dense, conv3 and conv3_pool. It may also be the directory of a "
        "finished run; a .keras file; or FILE.py:FUNCTION, or MODULE:FUNCTION, a function of yours "
        "that takes (image_shape, num_classes) and returns a Keras model.",
        typed=_names_code,
        common=True,
        aliases="arch architecture backbone network",
    )
    weights: str | None = flag(
        None,
        "Weights of a network of keras.applications: imagenet (downloaded once), none for random "
        "ones, or a file; by default imagenet.",
        aliases="pretrained",
    )
    features: str | None = flag(
        None,
        "Layer of a run's network or of a .keras file whose output the new last layers get; by "
        "default the last one before the dense layers.",
    )
    trainable: str | None = flag(
        None,
        "What to train: head (the new last layers), all, or a number N: the head and the last N "
        "layers before it; by default head for a trained network with a new head, else all.",
        check=trainable_layers,
        common=True,
        aliases="fine_tune finetune freeze include_top top unfreeze",
    )
    filters: int | None = flag(
        None,
        "Filters of each convolution in the first block; by default the network's own number.",
        minimum=1,
        maximum=_MOST_FILTERS,
    )
    filter_growth: float = flag(
        1.0,
        "Factor by which the number of filters grows from block to block.",
        minimum=0.0,
        maximum=10.0,
    )
    blocks: int | None = flag(
        None,
        "Blocks of convolutions, each with a pooling layer at its end; by default the "
        "network's own number.",
        minimum=0,
        maximum=_MOST_LAYERS,
    )
    convolutions: int | None = flag(
        None,
        "Convolutions per block; by default the network's own number.",
        minimum=1,
        maximum=_MOST_LAYERS,
    )
    kernel_size: int | None = flag(
        None, "Height and width of convolution kernels; by default the network's own.", minimum=1
    )
    padding: str = flag(
        "valid",
        "Padding of convolutions: valid adds none, so that images shrink at the edges; same adds "
        "zeros.",
        ("valid", "same"),
    )
    pool_size: int | None = flag(
        None,
        "Height and width of max pooling windows, 1 for no pooling; by default the network's own.",
        minimum=1,
    )
    global_pooling: bool = flag(
        False, "Average each filter before the dense layers, instead of flattening the filters."
    )
    dense_layers: int | None = flag(
        None,
        "Dense layers before the output layer; by default the network's own number.",
        minimum=0,
        maximum=_MOST_LAYERS,
    )
    dense_units: int | None = flag(
        None,
        "Units of each of these dense layers; by default the network's own number.",
        minimum=1,
        maximum=1_000_000,
    )
    batch_normalization: bool = flag(False, "Apply batch normalization before each activation.")
    dropout: float = flag(
        0.0,
        "Fraction of values to drop after each dense layer, or before the output layer if it is "
        "the only one.",
        minimum=0.0,
        maximum=1.0,
        aliases="dropout_rate",
    )


# Keras ignores a norm of 0.
_SMALLEST_NORM = 1e-6
# Keras makes Beta(alpha, alpha) from gamma variates, which underflow float32 for a smaller alpha.
_SMALLEST_ALPHA = 0.1


@dataclasses.dataclass(frozen=True)
class OptimisationConfig:
    """How to train the model."""

    epochs: int = flag(
        5,
        "Epochs to train for.",
        minimum=1,
        common=True,
        aliases="epoch max_epochs num_epochs n_epochs",
    )
    head_epochs: int = flag(
        0,
        "Epochs, of --epochs, that train the head alone before --trainable, by default all, is "
        "trained. Early stopping and --reduce_lr_patience begin after them.",
        minimum=0,
    )
    optimizer: str = flag(
        "adam",
        "Name of a Keras optimizer.",
        aliases="opt optim optimiser",
    )
    learning_rate: float = flag(
        0.001,
        "Learning rate.",
        minimum=0.0,
        common=True,
        aliases="lr lr0",
    )
    fine_tuning_rate: float | None = flag(
        None,
        "Learning rate after --head_epochs; by default a tenth of --learning_rate.",
        minimum=0.0,
    )
    scale_learning_rate: str = flag(
        "none",
        "How to scale the learning rate: not at all, or by the number of replicas.",
        ("none", "linear"),
    )
    learning_rate_schedule: str = flag(
        "constant",
        "Keep the learning rate constant, or decay it to 0 over all epochs along a half cosine.",
        ("constant", "cosine"),
        aliases="lr_scheduler schedule scheduler",
    )
    warmup_epochs: float = flag(
        0.0,
        "Epochs in which the learning rate grows linearly from 0 to --learning_rate, before the "
        "schedule; may be a fraction such as 0.5.",
        minimum=0.0,
    )
    weight_decay: float | None = flag(
        None,
        "Weight decay, decoupled from the gradient as in AdamW.",
        minimum=0.0,
        aliases="l2 wd",
    )
    clip_norm: float | None = flag(
        None,
        "Largest norm of the gradient of all weights together; a larger gradient is scaled down "
        "to it.",
        minimum=_SMALLEST_NORM,
        aliases="clipnorm grad_clip gradient_clip max_grad_norm",
    )
    ema: float | None = flag(
        None,
        "Validate, keep and test an exponential moving average of the weights over the training "
        "steps, with this momentum, such as 0.99.",
        minimum=0.0,
        maximum=1.0,
    )
    mixup: float | None = flag(
        None,
        "Blend each training image and its label with those of another image of its batch, by a "
        "share from the distribution Beta(mixup, mixup): Keras's MixUp. With --cutmix, each batch "
        "gets one of the two at random.",
        minimum=_SMALLEST_ALPHA,
        maximum=1.0,
    )
    cutmix: float | None = flag(
        None,
        "Replace a rectangle of each training image with that of another image of its batch, and "
        "blend the labels by its share, from the distribution Beta(cutmix, cutmix): Keras's "
        "CutMix.",
        minimum=_SMALLEST_ALPHA,
        maximum=1.0,
    )
    label_smoothing: float = flag(
        0.0,
        "Fraction of each label to spread evenly over all classes in training.",
        minimum=0.0,
        maximum=1.0,
    )
    class_weight: str | None = flag(
        None,
        "'balanced' gives rare classes more weight: the inverse of their share of the training "
        "images.",
        ("balanced",),
        aliases="balance balanced",
    )
    early_stopping_patience: int | None = flag(
        None,
        "Stop after this many epochs without a lower validation loss.",
        minimum=0,
        aliases="early_stop early_stopping patience",
    )
    reduce_lr_patience: int | None = flag(
        None,
        "Divide the learning rate by ten after this many epochs without a lower validation loss.",
        minimum=0,
    )
    seed: int = flag(
        42,
        "Seed of the weights, the order of images and augmentation.",
        minimum=0,
        common=True,
        aliases="random_seed random_state",
    )


@dataclasses.dataclass(frozen=True)
class DevicesConfig:
    """Which devices to compute on, and how."""

    strategy: str = flag(
        "auto",
        "How to use devices. none: one device; mirrored: a replica of the model on each device, "
        "which share each batch (MirroredStrategy); multi_worker: the same over several "
        "processes, which TF_CONFIG or Slurm's variables name (MultiWorkerMirroredStrategy, "
        "trainers.fit only); auto: all that there are.",
        ("auto", "none", "mirrored", "multi_worker"),
    )
    devices: str | None = flag(
        None,
        "Number of devices, of which the first are used; indices such as 0,2; names such as gpu:3; "
        "or cpu. By default all GPUs, or without a GPU all of --cpu_devices.",
        check=lambda text: text is None or asked_devices(text),
        per_process=True,
        aliases="device gpu gpus num_gpus",
    )
    require_gpu: bool = flag(
        False,
        "Fail rather than compute on the CPU.",
        identity=False,
        per_process=True,
        aliases="no_cpu",
    )
    gpu_memory_limit: float | None = flag(
        None,
        "GiB of the memory of each GPU to take, at once; by default as much as is needed, when it "
        "is needed.",
        minimum=0.1,
        maximum=4096.0,
        identity=False,
        per_process=True,
        aliases="gpu_memory memory_limit",
    )
    cpu_devices: int | None = flag(
        None,
        "Use the CPU as this many devices, which share its cores, to try replicas without GPUs.",
        minimum=1,
        maximum=64,
    )
    threads: int | None = flag(
        None,
        "Number of processor cores to use, Linux only; by default those that this process may use.",
        minimum=1,
        identity=False,
        per_process=True,
        aliases="cores cpus num_threads num_workers",
    )
    precision: str = flag(
        "auto",
        "Keras dtype policy: float32, mixed_float16, mixed_bfloat16, float64 (to tell rounding "
        "from errors); auto: mixed_bfloat16 on GPUs of compute capability 8.0 and above, "
        "mixed_float16 on those of 7.0 and above, else float32; or fastest: float32 or half "
        "precision, whichever takes less time in some steps before the training.",
        ("auto", "fastest", "float32", "mixed_float16", "mixed_bfloat16", "float64"),
        aliases="amp dtype fp16 half mixed_precision",
    )
    jit_compile: str = flag(
        "auto",
        "Compile the training step with XLA; auto: as Keras chooses on a GPU, and never on a CPU, "
        "where it is slower.",
        ("auto", "on", "off"),
        aliases="compile xla",
    )
    steps_per_execution: str = flag(
        "auto",
        "Training steps that TensorFlow runs in one call. Callbacks come, and checkpoints and "
        "SIGTERM act, after each call. auto: as many as take 0.1 s, but never beyond a step that "
        "is to be saved; 1 with several processes, and with a --callback that acts on steps.",
        check=executed_steps,
        identity=False,
    )
    onednn: str = flag(
        "on",
        "Use oneDNN's CPU kernels; TensorFlow turns them off on some processors where they are "
        "three times as fast. The variable TF_ENABLE_ONEDNN_OPTS, if set, overrides this flag.",
        ("on", "off"),
    )
    deterministic: bool = flag(
        False,
        "Use only deterministic operations. On a CPU all are; on a GPU some are slower, and Keras "
        "turns XLA off.",
    )


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """How to train with other processes, which TF_CONFIG or Slurm names."""

    cluster_timeout: float = flag(
        300.0,
        "Seconds to wait for the other processes at the start, and at most for one that has died "
        "or is silent; then the run ends and names that process.",
        minimum=1.0,
        maximum=1e6,  # TensorFlow counts the milliseconds in 31 bits.
        identity=False,
        per_process=True,
    )


def checkpoint_interval(text: str) -> tuple[float, float]:
    """Returns the steps and the seconds of a --checkpoint_every; infinity if it has none.

    Raises:
      ValueError: It is neither "epoch" nor a number of steps or of seconds.
    """
    if text == "epoch":
        return math.inf, math.inf
    if found := re.fullmatch(r"([1-9][0-9]*)(s?)", text):
        number = int(found[1])
        return (math.inf, number) if found[2] else (number, math.inf)
    raise ValueError(f"{text!r}: expected 'epoch', steps such as 500, or seconds such as 60s")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What the run writes, and where."""

    run_dir: str | None = flag(
        None,
        "Folder of the run; by default runs/<model>-<time>.",
        identity=False,
        per_process=True,
        typed=True,
        common=True,
        aliases="log_dir logdir name out out_dir output output_dir project save_dir",
    )
    overwrite: bool = flag(
        False,
        "Replace the run in --run_dir.",
        identity=False,
        per_process=True,
        typed=True,
        common=True,
        aliases="exist_ok force",
    )
    resume: bool | str = flag(
        False,
        "Resume the run in --run_dir from its last checkpoint; auto: resume if there is a run, "
        "else start one.",
        ("auto",),
        identity=False,
        per_process=True,
        typed=True,
        common=True,
        aliases="continue",
    )
    checkpoint_every: str = flag(
        "epoch",
        "When to save the checkpoint that --resume continues from: after every epoch, or also "
        "within epochs, after this many steps (500) or seconds (60s).",
        check=checkpoint_interval,
        identity=False,
    )
    tensorboard: bool = flag(True, "Write logs for TensorBoard.")
    # Not of the identity: callbacks read what a run computes, so it may go on with other ones.
    callback: tuple[str, ...] = flag(
        (),
        "FILE.py:FUNCTION, or MODULE:FUNCTION, a function of yours without arguments that returns "
        "a Keras callback or a list of them. In a cluster the chief calls it.",
        check=_check_functions,
        identity=False,
        per_process=True,
        typed=True,
        repeated=True,
    )
    code: tuple[str, ...] = flag(
        (),
        "FILE.py or MODULE of yours to import first: it registers the layers of the run that "
        "--model names.",
        identity=False,
        per_process=True,
        typed=True,
        repeated=True,
    )


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """All flags of `trainers.fit`."""

    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    normalization: NormalizationConfig = NormalizationConfig()
    model: ModelConfig = ModelConfig()
    optimisation: OptimisationConfig = OptimisationConfig()
    devices: DevicesConfig = DevicesConfig()
    cluster: ClusterConfig = ClusterConfig()
    run: RunConfig = RunConfig()


@dataclasses.dataclass(frozen=True)
class ComparisonConfig:
    """Which of the chapter's models to train, and where to."""

    only: tuple[str, ...] | None = flag(
        None,
        "Models to train, of model_1 to model_7; by default all.",
        common=True,
        aliases="model models",
    )
    run_dir: str = flag(
        "runs/chapter",
        "Folder of the run directories and the comparison; models that are trained there already "
        "are not trained again.",
        common=True,
        aliases="out_dir output",
    )


@dataclasses.dataclass(frozen=True)
class ChapterDataConfig(DataConfig):
    """Which images to use, and how to batch them; the chapter validates on the test images."""

    train_split: str | None = same_flag(DataConfig, "train_split", default="train")
    validation_split: str | None = same_flag(DataConfig, "validation_split", default="test")


@dataclasses.dataclass(frozen=True)
class ChapterConfig:
    """All flags of `trainers.chapter`."""

    data: ChapterDataConfig = ChapterDataConfig()
    optimisation: OptimisationConfig = OptimisationConfig()
    devices: DevicesConfig = DevicesConfig()
    chapter: ComparisonConfig = ComparisonConfig()


@dataclasses.dataclass(frozen=True)
class MeasuringConfig:
    """What to measure, and how often."""

    repeats: int = flag(
        3, "How often to time each row; the rows take turns.", minimum=1, common=True
    )
    passes: int = flag(
        5, "Passes over the training images in the rows that start from decoded images.", minimum=1
    )
    images: int = flag(
        512,
        "Most training images per turn in the slow rows, which train or are peers; at least two "
        "batches.",
        minimum=1,
    )
    peers: bool = flag(True, "Also measure Keras's own ways of loading images.")
    only: tuple[str, ...] | None = flag(
        None,
        "Measure only rows whose name contains one of these texts, such as warm,decode.",
        common=True,
    )
    json: str | None = flag(None, "File for the figures, as JSON.", typed=True, common=True)
    compare: str | None = flag(
        None, "An earlier --json to compare with: the ratio of each row's images/s.", common=True
    )
    plot: str | None = flag(
        None, "File for a chart of the figures: .png, .pdf or .svg.", typed=True, common=True
    )
    profile: str | None = flag(
        None,
        "Folder for a TensorBoard trace of one more turn of end-to-end training.",
        typed=True,
    )
    growth: bool = flag(
        False,
        "Measure time and memory instead, of preparing, decoding, opening, the first batch and an "
        "epoch, once at each of --sizes.",
        common=True,
    )
    sizes: Numbers = flag(
        (1, 10, 100),
        "How many times the images of --archive to measure with --growth: copies with other names.",
        minimum=1,
        check=_check_whole,
    )


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """All flags of `trainers.benchmark`."""

    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    normalization: NormalizationConfig = NormalizationConfig()
    model: ModelConfig = ModelConfig()
    optimisation: OptimisationConfig = OptimisationConfig()
    devices: DevicesConfig = DevicesConfig()
    measuring: MeasuringConfig = MeasuringConfig()


@dataclasses.dataclass(frozen=True)
class PageConfig:
    """Which runs to report on, and where to."""

    runs: str = flag("runs/*", "Run directories, as a pattern with * and ?.")
    output: str = flag("report.html", "Page to write; an existing file is replaced.")


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """All flags of `trainers.report`."""

    page: PageConfig = PageConfig()


@dataclasses.dataclass(frozen=True)
class ServersConfig:
    """Which servers to start."""

    port: int = flag(
        0, "Port of the dispatcher to start; 0 for any free port.", minimum=0, maximum=65535
    )
    dispatcher: str | None = flag(
        None,
        "Address host:port of a running dispatcher to add workers to, instead of starting one.",
        check=_check_dispatcher,
    )
    workers: int = flag(
        1,
        "Number of workers to start, on free ports. One worker uses all cores.",
        minimum=0,
        maximum=1000,
    )
    host: str | None = flag(
        None,
        "Name or address of this machine, for the trainings and the other servers; by default, "
        "with --dispatcher, the address that connects to it. TensorFlow listens on all addresses, "
        "whatever this is.",
    )


@dataclasses.dataclass(frozen=True)
class DataServiceConfig:
    """All flags of `trainers.data_service`."""

    servers: ServersConfig = ServersConfig()


# Of the commands that use finished runs.
_DATA_DIR = flag(None, "Folder for records and decoded images; by default ~/tensorflow_datasets.")
_CODE = flag(
    (),
    "FILE.py or MODULE of yours to import first: it registers layers that the run's network has.",
    repeated=True,
)


@dataclasses.dataclass(frozen=True)
class AveragingConfig:
    """Which runs to average, and where to write the model."""

    runs: tuple[str, ...] | None = flag(
        None,
        "Folders of finished runs on the same images, separated by commas.",
        aliases="members models",
    )
    average_flips: bool = flag(
        False,
        "Also average the probabilities for an image and its mirror image, left to right.",
        aliases="flip flips tta",
    )
    run_dir: str | None = flag(
        None,
        "Folder for the average, which is used like that of any run.",
        aliases="out_dir output",
    )
    overwrite: bool = flag(False, "Replace the run in --run_dir.", aliases="force")
    data_dir: str | None = _DATA_DIR
    code: tuple[str, ...] = _CODE


@dataclasses.dataclass(frozen=True)
class AverageConfig:
    """All flags of `trainers.average`."""

    averaging: AveragingConfig = AveragingConfig()


@dataclasses.dataclass(frozen=True)
class ArtifactConfig:
    """Which run's model to export, in which format, and where to."""

    run_dir: str | None = flag(
        None,
        "Folder of a finished run; latest is the newest one in ./runs.",
        aliases="checkpoint model run weights",
    )
    format: str = flag(
        "saved_model",
        "Format of the export: a SavedModel for TensorFlow and TensorFlow Serving, a .tflite file "
        "for LiteRT, or an .onnx file for ONNX Runtime.",
        ("saved_model", "litert", "onnx"),
    )
    output: str | None = flag(
        None,
        "File or folder to write; by default saved_model, model.tflite or model.onnx in --run_dir.",
    )
    overwrite: bool = flag(False, "Replace an existing export.")
    data_dir: str | None = _DATA_DIR
    code: tuple[str, ...] = _CODE


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """All flags of `trainers.export`."""

    artifact: ArtifactConfig = ArtifactConfig()


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Which run's model to evaluate, and where to write the results."""

    run_dir: str | None = flag(
        None,
        "Folder of a finished run; latest is the newest one in ./runs.",
        aliases="checkpoint model run weights",
    )
    split: str | None = flag(
        None,
        "Images to evaluate on: train, validation or test, which are the run's own splits, or any "
        "TFDS split string; by default test, or all images of another --archive that has no test.",
    )
    json: str | None = flag(
        None, "File for the results, as JSON; by default evaluation.json in --out_dir."
    )
    out_dir: str | None = flag(
        None, "Folder for the figures; by default evaluation/ in the run's folder."
    )
    activation_maps: str | None = flag(
        None,
        "File for a figure of the most confident right and wrong predictions, each image beside a "
        "heat map of what the prediction depends on (Grad-CAM): .png, .pdf or .svg.",
    )
    code: tuple[str, ...] = _CODE


@dataclasses.dataclass(frozen=True)
class EvaluationDataConfig:
    """Which images to evaluate on; a flag that is not given has the run's value.

    The folder for records and decoded images is not the run's.
    """

    archive: str | None = flag(
        None,
        "Zip file or folder of class folders, or a pattern of several, with the run's classes.",
    )
    data_dir: str | None = _DATA_DIR
    follow_links: bool | None = same_flag(SourceConfig, "follow_links", default=None)
    zip_encoding: str | None = same_flag(SourceConfig, "zip_encoding")
    max_unpacked_gb: float | None = same_flag(SourceConfig, "max_unpacked_gb")
    decoded_cache: str | None = flag(
        None, "Where to keep decoded images.", ("disk", "memory", "none")
    )
    on_bad_image: str | None = flag(None, "How to handle unreadable images.", ("fail", "skip"))


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """All flags of `trainers.evaluate`."""

    evaluation: EvaluationConfig = EvaluationConfig()
    data: EvaluationDataConfig = EvaluationDataConfig()


@dataclasses.dataclass(frozen=True)
class PredictionConfig:
    """Which run's model to predict with, and where to write the results."""

    run_dir: str | None = flag(
        None,
        "Folder of a finished run; latest is the newest one in ./runs.",
        aliases="checkpoint model run weights",
    )
    json: str | None = flag(
        None, "File for the probabilities of all classes, as JSON; - for standard output."
    )
    csv: str | None = flag(
        None, "File for path, class, probability and error, as CSV; - for standard output."
    )
    top: int = flag(1, "Number of most probable classes to show for each image.", minimum=1)
    annotate: str | None = flag(
        None, "New folder for the images with their classes and probabilities below them."
    )
    batch_size: int = flag(32, "Images per batch.", minimum=1)
    follow_links: bool = flag(False, "Follow links to folders, and to files outside a folder.")
    zip_encoding: str | None = same_flag(SourceConfig, "zip_encoding")
    max_unpacked_gb: float | None = same_flag(SourceConfig, "max_unpacked_gb")
    code: tuple[str, ...] = _CODE


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """All flags of `trainers.predict`."""

    prediction: PredictionConfig = PredictionConfig()
