"""DICOM files whose broken elements make pydicom warn and quote their values."""

import warnings
from pathlib import Path
from typing import Any

from hospital.planted import Names, electrocardiogram, radiograph, series


def broken(names: Names) -> list[Any]:
    """Datasets with a planted name or UID in elements with invalid values."""
    found = []
    for number, dataset in enumerate(
        [radiograph(), radiograph(1), electrocardiogram(), *series(Path("/nowhere"), None)]
    ):
        uid = names.note(f"1.2.840.99.{4711000 + number}.0815")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
            dataset.StudyInstanceUID = names.note(f"1.2.840.98.{4711000 + number}.0815.00012")  # a component with zeros
            dataset.FrameOfReferenceUID = names() + ".x.y"
            dataset.PatientBirthDate, dataset.StudyTime = names() + "x", names() + "25:99"
            dataset.PatientAge, dataset.PatientName = names(), "=".join([names()] * 5)
            dataset.SpecificCharacterSet = names()
            dataset.AccessionNumber = names() * 9
        dataset.add_new("KVP", "LO", names())  # a number, by the dictionary
        dataset.add_new("ExposureTime", "LO", names())
        found.append(dataset)
    return found
