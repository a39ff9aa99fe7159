"""The check of sentences finds what was once shown to people."""

import pytest

from pipeline.gates.verdict import Verdict
from tests.sentences import assert_helpful, assert_plain


@pytest.mark.parametrize(
    "sentence",
    [
        "found 1 batches, put more images into inbox/unlabeled",
        "1,000 images and 1 new images",
        "drift drift: look at the new images",
        "changed {'pretrain': 'modified'}; run again",
        "found ['operations']",
        "no stage 'frobnicate'.; see --help",
        "0.091117, asked for True for 95 %; 7930 against it",
        "found 19.0, required: at least 20",
        "images: Input should be an object",
        "cannot be read: Expecting value: line 1 column 1 (char 0)",
        "removed nothing: ",
        "line 3 is not UTF-8 (b'x'); save it again",
        "4 labels, 1 seeds",
        "cannot be opened ([Errno 40] Too many levels)",
    ],
)
def test_what_is_not_plain_is_found(sentence: str) -> None:
    with pytest.raises(AssertionError, match=r"a |words|one of|doubled|bytes"):
        assert_plain(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "1 does not, 21 images, 1,001 batches, 0.1 points, 1 class, such as 'test/0.png' (cat)",
        "31.0 % to 2.0 points on 1 image, lowest cosine 1.0",
    ],
)
def test_what_is_plain_passes(sentence: str) -> None:
    assert_plain(sentence)


def test_a_refusal_without_a_next_step_is_found() -> None:
    assert_helpful(Verdict(True, "lowest cosine 1.0"))
    assert_helpful(Verdict(False, "the loss rose; lower the learning rate"))
    with pytest.raises(AssertionError, match="no next step"):
        assert_helpful(Verdict(False, "the loss rose"))
