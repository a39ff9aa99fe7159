"""The two texts of a bundle that are for people: the model card and the note on the license."""

from typing import Any

from simclr_core.params import flatten


def model_card(card: dict[str, Any], labels: tuple[str, ...]) -> str:
    """MODEL_CARD.md, after Mitchell et al. 2019, from bundle.json and the class names of the head."""
    provenance = card["provenance"]
    size, resize = card["preprocessing"]["size"], card["preprocessing"]["resize"]
    network = "{name}, width {width:g}, stem {stem}".format(**card["encoder"])
    if card.get("head_layers"):
        network += f", and the first {card['head_layers']} of its projection head's layers"
    classifier = f"linear, {len(labels)} classes: {', '.join(labels)}" if labels else "none"
    metrics = "\n".join(f"| {name} | {value} |" for name, value in flatten(card["metrics"], " ")) or "| none | |"
    return f"""\
# {card["name"]}

An image encoder trained without labels by SimCLR (Chen et al. 2020): one vector of {card["dim"]} numbers for an image.

| | |
|---|---|
| Network | {network} |
| Input | uint8 RGB, short side resized to {resize}, central {size} x {size} |
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

Accuracies are percentages on the labeled test images, of what is served. Vectors of two variants do not mix.

| Variant | Made by | Size to fp32 | Cosine to fp32, mean | kNN | Classifier |
|---|---|---|---|---|---|
{_variants(card)}
## Classifier

{_results(card["results"])}
## Metrics

Accuracies are percentages on the test split of the training data's owner.

| Metric | Value |
|---|---|
{metrics}

## Limits

- Similar means alike under the training augmentations (crops, colors, flips), for images like the training data.
- It was not tested for fairness. What the training images over-represent, its neighbourhoods over-represent.
- `golden/` holds small copies of images from the test split: publish the bundle only where those may be seen.
"""


def _begun(init: str | None) -> str:
    if init is None or not init.startswith("weights "):
        return init or "scratch"
    return f"{init}: the license of those weights holds for these too"


def _variants(card: dict[str, Any]) -> str:
    rows = []
    for name, facts in card["variants"].items():
        made = (facts.get("method", "the trained weights"), facts.get("size_ratio", 1), facts.get("cosine_mean", 1))
        cells = (name, *made, _shown(facts["knn_top1"]), _shown(facts["classifier_top1"]))
        rows.append(f"| {' | '.join(map(str, cells))} |\n")
    open_ = [f"\n{name}: {facts['undecided']}.\n" for name, facts in card["variants"].items() if facts.get("undecided")]
    left_out = [f"\n{name} was left out: {reason}.\n" for name, reason in card["left_out"].items()]
    return "".join(rows + open_ + left_out)


def _results(results: dict[str, Any]) -> str:
    if not results:
        return "No labeled images, or no classifier: nothing was measured.\n"
    rows = [
        f"| {name} | {one['images']} | {_shown(one['recall'])} | {_shown(one['precision'])} |\n"
        for name, one in results["per_class"].items()
    ]
    before, error = results["calibration_error_before"], results["calibration_error"]
    fitted = f"{before} before the temperature {results['temperature']}, which was fitted on held-out training labels"
    scaled = fitted if results["temperature"] != 1 else "and no temperature brought held-out training labels closer"
    return (
        f"On {results['test_images']} labeled test images. Its probabilities are {error} percentage points off on\n"
        f"average (expected calibration error, 15 bins), {scaled}.\n\n"
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
