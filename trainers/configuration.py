"""What a run can be told: one frozen dataclass per concern, each field a flag."""

import dataclasses
import math
import re

from trainers.flags import Numbers, flag, same_flag


def _check_address(text: str | None) -> None:
    if text is not None and not re.fullmatch(r"grpc://[^/]+:\d+", text):
        raise ValueError(f"{text!r}: expected grpc://host:port")


def _check_dispatcher(text: str | None) -> None:
    if text is not None and not re.fullmatch(r"[^/]+:\d+", text):
        raise ValueError(f"{text!r}: expected host:port")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which pictures, and how they become batches."""

    dataset: str = flag(
        "pizza_steak/photos",
        "pizza_steak/photos (downloaded) or pizza_steak/sample (rendered, needs no network).",
    )
    archive: str | None = flag(
        None,
        "Zip file or folder of class folders to use in place of --dataset.",
        per_process=True,
    )
    data_dir: str | None = flag(
        None,
        "Where records and decoded pictures are kept; by default ~/tensorflow_datasets.",
        per_process=True,
    )
    train_split: str | None = flag(
        None,
        "Images to train on: a TFDS split string such as 'train[:80%]', or a fraction of train; by "
        "default all of train that validation and test do not take.",
    )
    validation_split: str | None = flag(
        None,
        "Images to validate on after every epoch: a TFDS split string, a fraction of train, or "
        "none, and then the last epoch's model is kept in place of the best; by default the split "
        "validation, or without one --validation_fraction of train.",
    )
    test_split: str | None = flag(
        None,
        "Images to test the best model on at the end: a TFDS split string, or a fraction of train; "
        "by default the split test, or without one --test_fraction of train.",
    )
    validation_fraction: float = flag(
        0.15,
        "Fraction of each class of train that is cut out to validate on if there is no split "
        "validation, and no --validation_split is given.",
    )
    test_fraction: float = flag(
        0.15,
        "Fraction of each class of train that is cut out to test on if there is no split test, and "
        "no --test_split is given.",
    )
    classes: tuple[str, ...] | None = flag(
        None, "Some of the classes, in the order of their labels; by default all, sorted by name."
    )
    follow_links: bool = flag(False, "Follow links to folders in an --archive that is a folder.")
    image_size: Numbers = flag(
        224,
        "Height and width that pictures are resized to, in pixels: one number for both, or two.",
        minimum=1,
    )
    aspect_ratio: str = flag(
        "stretch",
        "What becomes of pictures of another aspect ratio: stretched, cropped to their middle, or "
        "padded with black.",
        ("stretch", "crop", "pad"),
    )
    color_mode: str = flag("rgb", "Channels of the pictures.", ("rgb", "grayscale", "rgba"))
    interpolation: str = flag(
        "bilinear",
        "How pictures are resized.",
        ("bilinear", "nearest", "bicubic", "lanczos3", "lanczos5", "area", "gaussian",
         "mitchellcubic"),
    )  # fmt: skip
    antialias: bool = flag(
        True,
        "Let every pixel count when images are shrunk, as Pillow does; bilinear, bicubic and "
        "lanczos3 then give Pillow's pixels.",
    )
    exif: str = flag(
        "apply", "Turn images upright by their EXIF orientation, or ignore it.", ("apply", "ignore")
    )
    class_mode: str | None = flag(
        None,
        "Form of the labels; by default binary for two classes, else sparse.",
        ("binary", "categorical", "sparse", "none"),
    )
    batch_size: int | None = flag(
        None, "Pictures a step, of all devices together; by default 32.", minimum=1
    )
    batch_size_per_replica: int | None = flag(
        None, "In place of --batch_size: pictures a step of each device.", minimum=1
    )
    decoded_cache: str | None = flag(
        None,
        "Where decoded pictures are kept: on the disk for every later run, in this run's memory, "
        "or nowhere; by default on the disk, and nowhere with --data_service.",
        ("disk", "memory", "none"),
        per_process=True,
    )
    data_on_device: bool = flag(
        False,
        "Copy the decoded pictures to the device's memory once, and gather and augment batches "
        "there: the same batches, but none of them has to be moved.",
    )
    data_service: str | None = flag(
        None,
        "Address grpc://host:port that python -m trainers.data_service prints: pictures are "
        "decoded and augmented there.",
        check=_check_address,
        identity=False,
        per_process=True,
    )
    on_bad_image: str = flag(
        "fail",
        "What a picture that cannot be decoded does: end the run, or be left out with a warning.",
        ("fail", "skip"),
    )


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """How training pictures are varied, each anew in every epoch."""

    rotation_range: float = flag(0.0, "Degrees to turn by, to either side.", minimum=0.0)
    width_shift_range: Numbers = flag(
        0.0,
        "As --height_shift_range, of the width; as there it shifts up and down.",
        minimum=0.0,
    )
    height_shift_range: Numbers = flag(
        0.0,
        "Fraction of the height (below 1), or pixels, to shift by to either side; of several "
        "numbers one is drawn. As in ImageDataGenerator it shifts sideways (keras issue 17398).",
        minimum=0.0,
    )
    shear_range: float = flag(0.0, "Degrees to shear by, to either side.", minimum=0.0)
    zoom_range: Numbers = flag(
        0.0, "z for factors from 1 - z to 1 + z, or the smallest and the largest.", minimum=0.0
    )
    horizontal_flip: bool = flag(False, "Mirror half of the pictures left to right.")
    vertical_flip: bool = flag(False, "Mirror half of the pictures top to bottom.")
    fill_mode: str = flag(
        "nearest", "What lies beyond the edges.", ("constant", "nearest", "reflect", "wrap")
    )
    cval: float = flag(0.0, "The value beyond the edges with --fill_mode=constant, 0 to 255.")
    interpolation_order: str = flag(
        "1", "How pictures are resampled: 1 is bilinear, 0 nearest.", ("0", "1")
    )
    brightness_range: Numbers | None = flag(
        None, "The smallest and the largest factor of the pixels, such as 0.8,1.2.", minimum=0.0
    )
    channel_shift_range: float = flag(
        0.0, "Added to all channels, at most, to either side; of 255.", minimum=0.0
    )
    contrast_factor: float | None = flag(
        None, "Factor of Keras's RandomContrast, in the model.", minimum=0.0
    )
    saturation_factor: float | None = flag(
        None, "Factor of Keras's RandomSaturation, in the model.", minimum=0.0
    )
    hue_factor: float | None = flag(None, "Factor of Keras's RandomHue, in the model.", minimum=0.0)
    rand_augment: int | None = flag(
        None, "Operations a picture of Keras's RandAugment, in the model; slow.", minimum=1
    )
    augment_on: str = flag(
        "host",
        "Where it runs, but for Keras's own layers: in the input pipeline, beside the training "
        "step (with --data_on_device: on the device, by the same numbers), or on the device, as "
        "the model's first layers.",
        ("host", "device"),
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
    """How pixels are scaled, by the model's own first layers."""

    rescale: float = flag(1 / 255, "Factor of the pixels, 0 to 255.")
    samplewise_center: bool = flag(False, "Subtract each picture's mean.")
    samplewise_std_normalization: bool = flag(
        False, "Subtract each picture's mean and divide by its standard deviation."
    )
    featurewise_center: bool = flag(False, "Subtract the training pictures' mean, by channel.")
    featurewise_std_normalization: bool = flag(
        False,
        "Subtract the training pictures' mean and divide by their standard deviation, by channel.",
    )
    zca_whitening: bool = flag(
        False, "Whiten by the training pictures' covariance; for small pictures only."
    )
    zca_epsilon: float = flag(1e-6, "Added to the singular values of ZCA whitening.", minimum=0.0)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    model: str = flag(
        "tinyvgg",
        "tinyvgg, playground, dense, conv3 or conv3_pool; the sizes below that are not given are "
        "its own.",
    )
    filters: int | None = flag(None, "Filters of a convolution of the first block.", minimum=1)
    filter_growth: float = flag(
        1.0, "Filters of a block, as a multiple of those of the block before.", minimum=0.0
    )
    blocks: int | None = flag(None, "Blocks of convolutions, each ended by a pooling.", minimum=0)
    convolutions: int | None = flag(None, "Convolutions a block.", minimum=1)
    kernel_size: int | None = flag(None, "Height and width of a convolution's kernel.", minimum=1)
    padding: str = flag(
        "valid",
        "Whether convolutions leave the edges out, so that pictures shrink, or pad with zeros.",
        ("valid", "same"),
    )
    pool_size: int | None = flag(
        None, "Height and width that a pooling takes the maximum of; 1 for none.", minimum=1
    )
    global_pooling: bool = flag(
        False, "Take the mean of each filter, in place of all values, before the dense layers."
    )
    dense_layers: int | None = flag(None, "Dense layers before the last.", minimum=0)
    dense_units: int | None = flag(None, "Units of each of them.", minimum=1)
    batch_normalization: bool = flag(False, "Normalise batches before every activation.")
    dropout: float = flag(
        0.0,
        "Share of the values dropped after each dense layer, or before the last layer.",
        minimum=0.0,
        maximum=1.0,
    )


