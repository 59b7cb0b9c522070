"""The frames of DICOM images: what their values mean and where they lie, and whether they make one volume."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ConfigError
from worker.data.sources import shown

if TYPE_CHECKING:
    from pydicom import Dataset

_PLACES = {
    "ImagePositionPatient": ("PlanePositionSequence",),
    "ImageOrientationPatient": ("PlaneOrientationSequence",),
    "PixelSpacing": ("PixelMeasuresSequence",),
    "SliceThickness": ("PixelMeasuresSequence",),
    "SpacingBetweenSlices": ("PixelMeasuresSequence",),
}
_SCALE = {
    "RescaleSlope": ("PixelValueTransformationSequence",),
    "RescaleIntercept": ("PixelValueTransformationSequence",),
    "RescaleType": ("PixelValueTransformationSequence",),
}
_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence", "XRay3DFrameTypeSequence")
_MEANING: Mapping[str, tuple[str, ...]] = {
    "Modality": (),
    "PhotometricInterpretation": (),
    "Units": (),
    "SUVType": (),
    "DecayCorrection": (),
    "KVP": ("CTXRayDetailsSequence",),
    "ConvolutionKernel": ("CTReconstructionSequence",),
    "MonoenergeticEnergyEquivalent": ("MultienergyCTCharacteristicsSequence", "CTAdditionalXRaySourceSequence"),
    "EchoTime": (),
    "EchoNumbers": (),
    "EffectiveEchoTime": ("MREchoSequence",),
    "InversionTime": (),
    "InversionTimes": ("MRModifierSequence",),
    "FlipAngle": ("MRTimingAndRelatedParametersSequence",),
    "DiffusionBValue": ("MRDiffusionSequence",),
    "TemporalPositionIdentifier": (),
    "TemporalPositionIndex": ("FrameContentSequence",),
    "ComplexImageComponent": _TYPES,
    "FrameType": _TYPES,
    "SliceThickness": ("PixelMeasuresSequence",),
}
"""What has to be the same in all slices of a volume, and the functional groups that hold it."""
PRIVATE = {0x0019100C: "b-value", 0x00431039: "b-value", 0x20011003: "b-value"}
"""Where Siemens, GE and Philips put what the standard calls DiffusionBValue."""
_TECHNIQUE = "VolumeBasedCalculationTechnique"
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID"),
    *("ImageType", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit"),
    *("NumberOfSlices", "NumberOfTimeSlices", "InConcatenationTotalNumber"),
    *("RealWorldValueMappingSequence", "ModalityLUTSequence", _TECHNIQUE),
    *(*_PLACES, *_SCALE, *_MEANING, *_GROUPS),
)
"""What is read of a file before its pixels are."""
_UNITS = frozenset({"CT", "PT"})
"""Modalities whose rescaled values are in units that the standard or `Units` says."""
_UNSPECIFIED = frozenset({"", "US"})
_UNEVEN, _UNEVEN_MM = 0.01, 0.01
"""By how much steps between slices may differ: a part of the step, or millimetres of rounding."""
_TURNED, _CROSSED = 1e-3, 0.3
"""By how much directions may differ; and the cosine between slices that lie across one another."""
_MOST_DIRECTIONS = 12
SCOUTS = 3
"""So many slices, at most, lie across others only to show where those were planned."""
_WHOLE = 0.05
_DIGITS = 4
Header = Mapping[str | int, Any]  # values of a DICOM file, which have whatever type their tag says
Value = str | float | tuple["Value", ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One plane of pixels in a file."""

    index: int
    """Which one of its file."""
    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    thickness: float | None = None
    between: float | None = None
    slope: float | None = None
    intercept: float | None = None
    units: str = ""
    space: str = ""
    meaning: Mapping[str, Value] = field(default_factory=dict)

    @property
    def values_in(self) -> str:
        """In which units the values say they are; nothing if they do not."""
        units = str(self.meaning.get("Units") or self.units)
        return "" if units in _UNSPECIFIED else units

    @property
    def normal(self) -> NDArray[np.float64]:
        """The direction across the plane."""
        turn = np.array(self.orientation, float)
        return np.cross(turn[:3], turn[3:])


