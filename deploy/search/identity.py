"""Which encoder made vectors: only those of the same encoder and variant can be compared."""

from deploy.encoder import Encoder
from deploy.errors import IndexMismatchError


def identity_of(encoder: Encoder | str) -> tuple[str, str | None]:
    """Return the id and the name of an encoder; without a name if only the id is given."""
    return (encoder.id, encoder.info["name"]) if isinstance(encoder, Encoder) else (encoder, None)


def check_same_encoder(what: str, made: str, given: str) -> None:
    """Check two encoder ids; ``what`` names the object in the message.

    Raises:
        IndexMismatchError: the ids differ.
    """
    if made != given:
        raise IndexMismatchError(
            f"{what}: made by encoder {_short(made)}, not {_short(given)}; use that encoder, or embed and index again"
        )


def _short(identity: str) -> str:
    bundle, colon, variant = identity.partition(":")
    return bundle[:12] + colon + variant
