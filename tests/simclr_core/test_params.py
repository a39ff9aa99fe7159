"""What reads params.yaml, apart from the models of its blocks."""

from simclr_core.params import flatten


def test_nested_mappings_are_flattened_and_lists_are_values() -> None:
    nested = {"pretrain": {"queue": {"size": 8}, "resize": None}, "seeds": [0, 1], "empty": {}, 1: {2: 3}}
    assert dict(flatten(nested)) == {"pretrain.queue.size": 8, "pretrain.resize": None, "seeds": [0, 1], "1.2": 3}
    assert dict(flatten(nested["pretrain"], separator="/")) == {"queue/size": 8, "resize": None}