def frames_of(header: Dataset) -> tuple[Frame, ...]:
    """The frames of a file, as each says of itself, or its functional groups say for it."""
    values = {element.keyword or int(element.tag): element.value for element in header}
    return tuple(_frame(values, index) for index in range(int(str(values.get("NumberOfFrames") or 1))))


def image_types(header: Dataset) -> tuple[list[str], str]:
    """The words of an object's ImageType and of its first frame's, and how it was calculated of a volume."""
    values: Header = {name: header.get(name) for name in ("ImageType", "FrameType", _TECHNIQUE, *_GROUPS)}
    found = [_words(values["ImageType"]), _words(_value(values, 0, "FrameType", _TYPES))]
    return [*found[0], *found[1][2:]], str(_value(values, 0, _TECHNIQUE, _TYPES) or "")


def is_functional(header: Dataset) -> bool:
    """Whether an object describes its frames in functional groups, as enhanced ones do also with a single frame."""
    return any(group in header for group in _GROUPS)


def _frame(header: Header, index: int) -> Frame:
    def numbers(name: str, count: int) -> tuple[float, ...] | None:
        value = _value(header, index, name, _PLACES[name])
        if not isinstance(value, Sequence) or len(value) != count:
            return None
        return tuple(map(float, value))

    def number(name: str) -> float | None:
        value = _value(header, index, name, {**_PLACES, **_SCALE}[name])
        return None if value in (None, "") else float(str(value))

    meaning = {name: _plain(_value(header, index, name, groups)) for name, groups in _MEANING.items()}
    meaning |= {name: _plain(header[tag]) for tag, name in PRIVATE.items() if tag in header}
    meaning["ImageType"] = tuple(word for word in _words(header.get("ImageType"))[2:] if not word.isdecimal())
    slope, intercept = number("RescaleSlope"), number("RescaleIntercept")
    meaning["RealWorldValueMappingSequence"] = _real_world(header, index, slope, intercept)
    meaning["ModalityLUTSequence"] = _lookup(header)
    meaning["RescaleType"] = _plain(_value(header, index, "RescaleType", _SCALE["RescaleType"]))
    return Frame(
        index=index,
        position=numbers("ImagePositionPatient", 3),
        orientation=numbers("ImageOrientationPatient", 6),
        spacing=numbers("PixelSpacing", 2),
        thickness=number("SliceThickness"),
        between=number("SpacingBetweenSlices"),
        slope=slope,
        intercept=intercept,
        units=str(meaning["RescaleType"] or ""),
        space=str(header.get("FrameOfReferenceUID") or ""),
        meaning=meaning,
    )


def _value(header: Header, index: int, name: str, groups: Sequence[str]) -> object:
    """A value of one frame: its own group's, else the shared group's, else the file's."""
    own, shared = header.get(_GROUPS[1]), header.get(_GROUPS[0])
    for of_all, number in ((own, index), (shared, 0)):
        if of_all and number < len(of_all):
            for group in groups:
                held = of_all[number].get(group)
                if held and held[0].get(name) is not None:
                    return held[0].get(name)
    return header.get(name)


def _real_world(header: Header, index: int, slope: float | None, intercept: float | None) -> Value:
    """How a vendor's own units follow from the rescaled values; the same in slices that are each scaled differently."""
    own, shared = header.get(_GROUPS[1]), header.get(_GROUPS[0])
    name, found = "RealWorldValueMappingSequence", None
    for of_all, number in ((own, index), (shared, 0)):
        if found is None and of_all and number < len(of_all):
            found = of_all[number].get(name)
    mapped: list[Value] = []
    for each in found or header.get(name) or ():
        steep, base = each.get("RealWorldValueSlope"), each.get("RealWorldValueIntercept")
        units = [str(unit.get("CodeValue") or "") for unit in each.get("MeasurementUnitsCodeSequence") or ()]
        if steep is None:
            mapped.append((str(each.get("LUTLabel") or ""), *units))
            continue
        ratio = float(steep) / (slope or 1.0)
        mapped.append((_plain(ratio), _plain(float(base or 0) - ratio * (intercept or 0.0)), *units))
    return tuple(mapped) or None


def _lookup(header: Header) -> Value:
    """A table by which stored numbers become values, as a number of its own."""
    told = [f"{each.get('LUTDescriptor')} {each.get('LUTData')}" for each in header.get("ModalityLUTSequence") or ()]
    return hashlib.sha256("".join(told).encode()).hexdigest()[:8] if told else None


