"""A listener that takes objects in and encodes nothing: what its tests kill. Arguments: SPOOL."""

import sys
import threading
from pathlib import Path

from m3bind.hospital.deidentify import Deidentifier
from m3bind.hospital.intake import Intake
from m3bind.hospital.listener import Listener
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.hospital.spool import Spool

with Spool(Path(sys.argv[1])) as spool:
    names = Deidentifier(Pseudonyms(b"a salt only for tests"))
    listener = Listener(Intake(spool, names, ("xray", "ct", "ecg")))
    listener.start("127.0.0.1", 0)
    print(listener.port, flush=True)
    threading.Event().wait()
