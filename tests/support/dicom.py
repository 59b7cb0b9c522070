"""DICOM series as a scanner writes them: oblique slices, one file each, in no order, whole or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

SLOPE, INTERCEPT = 1.0, -1024.0
_TURN, _TIP = np.deg2rad(20), np.deg2rad(15)
ROW = np.array([np.cos(_TURN), np.sin(_TURN), 0.0])
"""Along a row of pixels, in the patient's coordinates (left, posterior, superior)."""
COLUMN = np.array([-np.sin(_TURN) * np.cos(_TIP), np.cos(_TURN) * np.cos(_TIP), np.sin(_TIP)])
ORIGIN = np.array([-31.5, 12.25, -120.0])
SPACING = (0.7, 0.9)
"""Millimetres from one row to the next, and from one column to the next."""
THICKNESS = 2.5
Change = Callable[[Dataset, int], None]


@dataclass(frozen=True)
class Series:
    """A series on disk, and what has to be read from it."""

    folder: Path
    values: NDArray[np.float64]
    """In Hounsfield units; slice, row, column."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """From (column, row, slice) to millimetres in the coordinates of NIfTI (right, anterior, superior)."""
        normal = np.cross(ROW, COLUMN)
        matrix = np.eye(4)
        matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = ROW * SPACING[1], COLUMN * SPACING[0], normal * THICKNESS
        matrix[:3, 3] = ORIGIN
        return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix)


def _slice(pixels: NDArray[np.int16], index: int, patient: str | None, study: str, series: str) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, study
    image.PatientName, image.PatientBirthDate, image.PatientSex = "Doe^Jane", "19550317", "F"
    if patient is not None:
        image.PatientID = patient
    image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = "20260102", "101500", "1", "4711"
    image.Manufacturer, image.Modality, image.SeriesNumber, image.InstanceNumber = "x", "CT", "3", str(index + 1)
    image.ReferringPhysicianName = ""
    image.PositionReferenceIndicator = ""
    image.ImageOrientationPatient = [float(f"{v:.10f}") for v in (*ROW, *COLUMN)]
    image.ImagePositionPatient = [float(f"{v:.8f}") for v in ORIGIN + np.cross(ROW, COLUMN) * THICKNESS * index]
    image.PixelSpacing, image.SliceThickness = list(SPACING), str(THICKNESS)
    image.ImageType, image.KVP, image.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], "120", "1"
    image.RescaleSlope, image.RescaleIntercept = str(SLOPE), str(INTERCEPT)
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.PixelData = pixels.tobytes()
    return image


def write_series(
    folder: Path,
    patient: str | None = "4711",
    *,
    slices: int = 5,
    shape: tuple[int, int] = (8, 6),
    seed: int = 0,
    skip: Sequence[int] = (),
    change: Change | None = None,
) -> Series:
    """A CT series with random values; `skip` leaves slices out, `change` is called with each file and its number."""
    dice = np.random.default_rng(seed)
    pixels = dice.integers(0, 3000, (slices, *shape)).astype(np.int16)
    folder.mkdir(parents=True)
    study, series = generate_uid(), generate_uid()
    names = dice.permutation(slices)
    for index in range(slices):
        if index not in skip:
            image = _slice(pixels[index], index, patient, study, series)
            if change is not None:
                change(image, index)
            image.save_as(folder / f"IM{names[index]:04}", enforce_file_format=True)
    return Series(folder, pixels * SLOPE + INTERCEPT)


def write_frames(file: Path, slices: Sequence[Path]) -> None:
    """The same series as one file of many frames, the way enhanced CT and MR have it."""
    images = sorted((dcmread(path) for path in slices), key=lambda image: -int(image.InstanceNumber))
    whole = images[0]
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    whole.NumberOfFrames = len(images)
    shared, measures, scale, orientation = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = whole.PixelSpacing, whole.SliceThickness
    scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = whole.RescaleSlope, whole.RescaleIntercept, "HU"
    orientation.ImageOrientationPatient = whole.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PixelValueTransformationSequence = [measures], [scale]
    shared.PlaneOrientationSequence = [orientation]
    frames = []
    for image in images:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = image.ImagePositionPatient
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = [shared], frames
    whole.PixelData = b"".join(image.PixelData for image in images)
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(whole, tag)
    file.parent.mkdir(parents=True)
    whole.save_as(file, enforce_file_format=True)
