"""The signals of a clinical file, by its header and extension; one module per format (`signals_*`).

* `read_signals`: the signals of a file, or of an archive that contains one record with all its files.
"""

from pathlib import Path

from m3bind.errors import ReadError
from m3bind.modalities.formats import archive, dicom, images
from m3bind.modalities.formats.recording import AGAIN, Recording
from m3bind.modalities.formats.signals_aecg import read_aecg
from m3bind.modalities.formats.signals_dicom import read_dicom
from m3bind.modalities.formats.signals_edf import read_edf
from m3bind.modalities.formats.signals_tables import read_csv, read_npy
from m3bind.modalities.formats.signals_wfdb import read_wfdb
from m3bind.modalities.formats.signals_wfdb_header import WFDB_SUFFIXES, header_of
from m3bind.privacy import redact_path

PACKED = (*archive.SUFFIXES, ".edf.gz", ".bdf.gz", ".dcm.gz", ".xml.gz")
SUFFIXES = (*WFDB_SUFFIXES, ".edf", ".bdf", *dicom.SUFFIXES, ".csv", ".npy", ".xml", *PACKED)
REFUSED = {  # extensions of known, unsupported formats
    ".scp": ("an SCP-ECG file", "export it as DICOM or HL7 aECG, or convert it to WFDB or EDF"),
    ".ecg": ("an ISHNE Holter file", "convert it to WFDB or EDF"),
    ".mwf": ("an MFER file", "export it as DICOM or HL7 aECG"),
    ".gdf": ("a GDF file", "convert it to EDF or BDF"),
} | dict.fromkeys((".bz2", ".xz", ".zst", ".7z", ".rar"), ("an archive of that kind", "pack it as .zip or .tar.gz"))


def read_signals(path: Path) -> Recording:
    """The signals of an existing file, by its header and extension.

    Raises:
        ReadError: damaged, over a limit, without names or rate, or in an unsupported format.
    """
    ending = images.ending(path, SUFFIXES)
    if ending in PACKED:
        return _unpacked(path)
    if ending in ("", *WFDB_SUFFIXES) and header_of(path).is_file():
        found = read_wfdb(path)
    elif dicom.is_dicom(path):
        found = read_dicom(path)
    elif ending in WFDB_SUFFIXES:
        raise ReadError(
            path, "no WFDB header (.hea) of that name", "it states names, gains and rate: add it to the folder"
        )
    else:
        readers = {".edf": read_edf, ".bdf": read_edf, ".csv": read_csv, ".npy": read_npy, ".xml": read_aecg}
        found = readers.get(ending, read_dicom)(path)
    found.signals = [signal for signal in found.signals if signal.values.size]
    if not found.signals:
        raise ReadError(path, "no signal has any samples", AGAIN)
    for signal in found.signals:
        if not 0 < signal.rate < float("inf"):
            raise ReadError(path, "a sampling rate that is not a positive number", AGAIN)
    seconds = max(signal.values.size / signal.rate for signal in found.signals)
    if seconds < 1:
        raise ReadError(path, f"only {seconds:.2f} s long", "at least 1 s is needed, 10 s usual")
    rates = sorted({signal.rate for signal in found.signals})
    found.steps.insert(0, f"{' and '.join(f'{rate:g}' for rate in rates[:4])} Hz, {len(found.signals)} signals")
    return found


def _unpacked(path: Path) -> Recording:
    """The signals of the one record in an archive."""
    from m3bind.modalities.formats.files import files_below  # imports the modalities

    with archive.extracted(path, names=True) as (folder, nested):
        files = list(files_below(folder, ["ecg"]))
        records = [file for file in files if images.ending(file, PACKED) == ""]
        if len(records) != 1:
            some = ", ".join(redact_path(file.name) for file in records[:6]) + (", ..." if len(records) > 6 else "")
            inside = f"; {nested} archives inside it were not opened" if nested else ""
            reason = f"{len(records)} ECG records in it ({some})" if records else f"no ECG record in it{inside}"
            raise ReadError(path, reason, "pack one record, with all of its files, per archive")
        try:
            found = read_signals(records[0])
        except ReadError as error:  # name the archive, not a file of the temporary folder
            raise ReadError(path, error.reason, error.hint) from None
    found.steps.append("unpacked from an archive")
    return found
