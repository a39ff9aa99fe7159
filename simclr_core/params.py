"""params.yaml: one block for each stage, read into a frozen typed model.

Unknown keys, missing blocks and values out of range are reported all at once, each with the key, the given value and
what is allowed. Numbers follow YAML 1.2, as in DVC, so that ``1e-6`` is a number and not a word.
"""

import re
from collections.abc import Hashable, Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from deploy.failure import ADVICE, one_line
from simclr_core.errors import ConfigError

RESTORE = (
    "in a workspace, restore it with `git checkout params.yaml`, or copy that of a new workspace: `simclr init DIR`"
)


class Block(BaseModel):
    """Base of every block: frozen, no unknown keys, no silent conversion (``"3"`` or ``true`` is not a 3).

    One that ``may_be_missing`` came later, and a file without it has its defaults.
    """

    may_be_missing: ClassVar[bool] = False

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Block)


def read_block(params: Path, block: str, model: type[Model]) -> Model:
    """Read one block of ``params.yaml``.

    Raises:
        ConfigError: with every fault of the block, in ``faults`` and in the message.
    """
    found = read_blocks(params, {block: model})[block]
    assert isinstance(found, model)
    return found


def read_blocks(params: Path, models: Mapping[str, type[Block]]) -> dict[str, Block]:
    """Read several blocks of ``params.yaml``, each as its model.

    Raises:
        ConfigError: with every fault of every block, in ``faults`` and in the message.
    """
    given = _load(params)
    blocks: dict[str, Block] = {}
    faults: list[str] = []
    for name, model in models.items():
        if name not in given and not model.may_be_missing:
            found = ", ".join(map(str, given)) or "none"
            faults.append(f"no block {name!r} (found: {found}); add '{name}: {{}}' for the defaults")
            continue
        try:
            blocks[name] = model.model_validate({} if given.get(name) is None else given[name])
        except ValidationError as error:
            faults += [_fault(name, detail, model) for detail in error.errors()]
    if faults:
        raise ConfigError(params, faults)
    return blocks


def read_file(path: Path, model: type[Model], advice: str) -> Model:
    """Read a whole file, not params.yaml, as one model; one of comments alone has all defaults.

    Args:
        advice: what to do where it is not there.

    Raises:
        ConfigError: with every fault of the file.
    """
    try:
        return model.model_validate(_load(path, advice, empty={}))
    except ValidationError as error:
        raise ConfigError(path, [_fault("", detail, model) for detail in error.errors()]) from None


@lru_cache(maxsize=4)
def _parse(text: str) -> Any:
    """By content, so that a process parses a file once however often it asks, and never sees a stale one."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)


def flatten(value: Any, separator: str = ".", name: str = "") -> Iterator[tuple[str, Any]]:
    """What nested mappings hold, each value named by the keys that lead to it: ``pretrain.queue.size``."""
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, inner in value.items():
        yield from flatten(inner, separator, f"{name}{separator}{key}" if name else str(key))


def _load(params: Path, without: str = RESTORE, empty: dict[Hashable, Any] | None = None) -> dict[Hashable, Any]:
    try:
        blocks = _parse(params.read_text(encoding="utf-8"))
        blocks = empty if blocks is None else blocks
    except FileNotFoundError:
        raise ConfigError(params, [f"no such file; {without}"]) from None
    except OSError as error:
        advice = ADVICE.get(error.errno, "correct that")
        raise ConfigError(params, [f"cannot be read ({error.strerror}); {advice}"]) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(params, [f"cannot be read as YAML: {one_line(error)}"]) from None
    if not isinstance(blocks, dict):
        raise ConfigError(
            params, [f"is {_shown(blocks)}; must map stages to parameters, such as 'pretrain: {{epochs: 9}}'"]
        )
    return blocks


def _fault(block: str, detail: ErrorDetails, model: type[Block]) -> str:
    key = ".".join([*filter(None, [block]), *map(str, detail["loc"])])
    if detail["type"] == "extra_forbidden":
        known = _keys(model, detail["loc"][:-1])
        close = get_close_matches(str(detail["loc"][-1]), known, n=1)
        advice = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}"
        return f"{key}: unknown key; {advice}"
    allowed = re.sub(r"^(Input should be|Value error,) ", "", detail["msg"])
    if detail["type"] in ("model_type", "model_attributes_type"):
        allowed = "a mapping of keys to values"
    if detail["type"] == "tuple_type":
        allowed = "a list"
    if detail["type"] == "too_short":
        allowed = f"a list of at least {detail['ctx']['min_length']}"
    if detail["type"] == "value_error" and isinstance(detail["input"], dict):  # a rule over several keys, named in it
        return f"{key}: must have {allowed}"
    return f"{key}: given {_shown(detail['input'])}, allowed: {allowed}"


def _keys(model: type[Block], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the (possibly nested) block at this location has."""
    for name in location:
        annotation = next(one.annotation for key, one in _fields(model) if key == name)
        nested = next((kind for kind in get_args(annotation) if kind is not type(None)), annotation)  # of ``X | None``
        assert isinstance(nested, type)
        assert issubclass(nested, Block)
        model = nested
    return [key for key, _ in _fields(model)]


def _fields(model: type[Block]) -> Iterator[tuple[str, FieldInfo]]:
    """The fields by the names that they have in the file."""
    return ((field.alias or name, field) for name, field in model.model_fields.items())


def _shown(value: object) -> str:
    """As a person writes it into the file; text in quotes."""
    text = repr(value) if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10**6)
    text = text.removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= 60 else f"{text[:57]}..."


try:
    from yaml import CSafeLoader as _SafeLoader  # libyaml: ten times as fast
except ImportError:
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]


class _Loader(_SafeLoader):
    """Safe YAML with the numbers of version 1.2, which refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"the key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_EXPONENT = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")  # YAML 1.1 wants a point and a sign: 1.0e-6
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
