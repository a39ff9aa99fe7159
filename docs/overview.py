"""Draws docs/images/overview.png, the graph and what comes out of it, from a finished demo:

python docs/overview.py demo
"""

import sys
from itertools import pairwise
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt
import yaml
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parents[1]
# Columns from left to right; names after the first two and before the last are stages of dvc.yaml.
COLUMNS = (
    (("inbox", "raw images"),),
    (("validate", "good or bad file, and why"),),
    (("prepare", "upright, RGB, in shards"),),
    (("pretrain", "SimCLR, no labels"),),
    (("linear_eval", "probe, kNN"), ("finetune", "1 %, 10 % of labels")),
    (("export", "ONNX, int8"),),
    (("compare", "with the released one"),),
    (("registry", "served by onnxruntime"),),
)
# After which stages there are gates.
GATES = {
    "validate": "data contract",
    "pretrain": "not collapsed",
    "export": "same vectors",
    "compare": "better than random, pixels,\nand no worse than the champion",
}
STAGE, GATE, ARROW = "#dbe9f6", "#1a9641", "#555555"
WIDTH, GAP, HEIGHT = 1.7, 0.45, 0.62


def read_stages() -> dict[str, set[str]]:
    """The stages of dvc.yaml, and what each makes."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    made = {name: [*stage.get("outs", ()), *stage.get("metrics", ())] for name, stage in stages.items()}
    return {
        name: {path for one in entries for path in ([one] if isinstance(one, str) else one)}
        for name, entries in made.items()
    }


def draw_graph(axes: Axes) -> None:
    """The stages as boxes, the gates between them as green words, and the loop that new images close."""
    middles = []
    for number, column in enumerate(COLUMNS):
        left = number * (WIDTH + GAP)
        heights = [0.0] if len(column) == 1 else [0.42, -0.42]
        for height, (name, words) in zip(heights, column, strict=True):
            box = FancyBboxPatch((left, height - HEIGHT / 2), WIDTH, HEIGHT, "round,pad=0.04", fc=STAGE, ec=ARROW)
            axes.add_patch(box)
            axes.text(left + WIDTH / 2, height + 0.11, name, ha="center", va="center", fontsize=11, weight="bold")
            axes.text(left + WIDTH / 2, height - 0.14, words, ha="center", va="center", fontsize=8)
        for words in [GATES[name] for name, _ in column if name in GATES]:
            axes.text(left + WIDTH + GAP / 2, -0.95, words, ha="center", va="top", fontsize=8.5, color=GATE)
            axes.plot([left + WIDTH + GAP / 2] * 2, [-0.9, -0.12], color=GATE, linewidth=1.5, linestyle=":")
        middles.append((left, heights))
    for (left, heights), (right, others) in pairwise(middles):
        for start in heights:
            for end in others:
                points = ((left + WIDTH + 0.04, start), (right - 0.04, end))
                axes.add_patch(FancyArrowPatch(*points, arrowstyle="-|>", mutation_scale=12, color=ARROW))
    loop = ((middles[-1][0] + WIDTH / 2, 0.4), (middles[0][0] + WIDTH / 2, 0.4))
    axes.add_patch(
        FancyArrowPatch(*loop, connectionstyle="arc3,rad=0.09", arrowstyle="-|>", mutation_scale=14, color=ARROW)
    )
    words = "new images: train again; release what is better; roll back in seconds"
    axes.text((loop[0][0] + loop[1][0]) / 2, 1.16, words, ha="center", fontsize=10, color=ARROW)
    axes.set_xlim(-0.15, middles[-1][0] + WIDTH + 0.15)
    axes.set_ylim(-1.35, 1.55)
    axes.axis("off")


def draw_result(axes: Axes, demo: Path) -> None:
    """Four test images of the demo, each with the training images that the encoder finds most similar."""
    picture = matplotlib.image.imread(demo / "reports" / "neighbours.png")
    row = picture.shape[0] / 8
    rows = [picture[int((number + 0.03) * row) : int((number + 0.99) * row)] for number in (0, 2, 4, 5)]
    middle = picture.shape[1]
    for number, image in enumerate(rows):
        x, y = number % 2, number // 2
        axes.imshow(image, extent=(x * middle * 1.02, x * middle * 1.02 + middle, -(y + 1) * row, -y * row))
    axes.set_xlim(0, middle * 2.02)
    axes.set_ylim(-2 * row, 0)
    words = "test images, and the training images that the encoder, which saw no label, finds most similar"
    axes.set_title(words, fontsize=10)
    axes.axis("off")


def main(demo: Path) -> None:
    figure, (graph, result) = plt.subplots(
        2, 1, figsize=(15, 6), height_ratios=(1.25, 1), dpi=110, layout="constrained"
    )
    draw_graph(graph)
    draw_result(result, demo)
    figure.savefig(ROOT / "docs" / "images" / "overview.png", metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