def _words(value: object) -> list[str]:
    parts = [value] if isinstance(value, str) else value
    return [str(part).strip().upper() for part in parts] if isinstance(parts, Sequence) else []


def _plain(value: object) -> Value:
    """A value that can be compared and shown: numbers without rounding of their last digits, words in capitals."""
    if value is None or value == "":
        return None
    if isinstance(value, bytes):
        return value[:16].hex()
    if isinstance(value, int | float):
        return float(f"{float(value):.{_DIGITS}g}")
    if isinstance(value, str):
        return value.strip().upper()
    if isinstance(value, Sequence):
        return tuple(map(_plain, value))
    return str(value)


# ---- whether they make one volume


def are_crossed(frames: Sequence[Frame]) -> bool:
    """Whether planes lie across one another, each of some to each of the others, as a localiser's do."""
    if any(frame.orientation is None for frame in frames):
        return False
    directions = np.unique([np.round(frame.normal, 3) for frame in frames], axis=0)
    if len(directions) < 2 or len(directions) > _MOST_DIRECTIONS:
        return False
    cosines = np.abs(directions @ directions.T)[np.triu_indices(len(directions), 1)]
    parallel, across = cosines > 1 - _TURNED, cosines < _CROSSED
    return bool(across.any() and (parallel | across).all())


def are_scouts(frames: Sequence[Frame], others: Sequence[Frame]) -> bool:
    """Whether a few planes lie across many others of the same space: they show where those were planned."""
    if len(frames) > SCOUTS or any(frame.orientation is None for frame in frames):
        return False
    planned = [frame for frame in others if frame.orientation is not None]
    cosines = np.abs(np.array([f.normal for f in frames]) @ np.array([f.normal for f in planned]).T)
    return bool((cosines < _CROSSED).sum(axis=1).min() > SCOUTS)


def check_frames(name: str, frames: Sequence[Frame]) -> None:
    """Let the frames of a series pass that are one volume, with values that mean the same everywhere.

    Raises:
        ConfigError: they are not; says why, and what to do.
    """
    _check_meaning(name, frames)
    _check_scale(name, frames)
    _check_planes(name, frames)
    if len(frames) > 1:
        _check_places(name, frames)


def stacked(frames: Sequence[Frame]) -> tuple[list[int], NDArray[np.float64]]:
    """The order of the slices of a volume, and its matrix from (column, row, slice) to millimetres as DICOM has them.

    Slices run against the normal of their planes, so that with rows and columns they are a right-handed system.
    """
    first = frames[0]
    places, normal = np.array([frame.position for frame in frames], float), first.normal
    along = places @ normal
    order = np.argsort(-along, kind="stable")
    turn, spacing = np.array(first.orientation, float).reshape(2, 3), first.spacing or (1.0, 1.0)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = turn[0] * spacing[1], turn[1] * spacing[0]
    if len(frames) > 1:
        matrix[:3, 2] = -normal * (along.max() - along.min()) / (len(frames) - 1)
    else:
        matrix[:3, 2] = -normal * (first.thickness or abs(first.between or 0.0) or 1.0)
    matrix[:3, 3] = places[order[0]]
    return [int(index) for index in order], matrix


def _check_meaning(name: str, frames: Sequence[Frame]) -> None:
    for tag in {**frames[0].meaning, **frames[-1].meaning}:
        found = list(dict.fromkeys(frame.meaning.get(tag) for frame in frames))
        if len(found) > 1:
            told = " and ".join("none" if value is None else str(value) for value in found[:2])
            raise ConfigError(
                f"{shown(name)}: the slices of this series differ in {tag} ({shown(told)}), so their values do not "
                "mean the same; export each kind as a series of its own, or leave it out"
            )


def _check_scale(name: str, frames: Sequence[Frame]) -> None:
    """Let slices be scaled differently where they say in which units they are then the same."""
    for tag, values in (
        ("RescaleSlope", {f.slope for f in frames}),
        ("RescaleIntercept", {f.intercept for f in frames}),
    ):
        if None in values and len(values) > 1:
            raise ConfigError(
                f"{shown(name)}: some slices of this series have no {tag} and the others have one; export it again"
            )
        wrong = [value for value in values if value is not None and not np.isfinite(value)]
        if wrong or (tag == "RescaleSlope" and 0.0 in values):
            raise ConfigError(f"{shown(name)}: a {tag} of this series is 0 or no number; export it again")
    known = frames[0].meaning.get("Modality") in _UNITS or frames[0].units not in _UNSPECIFIED
    if not known and len({(frame.slope, frame.intercept) for frame in frames}) > 1:
        raise ConfigError(
            f"{shown(name)}: the slices of this series differ in RescaleSlope or RescaleIntercept and do not say in "
            "which units they are then the same (RescaleType); export it without scaling, or leave it out"
        )


