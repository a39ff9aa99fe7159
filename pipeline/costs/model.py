"""What each stage of a run costs: what it does, times what the parts of that cost on this machine and on these images.

Seconds are of wall time, memory is that of all processes of a stage together, and bytes of the disk are those that stay
when the run is over. The constants were measured on two cores of an AMD EPYC (Zen 4) on 2026-11-29, on 2,500 images of
Fashion-MNIST; those of time are shares of the start of a process with PyTorch, which is measured.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import ceil

from deploy.plural import duration
from pipeline.maintenance.disk import size
from pipeline.params import Params
from pipeline.preflight.images import Images
from simclr_core.evaluation.fewest import CALIBRATION_LABELS, fold_count
from simclr_core.monitoring.unit_costs import UnitCosts

# Shares of the start of a process with PyTorch.
DVC_START, RUN_START = 0.15, 0.5
VALIDATE_START, PREPARE_START, DRIFT_START, INITIAL_START, EXPLORE_START = 1.45, 0.22, 0.18, 0.1, 0.3
GRAPH_START = 0.9  # export's ONNX graph, its quantization and proof
MAPS_START, MAP_START = 0.3, 0.0009  # the map of embeddings, and an image of it
# The bootstrap of a mean average precision: of each image and class of an answer, and of each image of the draws. By
# processor time, with 300 and 600 images and 3 to 14 classes: 2.8 to 3.4, and 3.7 to 5.1.
RESAMPLE_START, DRAW_START = 3.3e-6, 4e-6

COPIES = 2  # of a stage's results: in the workspace and in DVC's cache
TAR_BLOCK, FLOAT = 512, 4
LISTED_BYTES, FACTS_BYTES, MANIFEST_BYTES = 390, 310, 370  # of an image in lists and tables
REPORT_BYTES, RECORD_BYTES = 250_000, 400_000  # of a stage: its reports, and the records of Git, DVC and Dagster
THUMBNAIL_BYTES, EXPLORED_BYTES, HALF = 900, 250, 2  # of an image in the explorer, and of a number of its vector
PROJECTOR_BYTES, SPRITE_BYTES = 8, 820  # of a number and of a picture in TensorBoard's projector
INT8 = 0.3  # size of that variant over fp32's
DVC_BYTES, VALIDATE_BYTES, WORKER_BYTES = 130e6, 300e6, 60e6  # of memory

# Evaluations of a probe's loss: for each penalty while one is chosen, and for the fit with it. Mean of 24 probes, of 16
# to 784 axes and 9 to 36 classes, on four sets; fits were between 7 and 205.
CHOOSING, FITTING = 10, 65
FOLDS, FEW_LABELS = 5, 1000  # as simclr_core.evaluation.linear_probe, which brings PyTorch
FITTED_SIDE, FITTED_CLASSES = 512, 10  # of what ``UnitCosts`` has of probes
REST = "the rest"
CLASSIFIERS = ("knn", "probe")
PIXEL_SIDE, RANDOM_ENCODERS = 32, 3  # as simclr_core.evaluation.linear_eval
MAPPED, UNLABELED_SAMPLE = 2000, 5000
EXPLORED, LANDMARKS = 100_000, 3000  # as pipeline.explore
SERVED_TRAIN, SERVED_TEST = 10_000, 5_000  # images on which an export is judged
LATENCY_ROUNDS, LATENCIES = 105, 3  # single images that export and a gate embed
FINETUNE = re.compile(r"finetune@([01]\.\d+)")
CACHED_SIDE = 64  # up to here a decoded image stays in memory


@dataclass(frozen=True)
class ImageCosts:
    """Of a mean image: seconds of one core, and bytes of the file and of what is prepared from it."""

    probe_seconds: float
    prepare_seconds: float
    decode_seconds: float
    file_bytes: float
    prepared_bytes: float


@dataclass(frozen=True)
class Measured:
    """What was measured of this machine, with its number of ``cores``, and of the images."""

    unit: UnitCosts
    image: ImageCosts
    cores: int


@dataclass(frozen=True)
class Cost:
    """Of one stage, or of several."""

    seconds: float = 0.0
    memory_bytes: float = 0.0
    disk_bytes: float = 0.0

    def __str__(self) -> str:
        return f"{duration(self.seconds)}, {size(self.memory_bytes)} of memory and {size(self.disk_bytes)} of disk"


@dataclass(frozen=True)
class Work:
    """What a run works with and on: ``new`` images are not validated yet; ``released``: whether there is a champion."""

    params: Params
    images: Images
    new: int
    released: bool
    measured: Measured

    @property
    def unit(self) -> UnitCosts:
        return self.measured.unit

    @property
    def image(self) -> ImageCosts:
        return self.measured.image

    @property
    def cores(self) -> int:
        return self.measured.cores

    @property
    def train(self) -> int:
        return self.images.train.total()

    @property
    def test(self) -> int:
        return self.images.test.total()

    @property
    def total(self) -> int:
        return self.train + self.test

    @property
    def evaluated(self) -> int:
        """Images that evaluation looks at: the labeled ones; without any, a sample."""
        train = self.images.labeled or min(self.train, UNLABELED_SAMPLE)
        return train + (self.images.tested or min(self.test, UNLABELED_SAMPLE))

    @property
    def taught(self) -> bool:
        """Whether there is something to learn from labels."""
        return len(self.images.classes) > (0 if self.images.several else 1)

    def labels(self, share: str) -> int:
        """As simclr_core.data.subsets draws them: each class gives at least one."""
        return sum(max(1, round(Fraction(share) * count)) for count in self.images.by_class)

    def labels_per_class(self, number: int) -> int:
        return sum(min(number, count) for count in self.images.by_class)

    def decoded(self, images: int) -> float:
        """Seconds to decode prepared images on all cores."""
        return images * self.image.decode_seconds / self.cores

    def forward(self, images: int) -> float:
        return images * self.unit.forward_seconds

    def fit(self, labels: int, features: int, penalties: int) -> float:
        """Seconds of one linear probe: a search along the penalties for all folds at once, and a fit."""
        folds = FOLDS if labels < FEW_LABELS else 1
        searching = penalties * CHOOSING * self._evaluation(labels, features, folds)
        return searching + self._exactly(labels, features)

    def calibrated(self, labels: int, features: int) -> float:
        """Seconds of the probes that say how sure a classifier is: a fit for each fold on the labels of the others."""
        known = labels * (FOLDS - 1) // FOLDS
        return FOLDS * self._exactly(known, features) if labels >= CALIBRATION_LABELS else 0.0

    def _exactly(self, labels: int, features: int) -> float:
        axes = self.unit.axes_seconds * (min(labels, features) / FITTED_SIDE) ** 3
        return FITTING * self._evaluation(labels, features, 1) + axes

    def _evaluation(self, labels: int, features: int, problems: int) -> float:
        """Of the loss of these problems at once; of several labels there is a regression for each class."""
        few, many = self.unit.descent_seconds
        size = labels * min(labels, features) * len(self.images.classes) / (FITTED_SIDE**2 * FITTED_CLASSES)
        return few + max(0.0, many - few) * problems * size

    def resampled(self, answers: int, draws: int) -> float:
        """Seconds of the intervals of these mean average precisions, where an image may have several labels, and of
        the ``draws`` of the images that several of them share."""
        if not self.images.several:
            return 0.0
        images = self.images.tested or self.images.labeled
        each = answers * len(self.images.classes) * RESAMPLE_START + draws * DRAW_START
        return images * each * self.unit.start_seconds


def stage_costs(work: Work, stages: Iterable[str]) -> dict[str, Cost]:
    """By the name of each of ``stages``, and of what is around them: ``raw_images`` and REST. Unknown ones are left
    out."""
    models: dict[str, Callable[[Work], Cost]] = {
        "raw_images": _raw_images,
        "validate": _validate,
        "prepare": _prepare,
        "embedding_drift": _embedding_drift,
        "initial": _initial,
        "pretrain": _pretrain,
        "linear_eval": _linear_eval,
        "export": _export,
        "compare": _compare,
        "explore": _explore,
        REST: _rest,
    }
    models |= {name: partial(_finetune, share=share[1]) for name in stages if (share := FINETUNE.fullmatch(name))}
    return {name: models[name](work) for name in ("raw_images", *stages, REST) if name in models}


def total(costs: Iterable[Cost]) -> Cost:
    """Seconds and disk add up; memory is that of the stage that needs most."""
    found = [*costs]
    return Cost(
        sum(one.seconds for one in found),
        max((one.memory_bytes for one in found), default=0.0),
        sum(one.disk_bytes for one in found),
    )


def _raw_images(work: Work) -> Cost:
    padded = work.image.file_bytes + 1.5 * TAR_BLOCK + LISTED_BYTES
    return Cost(0.1 * work.unit.start_seconds, DVC_BYTES, work.new * padded)


def _validate(work: Work) -> Cost:
    seconds = (DVC_START + VALIDATE_START) * work.unit.start_seconds + work.new * work.image.probe_seconds / work.cores
    disk = work.new * FACTS_BYTES + COPIES * (work.total * MANIFEST_BYTES + REPORT_BYTES)
    return Cost(seconds, DVC_BYTES + VALIDATE_BYTES + work.cores * WORKER_BYTES, disk)


def _prepare(work: Work) -> Cost:
    seconds = (DVC_START + PREPARE_START) * work.unit.start_seconds
    seconds += work.total * work.image.prepare_seconds / work.cores
    disk = COPIES * (work.total * (work.image.prepared_bytes + 1.5 * TAR_BLOCK) + REPORT_BYTES)
    return Cost(seconds, 2 * DVC_BYTES, disk)


def _embedding_drift(work: Work) -> Cost:
    config, images = work.params.embedding_drift, 0
    if config.enabled and work.released:
        newest = max(work.images.batches, default="")
        images = min(config.batch_images, work.images.batches[newest]) + min(config.reference_images, work.train)
    seconds = (DVC_START + DRIFT_START) * work.unit.start_seconds + work.decoded(images) + work.forward(images)
    return Cost(seconds, 2 * DVC_BYTES, 0.0)


def _initial(work: Work) -> Cost:
    if work.params.pretrain.init == "scratch":
        return Cost((DVC_START + INITIAL_START) * work.unit.start_seconds, 2 * DVC_BYTES)
    return Cost(
        _started(work), _memory(work), COPIES * FLOAT * (work.unit.encoder_parameters + work.unit.head_parameters)
    )


def _pretrain(work: Work) -> Cost:
    config, unit = work.params.pretrain, work.unit
    epochs = config.epochs if config.init == "scratch" else config.warm_start.epochs or config.epochs
    steps = work.train // config.batch_size
    watched = min(config.monitor_images, work.train)
    epoch = steps * config.batch_size / unit.images_per_second
    looks = ceil(epochs / config.monitor_every) * (work.forward(watched) + watched * unit.monitor_seconds)
    decodings = 1 if config.image_size <= CACHED_SIDE else epochs
    seconds = _started(work) + epochs * epoch + looks + work.decoded(decodings * work.train + watched)
    pixels = 3 * config.image_size**2 * (work.train if config.image_size <= CACHED_SIDE else 0)
    projector = watched * (PROJECTOR_BYTES * unit.feature_dim + SPRITE_BYTES)
    parameters = unit.encoder_parameters + unit.head_parameters
    return Cost(seconds, unit.memory_bytes + DVC_BYTES + pixels, COPIES * FLOAT * parameters + projector + REPORT_BYTES)


def _linear_eval(work: Work) -> Cost:
    config, dim = work.params.linear_eval, work.unit.feature_dim
    side = min(work.params.pretrain.image_size, PIXEL_SIDE)
    encoders = 1 + RANDOM_ENCODERS + (work.params.pretrain.init == "weights")
    seconds = _started(work) + work.decoded(work.evaluated) + encoders * work.forward(work.evaluated)
    mapped = min(work.images.test.total() or work.evaluated, MAPPED)
    seconds += (MAPS_START + mapped * MAP_START) * work.unit.start_seconds
    if work.taught:
        for labels, kind, fits in _fits(work):
            seconds += fits * work.fit(labels, dim if kind == "encoder" else 3 * side**2, config.l2_count)
        budgets = len(config.fractions) + len(config.labels_per_class)
        rows = encoders - RANDOM_ENCODERS + 2  # one of the random encoders, and the pixels
        seconds += work.resampled(2 * (encoders + 1) + 1 + budgets * rows, 1 + len(CLASSIFIERS) + budgets)
    if config.sgd is not None and work.taught and work.images.tested:
        passes = config.sgd.epochs * work.images.labeled
        decodings = work.images.labeled if work.params.pretrain.image_size <= CACHED_SIDE else passes
        seconds += work.forward(passes) + work.decoded(decodings)
    features = FLOAT * work.evaluated * (encoders * dim + 3 * side**2)
    return Cost(seconds, _memory(work) + 2 * features, REPORT_BYTES * COPIES)


def _fits(work: Work) -> Iterator[tuple[int, str, int]]:
    """Labels, kind of features and number of the probes of linear_eval: on each budget a probe for each draw of labels
    and each set of features; of random weights at least one for each of their draws. Without test images one draw in
    each fold, if the labels allow folds, and the probe that is published."""
    config = work.params.linear_eval
    if work.images.tested:
        yield from _fits_of_fold(work, work.images.labeled, config.draws)
        return
    for share in config.fractions:
        yield work.labels(share), "encoder", 1
    folds = fold_count(work.images.by_class)
    for _ in range(folds):
        yield from _fits_of_fold(work, round(work.images.labeled * (folds - 1) / folds), 1)


def _fits_of_fold(work: Work, known: int, most_draws: int) -> Iterator[tuple[int, str, int]]:
    """The same for classifiers that may see ``known`` of the labels."""
    config, seen = work.params.linear_eval, known / work.images.labeled if known else 0.0
    trained = 1 + (work.params.pretrain.init == "weights")
    for share in config.fractions:
        labels = round(seen * work.labels(share))
        draws = most_draws if 2 * labels <= known else 1
        random = RANDOM_ENCODERS + (max(draws, RANDOM_ENCODERS) - 1 if draws > 1 else 0)
        yield labels, "encoder", draws * trained + random
        yield labels, "pixels", draws
    for number in config.labels_per_class:
        labels = work.labels_per_class(number)
        if labels < known:
            draws = most_draws if 2 * labels <= known else 1
            yield labels, "encoder", draws * trained + max(draws, RANDOM_ENCODERS)
            yield labels, "pixels", draws


def _finetune(work: Work, share: str) -> Cost:
    config, unit, labels = work.params.finetune, work.unit, work.labels(share)
    disk = COPIES * FLOAT * unit.encoder_parameters if work.taught and labels > 1 else 0
    if not disk:
        return Cost(_started(work), _memory(work))
    batch, seeds = min(config.batch_size, labels), len(config.seeds)
    epochs = config.epochs_few if Fraction(share) <= Fraction("0.01") else config.epochs
    steps = max(config.min_steps, epochs * (labels // batch))
    step, each = unit.tuning_seconds
    seconds = _started(work) + 2 * seeds * steps * (step + batch * each)
    seconds += seeds * work.fit(labels, unit.feature_dim, work.params.linear_eval.l2_count)
    tested = work.images.tested
    seconds += work.decoded(work.evaluated + tested) + work.forward(work.evaluated + 2 * seeds * tested)
    seconds += work.resampled(3 * seeds, 2)
    return Cost(seconds, _memory(work), disk)


def _export(work: Work) -> Cost:
    unit, variants = work.unit, len(work.params.export.variants)
    images = min(work.images.labeled, SERVED_TRAIN) + min(work.images.tested, SERVED_TEST)
    seconds = _started(work) + GRAPH_START * unit.start_seconds
    seconds += variants * (work.decoded(images) + work.forward(images + LATENCY_ROUNDS * LATENCIES))
    if work.taught and work.params.export.source == "pretrained":
        seconds += work.calibrated(min(work.images.labeled, SERVED_TRAIN), unit.feature_dim)
    others = len(CLASSIFIERS) * (variants - 1)
    seconds += work.resampled(2 * others, others)  # each is held against fp32
    return Cost(seconds, _memory(work), COPIES * _bundle(work) + REPORT_BYTES)


def _compare(work: Work) -> Cost:
    encoders, labels = 1 + work.released, work.images.labeled
    seconds = _started(work) + encoders * (work.decoded(work.evaluated) + work.forward(work.evaluated))
    if work.taught:
        seconds += encoders * work.fit(labels, work.unit.feature_dim, work.params.compare.l2_count)
        seconds += work.resampled(len(CLASSIFIERS) * encoders, 1)
    return Cost(seconds, _memory(work), 0.0)


def _explore(work: Work) -> Cost:
    shown = min(work.total, EXPLORED)
    seconds = (DVC_START + EXPLORE_START) * work.unit.start_seconds
    seconds += work.decoded(2 * shown) + work.forward(shown)  # once for the thumbnail
    seconds += min(shown, LANDMARKS) * MAP_START * work.unit.start_seconds
    if work.released:
        seconds += work.decoded(work.images.tested) + work.forward(work.images.tested)
    disk = COPIES * (shown * (THUMBNAIL_BYTES + HALF * work.unit.feature_dim) + work.total * EXPLORED_BYTES)
    return Cost(seconds, 2 * DVC_BYTES, disk)


def _rest(work: Work) -> Cost:
    """The start of the run, its gates with the latency of the candidate, its records, and the release."""
    seconds = (RUN_START + 1 + 10 * DVC_START) * work.unit.start_seconds
    seconds += (1 + work.released) * work.forward(LATENCY_ROUNDS)
    return Cost(seconds, DVC_BYTES, 10 * RECORD_BYTES + _bundle(work))


def _bundle(work: Work) -> float:
    return FLOAT * work.unit.encoder_parameters * (1 + INT8 * (len(work.params.export.variants) - 1))


def _started(work: Work) -> float:
    return (1 + DVC_START) * work.unit.start_seconds


def _memory(work: Work) -> float:
    return work.unit.memory_bytes + DVC_BYTES