@dataclasses.dataclass(frozen=True)
class OptimisationConfig:
    """How it is trained."""

    epochs: int = flag(5, "Passes over the training pictures.", minimum=1)
    optimizer: str = flag("adam", "Name of a Keras optimizer.")
    learning_rate: float = flag(0.001, "Learning rate.", minimum=0.0)
    scale_learning_rate: str = flag(
        "none",
        "Take the learning rate as it is, or times the number of replicas.",
        ("none", "linear"),
    )
    learning_rate_schedule: str = flag(
        "constant",
        "Keep the learning rate, or let it fall to 0 over all epochs along a half cosine.",
        ("constant", "cosine"),
    )
    weight_decay: float | None = flag(None, "Decoupled from the gradient, as AdamW's.", minimum=0.0)
    label_smoothing: float = flag(
        0.0,
        "Share of each label that is spread evenly over all classes while training.",
        minimum=0.0,
        maximum=1.0,
    )
    class_weight: str | None = flag(
        None, "'balanced' weighs each class by the inverse of its share of pictures.", ("balanced",)
    )
    early_stopping_patience: int | None = flag(
        None,
        "Stop after so many epochs without a better validation loss.",
        minimum=0,
    )
    reduce_lr_patience: int | None = flag(
        None,
        "Divide the learning rate by ten after so many epochs without a better one.",
        minimum=0,
    )
    seed: int = flag(42, "Draws the weights and the order of the pictures.", minimum=0)


