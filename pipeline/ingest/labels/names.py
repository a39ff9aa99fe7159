"""How names compare, of classes, groups, columns, folders and files, and which words say what an image is used for."""

import re
import unicodedata

HELD_OUT = {
    *("test", "testing", "tst", "val", "valid", "validation", "validate"),
    *("eval", "evaluation", "dev", "development", "holdout", "heldout"),
}
"""What is called so is not trained on."""

PERHAPS_HELD_OUT = {"te", "query", "gallery", "oos", "ood", "unseen", "benchmark", "minival"}
"""Of data sets for retrieval and for outliers, and short forms; many folders have such a name for another reason."""

TRAINED = {"train", "training", "trn", "tr", "trainval"}


def clean(label: str) -> str | None:
    """A label without the blanks around it, in the form NFC; None if nothing remains."""
    return unicodedata.normalize("NFC", label.strip()) or None


def unify(text: str) -> str:
    """A text as it compares: without capitals, Unicode forms and letters that cannot be seen."""
    visible = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())


def fold(name: str) -> str:
    """A name as it compares: like ``unify``, and without blanks around it."""
    return unify(name).strip()


def words_of(name: str) -> list[str]:
    """The words of a name, without numbers: ``images-val 2`` → images, val."""
    return re.findall("[a-z]+", fold(name))


def stem(word: str) -> str:
    """A word without what is often added to it: ``testset`` → test."""
    return re.sub("(?<=.)(set|data|images|s)$", "", word)


def is_held_out(name: str) -> bool:
    """Whether a name as a whole says that it is of images that are not trained on.

    >>> is_held_out("hold-out"), is_held_out("test_set"), is_held_out("val2017"), is_held_out("Val d'Isère")
    (True, True, True, False)
    """
    word = "".join(words_of(name))
    return word in HELD_OUT or stem(word) in HELD_OUT