def _check_planes(name: str, frames: Sequence[Frame]) -> None:
    """Refuse planes that do not all lie in one direction and one space, with pixels of one size."""
    several = len(frames) > 1
    if any(frame.position is None for frame in frames):
        raise ConfigError(f"{shown(name)}: some slices of this series do not say where they lie; export it again")
    if any(frame.orientation is None for frame in frames):
        raise ConfigError(f"{shown(name)}: the slices do not say which way they look; export the series again")
    turns, places = np.array([f.orientation for f in frames], float), np.array([f.position for f in frames], float)
    sides = np.stack([(turns[:, :3] ** 2).sum(1), (turns[:, 3:] ** 2).sum(1), (turns[:, :3] * turns[:, 3:]).sum(1)])
    if not np.isfinite(places).all() or not np.abs(sides - [[1], [1], [0]]).max() < 10 * _TURNED:
        raise ConfigError(f"{shown(name)}: the slices say no direction or place that can be; export the series again")
    if np.ptp(turns, axis=0).max() > _TURNED:
        raise ConfigError(f"{shown(name)}: the slices look in different directions, as a localiser's do; leave it out")
    sizes = [frame.spacing for frame in frames]
    if not all(size is not None and min(size) > 0 and np.isfinite(size).all() for size in sizes):
        raise ConfigError(f"{shown(name)}: the slices do not say how large a pixel is; export the series again")
    grid = np.array(sizes, float)
    if (np.ptp(grid, axis=0) > _TURNED * grid.min(axis=0)).any():
        raise ConfigError(f"{shown(name)}: the slices of this series have pixels of different sizes; export it again")
    if several and (missing := [frame for frame in frames if not frame.space]):
        raise ConfigError(
            f"{shown(name)}: FrameOfReferenceUID is missing in {len(missing)} of {len(frames)} slices, which says that "
            "they share one space; export the series again"
        )
    if len({frame.space for frame in frames}) > 1:
        raise ConfigError(f"{shown(name)}: the slices of this series lie in different spaces; export each by itself")


def _check_places(name: str, frames: Sequence[Frame]) -> None:
    """Refuse slices in the same place, with uneven steps, or that drift sideways by more than half a pixel."""
    places, normal = np.array([frame.position for frame in frames], float), frames[0].normal
    along = np.sort(places @ normal)
    steps = np.diff(along)
    usual = float(np.median(steps))
    if steps.min() <= _UNEVEN_MM:
        raise ConfigError(
            f"{shown(name)}: several slices lie in the same place (a series in time, or files twice); "
            "export one point in time as a series of its own"
        )
    if np.ptp(steps) > max(_UNEVEN_MM, _UNEVEN * usual):
        widest = int(steps.argmax())
        raise ConfigError(
            f"{shown(name)}: slices are missing or unevenly spaced (behind slice {widest + 1} of {len(places)} come "
            f"{steps[widest]:.4g} mm, elsewhere {usual:.4g} mm); export the whole series again"
        )
    said = max((abs(frame.between or 0.0) for frame in frames), default=0.0)
    if said and said >= (frames[0].thickness or said) * (1 - _UNEVEN):  # else it is the gap, as some write it
        times = usual / said
        if times > 2 - _WHOLE and abs(times - round(times)) < _WHOLE:
            raise ConfigError(
                f"{shown(name)}: slices are missing (they lie {usual:.4g} mm apart, and SpacingBetweenSlices says "
                f"{said:.4g} mm); export the whole series again"
            )
    pixel = min(frames[0].spacing or (1.0,))
    if np.ptp(places - np.outer(places @ normal, normal), axis=0).max() > pixel / 2:
        raise ConfigError(
            f"{shown(name)} was taken with a tilted gantry; have it straightened where it was made, or leave it out"
        )