@dataclasses.dataclass(frozen=True)
class DevicesConfig:
    """What it is computed with."""

    strategy: str = flag(
        "auto",
        "One device; a replica of the model on each, which share each batch (MirroredStrategy); or "
        "on each of several processes, which TF_CONFIG or Slurm's variables name "
        "(MultiWorkerMirroredStrategy, trainers.fit only); auto: whatever there is.",
        ("auto", "none", "mirrored", "multi_worker"),
    )
    devices: Numbers | None = flag(
        None,
        "How many devices, the first ones, or their indices, such as 0,2; by default all GPUs, or "
        "without a GPU all of --cpu_devices.",
        minimum=0,
        per_process=True,
    )
    cpu_devices: int | None = flag(
        None,
        "Take the CPU, as so many devices, to try replicas without GPUs; they share its cores.",
        minimum=1,
    )
    precision: str = flag(
        "auto",
        "Keras dtype policy: float32, mixed_float16, mixed_bfloat16; float64, which tells rounding "
        "from errors; or auto: mixed_float16 on GPUs of compute capability 7.0 and above, else "
        "float32.",
    )
    jit_compile: str = flag(
        "auto",
        "XLA; auto: on one GPU, not on a CPU, where it is slower, nor on several devices.",
        ("auto", "on", "off"),
    )
    onednn: str = flag(
        "on",
        "oneDNN's kernels on a CPU; TensorFlow leaves them off on some processors, where they are "
        "three times as fast. The variable TF_ENABLE_ONEDNN_OPTS, where it is set, comes first.",
        ("on", "off"),
    )
    deterministic: bool = flag(
        False,
        "Train with operations alone that give the same bits every time, as those of a CPU do "
        "anyway; on a GPU some are slower.",
    )


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """With which other processes; who they are is said by TF_CONFIG, or by Slurm."""

    cluster_timeout: float = flag(
        300.0,
        "Seconds that each waits for the others to come, and at most for one that has died or "
        "fallen silent, before it ends and says which.",
        minimum=1.0,
        identity=False,
        per_process=True,
    )


