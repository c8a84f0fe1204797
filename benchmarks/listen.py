"""Objects per second that a C-STORE listener receives, against pynetdicom that only writes files.

    python benchmarks/listen.py [--objects 60] [--repeats 5]

In turn within each repeat, the same CT slices of 512 x 512 (generated, 0.5 MB each) over loopback, one association,
each receiver in its own process:
    ours     m3bind's Listener: de-identified, flushed to disk, then acknowledged
    flushed  pynetdicom, `event.encoded_dataset()` written to a file and flushed, including names
    plain    the same, not flushed: lost if the machine stops
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from _measure import alternate, conditions, ratio

CT = "1.2.840.10008.5.1.4.1.1.2"


def slices(count: int) -> list[Dataset]:
    """CT slices of one series."""
    rng, study, series = np.random.default_rng(0), generate_uid(), generate_uid()
    made = []
    for number in range(count):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CT, generate_uid(), "CT"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.PatientName, ds.PatientID, ds.InstanceNumber = "Doe^Jane", "4711", number + 1
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.RescaleSlope, ds.RescaleIntercept = [0.7, 0.7], 1, -1024
        ds.Rows = ds.Columns = 512
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.PixelData = rng.integers(0, 4096, (512, 512), dtype=np.uint16).tobytes()
        made.append(ds)
    return made


def ours(folder: Path, pipe: Any) -> None:
    """m3bind's listener, without an encoder."""
    from m3bind.hospital.deidentify import Deidentifier
    from m3bind.hospital.intake import Intake
    from m3bind.hospital.listener import Listener, ListenerSettings
    from m3bind.hospital.pseudonyms import Pseudonyms
    from m3bind.hospital.spool import Spool

    intake = Intake(Spool(folder), Deidentifier(Pseudonyms(b"only for benchmarks")), ("ct",))
    listener = Listener(intake, ListenerSettings("ANY"))
    listener.start("127.0.0.1", 0)
    pipe.send(listener.port)
    pipe.recv()


def theirs(flush: bool, folder: Path, pipe: Any) -> None:
    """pynetdicom with a minimal handler that stores each object."""
    from pynetdicom import AE, evt

    def keep(event: Any) -> int:
        with open(folder / str(event.request.AffectedSOPInstanceUID), "wb") as out:
            out.write(event.encoded_dataset())
            if flush:
                out.flush()
                os.fsync(out.fileno())
        return 0

    entity = AE("ANY")
    entity.add_supported_context(CT, ExplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    pipe.send(server.server_address[1])
    pipe.recv()


def send(port: int, objects: list[Dataset]) -> None:
    """All objects in one association."""
    from pynetdicom import AE

    entity = AE("SENDER")
    entity.add_requested_context(CT, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", port, ae_title="ANY")
    for dataset in objects:
        if association.send_c_store(dataset).Status != 0:
            raise RuntimeError("an object was not taken")
    association.release()


def main() -> None:
    """Print objects per second and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    objects, context = slices(arguments.objects), multiprocessing.get_context("spawn")
    forms = {"ours": ours, "flushed": partial(theirs, True), "plain": partial(theirs, False)}
    with tempfile.TemporaryDirectory() as place:
        jobs, ends = {}, []
        for name, receiver in forms.items():
            (folder := Path(place) / name).mkdir()
            here, there = context.Pipe()
            context.Process(target=receiver, args=(folder, there), daemon=True).start()
            jobs[name] = partial(send, here.recv(), objects)
            ends.append(here)
        seconds = alternate(jobs, arguments.repeats)
        for end in ends:
            end.send(None)
    for name, found in seconds.items():
        print(f"{name:8} {arguments.objects / statistics.median(found):7.1f} objects/s")
    print(f"time of ours to flushed {ratio(seconds['ours'], seconds['flushed'])}, "
          f"to plain {ratio(seconds['ours'], seconds['plain'])}")  # fmt: skip
    print(conditions())


if __name__ == "__main__":
    main()
