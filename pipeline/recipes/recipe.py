"""Recipes: the parameter sets that a workspace can begin with.

``cpu-small`` is ``params.yaml`` as it is. Every other one is a file in ``pipeline/recipes`` with the values that
differ, and with reasons for some of them as comments; ``params.yaml`` alone says what a key means. The comment lines at
its top say where it comes from and what to expect; they become the top of the workspace's file.
"""

import re
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

FOLDER = Path(__file__).parent
DEFAULT = "cpu-small"
AUTO = "auto"
AUTO_HEADER = """\
# Recipe auto: chosen at the first run, by what the images are and by what this machine can train
# Source: the images in retraining.sources, looked at by the first `simclr run`, which then replaces this file and says
# why. To choose yourself, change the values, which are those of cpu-small, and remove these lines.
"""


def recipes() -> list[str]:
    """Names, the one that is chosen by the images first."""
    return [AUTO, DEFAULT, *sorted(path.stem for path in FOLDER.glob("*.yaml"))]


def is_auto(params: str) -> bool:
    """Whether the text of a params.yaml is still to be chosen."""
    return params.startswith(AUTO_HEADER.partition("\n")[0])


def summaries(base: str) -> dict[str, str]:
    """A line about each recipe, from the first line of its file; ``base`` is the text of ``params.yaml``."""
    texts = {AUTO: AUTO_HEADER, DEFAULT: base}
    texts |= {name: _read(name) for name in recipes() if name not in texts}
    return {name: text.split("\n", 1)[0].removeprefix(f"# Recipe {name}: ") for name, text in texts.items()}


def params_of(name: str, base: str) -> str:
    """The text of ``params.yaml`` for a recipe."""
    if name == DEFAULT:
        return base
    if name == AUTO:
        return AUTO_HEADER + _without_header(base)
    return overlay(base, _read(name), keep_meanings=True)


def overlay(base: str, recipe: str, keep_meanings: bool = False) -> str:
    """The text of a params.yaml with the values and the comments of a recipe in place of those that it has.

    Args:
        keep_meanings: leave what a comment says first, up to a colon or semicolon, before that of the recipe.
    """
    yaml = round_trip()
    document, changes = yaml.load(_without_header(base)), _without_header(recipe)
    _overlay(document, yaml.load(changes), keep_meanings)
    content = StringIO()
    yaml.dump(document, content)
    return recipe.removesuffix(changes) + content.getvalue()


def round_trip() -> YAML:
    """A reader and writer that keeps comments, quotes and lines as they are."""
    yaml = YAML()
    yaml.width = 120
    yaml.preserve_quotes = True
    yaml.representer.add_representer(type(None), _null)
    return yaml


def _null(representer: Any, _: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")  # ruamel's own way is to write nothing


def _read(name: str) -> str:
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def _without_header(text: str) -> str:
    lines = text.splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "".join(lines[first:])


def _overlay(document: CommentedMap, values: CommentedMap, keep_meanings: bool) -> None:
    """Replace the values of ``document`` by those of ``values``, block by block; ``{...}`` counts as one value."""
    for key, value in values.items():
        assert key in document, key
        if isinstance(value, CommentedMap) and not value.fa.flow_style():
            _overlay(document[key], value, keep_meanings)
        else:
            document[key] = value
            if key in values.ca.items:
                _replace_comment(document, key, values.ca.items[key][2], keep_meanings)


def _replace_comment(document: CommentedMap, key: str, comment: Any, keep_meaning: bool) -> None:
    """The comment behind the value; what follows it in the file up to the next key, such as an empty line, stays."""
    line = comment.value.split("\n", 1)[0]
    tokens = document.ca.items.get(key)
    if tokens is None:
        document.yaml_add_eol_comment(line, key, column=comment.start_mark.column)
    else:
        if keep_meaning:
            meaning = re.split("[:;\n]", tokens[2].value)[0]
            line = f"{meaning}; {line.removeprefix('# ')}"
        tokens[2].value = line + "".join(tokens[2].value.partition("\n")[1:])
        tokens[2].start_mark = comment.start_mark
