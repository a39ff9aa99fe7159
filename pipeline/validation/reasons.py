"""The closed vocabulary of validation: why a file is quarantined, and what is worth knowing of one that is used."""

REASONS = {
    "denied": "denied by a person; see overrides.csv",
    "unsafe_path": "its name points outside its folder",
    "io_error": "the file could not be read",
    "empty_file": "no bytes",
    "too_large": "more bytes than max_megabytes",
    "not_an_image": "not an image, despite its name",
    "unsupported_format": "an image in an unsupported format",
    "bomb": "more pixels than max_megapixels",
    "metadata_bomb": "its metadata decompresses to an unreasonable size",
    "truncated": "the file ends too early",
    "corrupt": "damaged inside",
    "suspect_stream": "its pixels decode, but from a damaged stream",
    "unsupported_depth": "pixels whose range is unknown",
    "unsupported_layout": "bands in an arrangement that is not read",
    "wrong_channels": "another number of channels than prepare.channels",
    "fully_transparent": "nothing to see",
    "worker_crash": "its decoder died, twice",
    "timeout": "its decoder did not finish, twice",
    "animated": "several frames",
    "multi_page": "several pages",
    "too_small": "shorter side below min_side",
    "extreme_aspect": "longer over shorter side above max_aspect",
    "narrow_range": "16-bit pixels that use the lowest 12 bits: nearly black",
    "low_information": "one color, or nearly",
    "label_conflict": "the same image under different labels",
    "test_leak": "a training copy, or near copy, of a test image",
    "exact_duplicate": "the same bytes as another file",
    "pixel_duplicate": "the same pixels as another file",
    "near_duplicate": "nearly the same picture as another file",
    "placeholder": 'a flat picture that very many files show, such as "image not available"',
}
"""Every reason for quarantine, and what it means, in the order in which reports list them."""

WARNINGS = {
    "released": "released by a person in spite of a reason; see overrides.csv",
    "near_duplicate": "nearly the same picture as another file that is used",
    "near_label_conflict": "nearly the same picture as another file, which has another label",
    "suspect_stream": "decoded from a damaged stream, kept by validate.suspect_streams",
    "extension_mismatch": "its name says another format; the content decides",
    "trailing_bytes": "bytes after the end of the image",
    "unterminated": "the end marker is missing, although all pixels are there",
    "narrow_range": "16-bit pixels that use the lowest 14 bits: a quarter of the brightness",
    "bands_dropped": "more bands than colors and alpha; the others are not used",
    "color_space_ignored": "its color space, declared without a profile, is not sRGB; not applied",
    "icc_ignored": "a color profile that is damaged, or for another kind of pixels; not used",
    "exif_unreadable": "damaged EXIF block, ignored",
    "gps_present": "the file has a GPS position, which is dropped",
    "elongated": "longer side over four times the shorter",
    "dark": "almost black",
    "light": "almost white",
}
"""What is worth knowing of an accepted image."""

# Thresholds of CleanVision (Apache-2.0) for dark and light images, on 0..1.
DARK_P99, LIGHT_P05 = 0.32, 0.95
ELONGATED = 4.0

RELEASABLE = frozenset([
    "suspect_stream", "animated", "multi_page", "too_small", "extreme_aspect", "narrow_range",
    "low_information",
    "test_leak", "near_duplicate", "placeholder",
])  # fmt: skip
"""The reasons that a person may overrule: there are pixels, and no other file has the very same ones. Of leaks, only
those of nearly the same picture are."""
