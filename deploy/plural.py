"""A number with its noun: "1 batch", "2,000 batches"."""


def counted(number: int, noun: str) -> str:
    """``number`` and ``noun``, which is given in the singular; the regular plural where the number asks for it."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """The regular plural of the last word of ``noun``."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"