def checkpoint_interval(text: str) -> tuple[float, float]:
    """The steps and the seconds that --checkpoint_every asks for; infinite where it does not.

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
    """What it leaves behind."""

    run_dir: str | None = flag(
        None,
        "Folder for all that the run leaves; by default runs/<model>-<time>.",
        identity=False,
        per_process=True,
    )
    overwrite: bool = flag(False, "Replace the run in --run_dir.", identity=False, per_process=True)
    resume: bool | str = flag(
        False,
        "Go on with the run in --run_dir where it was last saved; auto: if there is one, and else "
        "start it.",
        ("auto",),
        identity=False,
        per_process=True,
    )
    checkpoint_every: str = flag(
        "epoch",
        "When the state is saved that --resume goes on from: after every epoch, or within epochs "
        "too, every so many steps (500) or seconds (60s).",
        check=checkpoint_interval,
        identity=False,
    )
    tensorboard: bool = flag(True, "Write curves for TensorBoard.")


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """All that `trainers.fit` takes."""

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
    """Which of the chapter's models."""

    only: tuple[str, ...] | None = flag(None, "Some of model_1 to model_7; by default all.")
    run_dir: str = flag(
        "runs/chapter",
        "Folder of their run directories and the comparison; what is trained there is not trained "
        "again.",
    )


@dataclasses.dataclass(frozen=True)
class ChapterDataConfig(DataConfig):
    """Which images, and how they become batches; the chapter validates on the test images."""

    train_split: str | None = same_flag(DataConfig, "train_split", default="train")
    validation_split: str | None = same_flag(DataConfig, "validation_split", default="test")


@dataclasses.dataclass(frozen=True)
class ChapterConfig:
    """All that `trainers.chapter` takes."""

    data: ChapterDataConfig = ChapterDataConfig()
    optimisation: OptimisationConfig = OptimisationConfig()
    devices: DevicesConfig = DevicesConfig()
    chapter: ComparisonConfig = ComparisonConfig()


@dataclasses.dataclass(frozen=True)
class MeasuringConfig:
    """What is measured, and how often."""

    repeats: int = flag(3, "How often each row is timed, in turns.", minimum=1)
    passes: int = flag(
        5, "Passes over the training pictures by the rows that start from decoded ones.", minimum=1
    )
    pictures: int = flag(
        512,
        "Training pictures that a turn takes, at most, of the slow rows: those that train, and the "
        "peers. Two batches, where that is more.",
        minimum=1,
    )
    peers: bool = flag(True, "Measure Keras's own ways to load pictures beside ours.")
    only: tuple[str, ...] | None = flag(
        None, "Parts of names, such as warm,decode: measure the rows that have one, and no others."
    )
    threads: int | None = flag(
        None, "Processor cores that everything is held to, the peers too; Linux only.", minimum=1
    )
    json: str | None = flag(None, "File for the figures, as JSON.")
    plot: str | None = flag(None, "File for a chart of them: .png, .pdf or .svg.")
    profile: str | None = flag(
        None, "Folder for a TensorBoard trace of one more turn of training end to end."
    )


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """All that `trainers.benchmark` takes."""

    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    normalization: NormalizationConfig = NormalizationConfig()
    model: ModelConfig = ModelConfig()
    optimisation: OptimisationConfig = OptimisationConfig()
    devices: DevicesConfig = DevicesConfig()
    measuring: MeasuringConfig = MeasuringConfig()


