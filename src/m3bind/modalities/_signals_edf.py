"""EDF, EDF+ and BDF: names, dates and texts of the header never leave this module."""

from pathlib import Path
from typing import Any

import numpy as np

from m3bind.errors import ReadError
from m3bind.modalities._recording import AGAIN, Recording, Signal, check_size, decoding


def read_edf(path: Path) -> Recording:
    """An EDF, EDF+ or BDF file; each signal keeps its own rate.

    Raises:
        ReadError: damaged, annotations only, or with gaps between its records (EDF+D).
    """
    import edfio

    with open(path, "rb") as handle:
        head = handle.read(256)
    kind = {b"\xffBIOSEMI": "BDF", b"0       ": "EDF"}.get(head[:8])
    if kind is None or len(head) < 256:
        raise ReadError(path, "not an EDF or BDF file: its first bytes say neither", AGAIN)
    check_size(path, 3 if kind == "BDF" else 2)
    with decoding(path, f"{kind} file"):
        declared = int(head[236:244])
        if kind == "BDF":
            edf: edfio.Edf | edfio.Bdf = edfio.read_bdf(path, header_encoding="latin-1")
        else:
            edf = edfio.read_edf(path, header_encoding="latin-1")
        if not edf.signals:
            raise ReadError(path, f"{kind}+ with annotations only, no signals", "name the file with the signals")
        if not edf.is_continuous:
            raise ReadError(path, f"a discontinuous {kind}+ file", "cut out one continuous part")
        signals = [_edf_signal(signal) for signal in edf.signals]
        found = Recording(signals)
        if declared not in (-1, edf.num_data_records):
            found.warnings.append(
                f"the header declares {declared} data records, the file holds {edf.num_data_records}: cut short?"
            )
    return found


def _edf_signal(signal: Any) -> Signal:
    """One signal in physical values; without calibration its unit is ""."""
    try:
        physical, digital = signal.physical_range, signal.digital_range
        calibrated = bool(np.isfinite(physical).all()) and physical.min != physical.max and digital.min != digital.max
    except ValueError:  # not numbers
        calibrated = False
    unit = signal.physical_dimension if calibrated else ""
    return Signal(signal.label, signal.data, unit, float(signal.sampling_frequency))
