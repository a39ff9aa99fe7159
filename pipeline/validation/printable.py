"""Names that strangers gave, such as paths and labels, made fit to be shown."""

import unicodedata


def printable(text: str, limit: int = 200) -> str:
    """``text`` with every character that is not meant to be seen spelled out, such as \\u202e, and cut at ``limit``."""
    hidden = ("C", "Zl", "Zp")  # control, format, surrogate, unassigned; line and paragraph separators
    shown = "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character).startswith(hidden) else character
        for character in text[:limit]
    )
    return shown[:limit] + ("…" if len(text) > limit or len(shown) > limit else "")