@dataclasses.dataclass(frozen=True)
class PageConfig:
    """Which runs are reported on, and where."""

    runs: str = flag("runs/*", "Run directories, as a pattern with * and ?.")
    output: str = flag("report.html", "The page to write; a file that is there is replaced.")


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """All that `trainers.report` takes."""

    page: PageConfig = PageConfig()


@dataclasses.dataclass(frozen=True)
class ServersConfig:
    """What is started."""

    port: int = flag(
        0, "Port of the dispatcher that is started; 0 for any free one.", minimum=0, maximum=65535
    )
    dispatcher: str | None = flag(
        None,
        "Address host:port of a dispatcher elsewhere that the workers are for; none is started.",
        check=_check_dispatcher,
    )
    workers: int = flag(1, "Workers to start, on any free ports. One uses all cores.", minimum=0)
    host: str | None = flag(
        None,
        "Name or address under which others reach this machine; by default localhost, for nobody "
        "else, or with --dispatcher the address that this machine has there.",
    )


@dataclasses.dataclass(frozen=True)
class DataServiceConfig:
    """All that `trainers.data_service` takes."""

    servers: ServersConfig = ServersConfig()


@dataclasses.dataclass(frozen=True)
class ArtifactConfig:
    """Which run's model is exported, how, and where to."""

    run_dir: str | None = flag(None, "Folder of a finished run.")
    format: str = flag(
        "saved_model",
        "A SavedModel for TensorFlow and its Serving, a .tflite file for LiteRT, or an .onnx file "
        "for ONNX Runtime.",
        ("saved_model", "litert", "onnx"),
    )
    output: str | None = flag(
        None,
        "File or folder to write; by default saved_model, model.tflite or model.onnx in --run_dir.",
    )
    overwrite: bool = flag(False, "Replace the export that is there.")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """All that `trainers.export` takes."""

    artifact: ArtifactConfig = ArtifactConfig()


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Which run's model is evaluated, and where the outcome goes."""

    run_dir: str | None = flag(None, "Folder of a finished run.")
    split: str | None = flag(
        None,
        "Images to evaluate on: train, validation or test, which are the run's own splits, or any "
        "TFDS split string; by default test, or of another --archive without test all images.",
    )
    json: str | None = flag(
        None, "File for the numbers, as JSON; by default evaluation.json in --out_dir."
    )
    out_dir: str | None = flag(
        None, "Folder for the figures; by default evaluation/ in the run's folder."
    )


@dataclasses.dataclass(frozen=True)
class EvaluationDataConfig:
    """Which pictures it is evaluated on; by default as the run's flags say."""

    archive: str | None = flag(None, "Zip file or folder of class folders, those of the run.")
    data_dir: str | None = flag(None, "Where records and decoded pictures are kept.")
    follow_links: bool | None = flag(None, "Follow links to folders in --archive.")
    decoded_cache: str | None = flag(
        None, "Where decoded pictures are kept.", ("disk", "memory", "none")
    )
    on_bad_image: str | None = flag(
        None, "What a picture that cannot be decoded does.", ("fail", "skip")
    )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """All that `trainers.evaluate` takes."""

    evaluation: EvaluationConfig = EvaluationConfig()
    data: EvaluationDataConfig = EvaluationDataConfig()


@dataclasses.dataclass(frozen=True)
class PredictionConfig:
    """Which run's model predicts, and where the outcome goes."""

    run_dir: str | None = flag(None, "Folder of a finished run.")
    json: str | None = flag(
        None, "File for the probabilities of all classes, as JSON; - is the standard output."
    )
    csv: str | None = flag(
        None, "File for path, class, probability and error, as CSV; - is the standard output."
    )
    batch_size: int = flag(32, "Pictures a step.", minimum=1)


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """All that `trainers.predict` takes."""

    prediction: PredictionConfig = PredictionConfig()
