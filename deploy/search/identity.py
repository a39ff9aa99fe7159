"""Which encoder made vectors: only those of the same encoder and variant can be compared."""

from deploy.encoder import Encoder
from deploy.errors import ArgumentError, IndexMismatchError
from deploy.search.arrays import is_text


def identity_of(encoder: Encoder | str) -> tuple[str, str | None]:
    """Return the id and the name of an encoder; without a name if only the id is given.

    Raises:
        ArgumentError: it is neither.
    """
    if isinstance(encoder, Encoder):
        return encoder.id, encoder.info["name"]
    if not isinstance(encoder, str) or not encoder or not is_text(encoder):
        raise ArgumentError(f"encoder={encoder!r:.80}; give the Encoder that made the vectors, or its id")
    return encoder, None


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
