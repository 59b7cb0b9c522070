"""Which files of a folder are images of patients, alike for everything that reads images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import ConfigError
from worker.data.discovery import FoundFiles, find
from worker.data.matching import keys_of
from worker.data.sources import PICTURES, Admission, FoundImages, ImageKind, ImageSource, patient_in_path

if TYPE_CHECKING:
    from worker.data.volumes import Volume

FOREIGN = "images that are neither DICOM nor NIfTI nor PNG nor JPEG"
BESIDE_DICOM = "JPEG pictures beside DICOM"
NO_IMAGES = "files that are no images"


def admit(folder: Path, wanted: Admission) -> FoundImages:
    """The images below a folder, one for each series of DICOM, and what is left out.

    Raises:
        ConfigError: a file cannot be read, an image would be a wrong one, or a patient is not known; says which.
    """
    return sort_out(find(folder), wanted)


def sort_out(found: FoundFiles, wanted: Admission) -> FoundImages:
    """Likewise, of files that were found.

    Raises:
        ConfigError: as for `admit`.
    """
    beside = {
        kind: names
        for kind, paths in ((FOREIGN, found.foreign), (NO_IMAGES, found.others))
        if (names := [found.name(path) for path in paths])
    }
    if found.files[ImageKind.DICOM]:
        if found.files[ImageKind.NIFTI] or found.files[ImageKind.PNG]:
            raise ConfigError(f"{found.folder} holds DICOM and other images; take each by itself")
        try:
            from worker.data.dicom import series
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"DICOM files need {error.name}; install it with: pip install 'fledge-fl[dicom]'"
            ) from error
        taken = series(found, wanted)
        if found.files[ImageKind.JPEG]:  # previews, as viewers export them
            beside[BESIDE_DICOM] = [found.name(path) for path in found.files[ImageKind.JPEG]]
        return replace(taken, left_out={**taken.left_out, **beside})
    sources = []
    for kind in (ImageKind.NIFTI, *PICTURES):
        for path in found.files[kind]:
            name, pattern = found.name(path), wanted.patients
            patient = name if pattern is None else patient_in_path(path.relative_to(found.folder), pattern)
            sources.append(
                ImageSource(name=name, kind=kind, files=(path,), patient=patient, identity=name, keys=keys_of(name))
            )
    return FoundImages(sources=sources, left_out=beside)


def volume_of(source: ImageSource) -> Volume:
    """An image, read.

    Raises:
        ConfigError: it is damaged, too large, or its values are no grey values that are numbers; says which.
    """
    from worker.data.images import read_image
    from worker.data.volumes import check_values

    if source.kind is ImageKind.DICOM:
        from worker.data.dicom_files import read_series

        volume = read_series(source)
    else:
        volume = read_image(source.files[0], source.kind, source.name)
    check_values(source.name, volume.values)
    return volume
