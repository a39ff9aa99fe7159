"""The two texts of a bundle that are for people: the model card and the note on the license."""

from collections.abc import Mapping
from typing import Any

from deploy.images.preprocess import Preprocessing
from simclr_core.params import flatten
from simclr_core.reports import ClassifierResults, NoResults, ServedAccuracy, VariantReport

TEST_SPLIT = "Accuracies are percentages on the test split of the training data's owner."
OUT_OF_FOLD = """\
There was no test split. The accuracies of linear_eval are percentages of the labeled training images, each answered by
a classifier that had not seen the labels of its fold. The encoder was pretrained on these images, without labels."""

SEVERAL = """\
An image may have several of the classes, or none: it has those of at least even probability. Each class is a logistic
regression, and one temperature is for all.

"""


def model_card(
    card: dict[str, Any],
    labels: tuple[str, ...],
    variants: Mapping[str, VariantReport | ServedAccuracy],
    results: ClassifierResults | NoResults,
) -> str:
    """MODEL_CARD.md, after Mitchell et al. 2019, from bundle.json, the class names of the head, and what was measured
    of each variant, fp32 being the one that the others are held against, and of the classifier."""
    provenance = card["provenance"]
    preprocessing = Preprocessing.from_json(card["preprocessing"])
    size, resize = preprocessing.size, preprocessing.resize
    network = "{name}, width {width:g}, stem {stem}".format(**card["encoder"])
    if card.get("head_layers"):
        network += f", and the first {card['head_layers']} of its projection head's layers"
    several = bool(card.get("multi_label"))
    kind, shown = (
        ("linear, a probability for each of", "Mean average precisions") if several else ("linear,", "Accuracies")
    )
    classifier = f"{kind} {len(labels)} classes: {', '.join(labels)}" if labels else "none"
    metrics = "\n".join(f"| {name} | {value} |" for name, value in flatten(card["metrics"], " ")) or "| none | |"
    folded = card["metrics"].get("linear_eval", {}).get("estimate") == "out_of_fold"
    return f"""\
# {card["name"]}

An image encoder trained without labels by SimCLR (Chen et al. 2020): one vector of {card["dim"]} numbers for an image.

| | |
|---|---|
| Network | {network} |
| Input | {preprocessing.described}, short side resized to {resize}, central {size} x {size} |
| Output | float32 [batch, {card["dim"]}], not normalized; scale to length 1 for cosine similarity |
| Classifier | {classifier} |
| Weights | {provenance["kind"]}, {provenance["model"]} |
| Begun from | {_begun(provenance.get("init"))} |
| Data | {provenance["data_digest"]} |
| Trained by | {provenance["trained_by"]} |
| License | {card["license"]} |

## Intended use

Similarity search, clustering, duplicate finding, and classification from few labels, for images like those it was
trained on. Not for decisions about people, and not for images of another kind without a test on labeled ones of them.

    pip install .        # in a clone of the repository of simclr-pipeline; no package index has it
    simclr-deploy verify BUNDLE
    simclr-deploy embed BUNDLE photos/ -o embeddings

## Variants

{shown} are percentages on the labeled test images, of what is served. Vectors of two variants do not mix.

| Variant | Made by | Size to fp32 | Cosine to fp32, mean | kNN | Classifier |
|---|---|---|---|---|---|
{_variants(variants, card["left_out"])}
## Classifier

{SEVERAL if several else ""}{_results(results, several)}
## Metrics

{OUT_OF_FOLD if folded else TEST_SPLIT}

| Metric | Value |
|---|---|
{metrics}

## Limits

- Similar means alike under the training augmentations (crops, colors, flips), for images like the training data.
- It was not tested for fairness. What the training images over-represent, its neighborhoods over-represent.
- `golden/` holds small copies of images from the test split: publish the bundle only where those may be seen.
"""


def _begun(init: str | None) -> str:
    if init is None or not init.startswith("weights "):
        return init or "scratch"
    return f"{init}: the license of those weights holds for these too"


def _variants(variants: Mapping[str, VariantReport | ServedAccuracy], left_out: Mapping[str, str]) -> str:
    rows, notes = [], []
    for name, one in variants.items():
        made = "the trained weights | 1 | 1"
        if isinstance(one, VariantReport):
            made = f"{one.method} | {one.size_ratio} | {one.cosine_mean}"
            notes += [f"\n{name}: {one.undecided}.\n"] if one.undecided else []
        knn = one.knn_top1 if one.knn_precision is None else one.knn_precision
        classifier = one.classifier_top1 if one.classifier_precision is None else one.classifier_precision
        rows.append(f"| {name} | {made} | {_shown(knn)} | {_shown(classifier)} |\n")
    notes += [f"\n{name} was left out: {reason}.\n" for name, reason in left_out.items()]
    return "".join(rows + notes)


def _results(results: ClassifierResults | NoResults, several: bool) -> str:
    if isinstance(results, NoResults):
        return "No labeled test images, or no classifier: nothing was measured.\n"
    rows = [
        f"| {name} | {one.images} | {_shown(one.recall)} | {_shown(one.precision)} |\n"
        for name, one in results.per_class.items()
    ]
    before, temperature = results.calibration_error_before, results.temperature
    fitted = f"{before} before the temperature {temperature}, which was fitted on held-out training labels"
    scaled = fitted if temperature != 1 else "and no temperature brought held-out training labels closer"
    bins = f"15 bins{', mean of the classes' if several else ''}"
    return (
        f"On {results.test_images} labeled test images. Its probabilities are {results.calibration_error} percentage "
        f"points off on\naverage (expected calibration error, {bins}), {scaled}.\n\n"
        "| Class | Images | Found, % | Answers right, % |\n|---|---|---|---|\n" + "".join(rows)
    )


def _shown(percent: float | None) -> str:
    return "none" if percent is None else f"{percent:.1f}"


def license_note(name: str, license: str) -> str:
    """LICENSE.txt of the bundle."""
    return (
        f"The weights, the classifier and the golden images of {name} are under this license: {license}\n\n"
        "They were made with simclr-pipeline; the Apache-2.0 license of its code does not extend to them.\n"
    )
