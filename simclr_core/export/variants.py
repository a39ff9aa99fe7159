"""The other variants of a bundle: made, held against fp32, and shipped only if they lose next to nothing.

The gate is on what is served. A variant that misses it is left out, and the bundle says why; fp32 ships in any case.
What too few test images cannot tell is said, and the variant ships: its vectors are nearly those of fp32.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from deploy.bundle import FP32, INT8, Bundle, Variant
from deploy.encoder import Encoder, Fidelity, compare, l2_normalize
from deploy.images.full_depth import Samples
from deploy.images.preprocess import Preprocessing
from simclr_core.data.dataset import evaluation_images
from simclr_core.data.shards import ShardedImages
from simclr_core.evaluation.multi_label.images import Targets
from simclr_core.evaluation.served_accuracy import (
    Answers,
    LabeledImages,
    accuracies,
    ask,
    compare_answers,
    measure,
    served_features,
    spread,
)
from simclr_core.export.quantize import float16_graph, int8_graphs
from simclr_core.reports import VariantReport

MEAN_COSINE_MIN = 0.99
BATCH_COSINE_MIN = 0.999  # dynamic scales are of the whole batch, so that its images have a say in each other's vector
CONFIDENCE = 0.95  # with which a loss of accuracy is shown, or ruled out
CALIBRATION_IMAGES = 128
TIGHTEST = {"cosine_min": 0.9995, "max_abs": 0.005}
MARGIN = 4  # times what turning onnxruntime's optimizer off changes on this machine
ANY = {"cosine_min": -1.0, "max_abs": 2.0}


@dataclass(frozen=True)
class Variants:
    """Those that passed, what was measured of each, and why the others were left out, all by name."""

    passed: dict[str, Variant]
    facts: dict[str, VariantReport]
    left_out: dict[str, str]


def build_variants(
    bundle: Bundle,
    names: Sequence[str],
    calibration: NDArray[np.uint8],
    pictures: Sequence[bytes],
    images: LabeledImages,
    exact_answers: Answers,
    max_loss: float,
) -> Variants:
    """Make, measure and judge each of ``names`` but fp32.

    Args:
        calibration: pixels of training images, uint8 [n, size, size, 3].
        pictures: image files, on which vectors are compared with those of fp32.
        exact_answers: what fp32 says of the test images, as ``served_accuracy.ask`` gives it.
        max_loss: percentage points of accuracy, or of mean average precision, that one may lose.
    """
    exact = Encoder(bundle).embed(pictures).vectors
    result = Variants({}, {}, {})
    for name in (name for name in names if name != FP32):
        graphs = int8_graphs(bundle.model, calibration) if name == INT8 else {"float16": float16_graph(bundle.model)}
        candidates = {method: _load(bundle, name, graph) for method, graph in graphs.items()}
        cosines = {
            method: mean_cosine(_encoder(one, name).embed(pictures).vectors, exact)
            for method, one in candidates.items()
        }
        method = max(cosines, key=lambda one: cosines[one])  # accuracy before speed
        candidate = candidates[method]
        encoder = _encoder(candidate, name)
        answers = ask(served_features(encoder, images), images, bundle.head)
        facts = VariantReport(
            method=method,
            size_ratio=round(len(candidate.variants[name].model) / len(bundle.model), 4),
            cosine_mean=round(cosines[method], 6),
            batch_cosine_min=round(batch_cosine_min(encoder, pictures), 6),
            **asdict(accuracies(answers, images.sets)),
            tolerance=ANY,
        )
        lost, undecided = judge_losses(exact_answers, answers, images.sets, max_loss)
        reason = find_missed(facts) or lost
        if reason:
            result.left_out[name] = reason
            continue
        result.passed[name] = golden_variant(candidate, name, encoder)
        result.facts[name] = replace(facts, tolerance=result.passed[name].tolerance, undecided=undecided)
    return result


def find_missed(facts: VariantReport) -> str | None:
    """Why the vectors of a variant are too far from those of fp32; None if they are not."""
    if not facts.cosine_mean >= MEAN_COSINE_MIN:  # written so that NaN fails
        return f"mean cosine to fp32 {facts.cosine_mean:.4f}, at least {MEAN_COSINE_MIN} is required"
    if not facts.batch_cosine_min >= BATCH_COSINE_MIN:
        cosine = f"{facts.batch_cosine_min:.5f}"
        return f"alone and in a batch an image gets vectors of cosine {cosine}, at least {BATCH_COSINE_MIN} is required"
    return None


def judge_losses(
    exact: Answers, found: Answers, sets: Targets | None, max_loss: float
) -> tuple[str | None, str | None]:
    """Why a variant loses too much accuracy, and why that cannot be judged; None for what is not so.

    Paired by test image. A loss of more than ``max_loss`` points has to be shown beyond chance, by any of the measures,
    so each gets its part of the error (Bonferroni). It is judged if a loss of that size is shown or ruled out.
    ``sets`` are the labels of the test images where an image may have several.
    """
    undecided = None
    for name, answers in found.items():
        gain = compare_answers(answers, exact[name], sets, 1 - (1 - CONFIDENCE) / len(found))
        points = -100 * gain.difference
        if gain.high < 0 and points > max_loss:
            reached = f"{name} {100 * measure(answers, sets):.2f} %, {points:.2f} points under fp32"
            return f"{reached}; at most {max_loss:g} may be lost (export.max_loss)", None
        if gain.low < -max_loss / 100:
            undecided = (
                f"not judged: on {len(answers)} test images a loss of {name} up to {-100 * gain.low:.1f} points is not "
                f"ruled out, {max_loss:g} may be lost (export.max_loss)"
            )
    return None, undecided


def calibration_pixels(prepared: Path, preprocessing: Preprocessing) -> Samples:
    """Training images, with or without labels, as the graph takes them; the same ones for the same data."""
    images = ShardedImages(prepared / "train")
    return evaluation_images(images, spread(len(images), CALIBRATION_IMAGES), preprocessing)


def golden_variant(bundle: Bundle, name: str, encoder: Encoder) -> Variant:
    """The variant with its own golden vectors, and a tolerance for other machines.

    Rounding to 8 bits turns a difference in the last bit of a sum into one of a whole step, so processors differ by
    more than in float. How much shows here: without its optimizer onnxruntime takes other kernels for the same graph.
    """
    variant = bundle.variants[name]
    vectors = encoder.embed(bundle.golden_images).vectors
    pixels = np.stack([bundle.preprocessing.read(image) for image in bundle.golden_images])
    seen = compare(run_unoptimized(variant.model, pixels), vectors)
    return Variant(variant.model, vectors, _tolerance(seen))


def run_unoptimized(model: bytes, pixels: Samples) -> NDArray[np.float32]:
    """Embeddings of length 1, every node of the graph computed as it stands."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return l2_normalize(session.run(None, {session.get_inputs()[0].name: pixels})[0])


def mean_cosine(vectors: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    """Of two arrays of embeddings of length 1, row by row."""
    return float((vectors.astype(np.float64) * exact).sum(axis=1).mean())


def batch_cosine_min(encoder: Encoder, pictures: Sequence[bytes]) -> float:
    """The smallest cosine between the vectors of an image embedded alone and in a batch."""
    return compare(encoder.embed(pictures, batch_size=1).vectors, encoder.embed(pictures).vectors).cosine_min


def _tolerance(seen: Fidelity) -> dict[str, float]:
    cosine, difference = 1 - MARGIN * (1 - seen.cosine_min), MARGIN * seen.max_abs
    return {
        "cosine_min": min(TIGHTEST["cosine_min"], float(np.floor(cosine * 1e4) / 1e4)),
        "max_abs": max(TIGHTEST["max_abs"], float(np.ceil(difference * 1e3) / 1e3)),
    }


def _load(bundle: Bundle, name: str, graph: bytes) -> Bundle:
    return replace(bundle, variants={name: Variant(graph, bundle.golden_vectors, ANY)})


def _encoder(bundle: Bundle, name: str) -> Encoder:
    return Encoder(bundle, variant=name)
