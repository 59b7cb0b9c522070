"""What a DICOM object is, by its SOP class and ImageType: an image of the patient, or what lies beside images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum


class Beside(Enum):
    """What is left out; the value is how it is called where it is counted."""

    LOCALIZER = "localizers"
    DERIVED = "derived images"
    """Projections, renderings, reformats: made of images that lie beside them."""
    RAW = "raw films beside those made of them"
    SECONDARY_CAPTURE = "secondary captures"
    SCREEN = "dose screens and screenshots"
    DOSE = "dose reports"
    REPORT = "structured reports"
    SELECTION = "key object selections"
    PRESENTATION = "presentation states"
    DOCUMENT = "encapsulated documents"
    RADIOTHERAPY = "radiotherapy objects"
    SEGMENTATION = "segmentations, registrations and raw data"
    MAP = "parametric maps"
    WAVEFORM = "waveforms and spectra"
    COLOURED = "slices in colour"
    """Maps and fusions: no scanner measures colours."""
    NO_PLACE = "slices that do not say where they lie"
    NO_PIXELS = "DICOM objects without pixels"
    DIRECTORY = "DICOM directories"


TAKEN = {
    each.name.lower().replace("_", "-"): each for each in (Beside.LOCALIZER, Beside.DERIVED, Beside.SECONDARY_CAPTURE)
}
"""What is taken for images where somebody asks for it, by the name that they say."""

_STORAGE = "1.2.840.10008.5.1.4.1.1"
_CLASSES = {
    "1.2.840.10008.1.3.10": Beside.DIRECTORY,
    f"{_STORAGE}.4.2": Beside.WAVEFORM,
    f"{_STORAGE}.7": Beside.SECONDARY_CAPTURE,
    f"{_STORAGE}.9": Beside.WAVEFORM,
    f"{_STORAGE}.11": Beside.PRESENTATION,
    f"{_STORAGE}.30": Beside.MAP,
    f"{_STORAGE}.66": Beside.SEGMENTATION,
    f"{_STORAGE}.67": Beside.PRESENTATION,
    f"{_STORAGE}.68": Beside.SEGMENTATION,
    f"{_STORAGE}.88": Beside.REPORT,
    f"{_STORAGE}.88.59": Beside.SELECTION,
    **{f"{_STORAGE}.88.{number}": Beside.DOSE for number in (67, 68, 73, 76)},
    f"{_STORAGE}.104": Beside.DOCUMENT,
    f"{_STORAGE}.481": Beside.RADIOTHERAPY,
}
"""By SOP class, or the beginning of a family of them."""
_MODALITIES = {
    **dict.fromkeys(("RTDOSE", "RTSTRUCT", "RTPLAN", "RTRECORD"), Beside.RADIOTHERAPY),
    "SR": Beside.REPORT,
    "KO": Beside.SELECTION,
    "PR": Beside.PRESENTATION,
    "DOC": Beside.DOCUMENT,
    "SEG": Beside.SEGMENTATION,
    "REG": Beside.SEGMENTATION,
}
_SLICES = frozenset(
    f"{_STORAGE}.{end}" for end in ("2", "2.1", "2.2", "4", "4.1", "4.3", "4.4", "20", "128", "128.1", "130")
)
"""CT, MR, PET and nuclear medicine: their images lie somewhere in the patient."""
_RAW = frozenset(f"{_STORAGE}.{end}" for end in ("1.1.1", "1.2.1", "1.3.1"))
"""Films for processing: what a detector saw, of which those for people are made."""
_LOCALIZER = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVEY"})
_SCREEN = re.compile(r"DOSE|DOSE[_ ](INFO|REPORT)|SCREEN[_ ]?(SAVE|SHOT|CAPTURE)|.* PROT")
_MADE = re.compile(r"MIP|MINIP|MPR|CPR|VRT?|SSD|\w+_IP|\w+_RENDER|\w+_MPR|PROJECTION IMAGE|REFORMATTED|VOLUME RENDER.*")
"""Words of an ImageType, or of the technique by which a volume was made an image."""


def beside(
    sop_class: str,
    image_type: Sequence[str],
    *,
    modality: str = "",
    technique: str = "",
    pixels: bool = True,
    grey: bool = True,
) -> Beside | None:
    """What an object is if it is no image of the patient; None if it is one.

    Args:
        image_type: of the object and of its frames.
        technique: how it was calculated of a volume (VolumeBasedCalculationTechnique).
        pixels: whether it has rows and columns.
        grey: whether those are grey values.
    """
    words = [word.strip().upper() for word in image_type]
    if (kind := _by_class(sop_class) or _MODALITIES.get(modality.upper())) is not None:
        return kind
    if not pixels:
        return Beside.NO_PIXELS
    if _LOCALIZER & set(words):
        return Beside.LOCALIZER
    if any(_SCREEN.fullmatch(word) for word in words):
        return Beside.SCREEN
    if not grey and is_slice(sop_class):
        return Beside.COLOURED
    if any(_MADE.fullmatch(word) for word in (*words[2:], technique.upper())):
        return Beside.DERIVED
    return None


def is_secondary(sop_class: str, image_type: Sequence[str]) -> bool:
    """Whether slices say that they were made of others later on; what they are depends on whether those are there."""
    return is_slice(sop_class) and [word.strip().upper() for word in image_type[:2]] == ["DERIVED", "SECONDARY"]


def is_raw(sop_class: str) -> bool:
    """Whether films of this class are not made to be looked at."""
    return sop_class in _RAW


def is_slice(sop_class: str) -> bool:
    """Whether images of this class are slices, which have a place in the patient."""
    return sop_class in _SLICES


def _by_class(sop_class: str) -> Beside | None:
    parts = sop_class.split(".")
    return next((kind for end in range(len(parts), 0, -1) if (kind := _CLASSES.get(".".join(parts[:end])))), None)
