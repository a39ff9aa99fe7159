"""The facts about one content: what ``probe`` measures, ``verdict`` judges and the manifest keeps."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Facts:
    """None means that the file could not be read far enough to know.

    Statistics are of the canonical image reduced to at most 256 pixels a side, so that large and small images compare.
    """

    sha256: str
    size_bytes: int
    container: str  # by its signature: see ``container.sniff``
    decodes: bool
    reason: str | None = None  # why there are no pixels: one of ``verdict.REASONS``
    message: str = ""  # the same for a person, with the way out
    format: str | None = None  # as Pillow calls it
    mode: str | None = None  # Pillow's, before conversion
    width: int | None = None  # pixels, upright if it decodes
    height: int | None = None
    frames: int | None = None
    has_alpha: bool | None = None
    has_icc_profile: bool | None = None
    has_gps: bool | None = None
    exif_unreadable: bool | None = None
    trailing_bytes: int | None = None  # behind the end that the container declares
    operations: list[str] = field(default_factory=list)  # what ``deploy.preprocess.canonicalise`` did
    pixel_hash: str | None = None  # 128 bits, of the canonical pixels and their shape
    luma_mean: float | None = None  # 0..255, as all that follow except entropy
    luma_std: float | None = None
    luma_p01: int | None = None  # percentiles
    luma_p05: int | None = None
    luma_p50: int | None = None
    luma_p95: int | None = None
    luma_p99: int | None = None
    entropy: float | None = None  # of the luma histogram, bits
    edge_energy: float | None = None  # mean absolute difference of neighbours in luma
    saturation: float | None = None  # mean of (largest - smallest channel)
    red_mean: float | None = None
    green_mean: float | None = None
    blue_mean: float | None = None
    red_std: float | None = None
    green_std: float | None = None
    blue_std: float | None = None

    @property
    def sides(self) -> tuple[int, int]:
        """The shorter and the longer one, pixels; (0, 0) when unknown."""
        width, height = self.width or 0, self.height or 0
        return min(width, height), max(width, height)

    @property
    def liveliest_std(self) -> float:
        """The largest standard deviation of a channel: a pattern of equally bright colours is content too."""
        return max(self.red_std or 0.0, self.green_std or 0.0, self.blue_std or 0.0)
