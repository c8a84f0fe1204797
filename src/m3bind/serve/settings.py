"""All limits of the service in one place.

* `ServiceSettings`: they, with defaults for one machine.
* `DECODING`: budgets of one file, tighter than those of the command
  line (`modalities._limits`), for files that strangers send.
"""

import os
from dataclasses import dataclass, field

TEXT_CHARS = 2000  # of one text of a question
HITS = 200
PARTS = 16  # of one question
LABELS = 100  # of one zero-shot question
TEXTS = 64  # encoded in one call
ID_CHARS = 4096
DECODING = "bytes=1e9 pixels=4e7 voxels=2e8 samples=2e7 files=2048 seconds=30 memory=2e9"
NOTICE = "Research use only. Not a medical device; nothing here may guide the care of a patient."


def _cores() -> int:
    return os.cpu_count() or 1


@dataclass(frozen=True)
class ServiceSettings:
    """What a request may cost, how many wait, and how long anything is kept."""

    body_bytes: int = 256 << 20  # of an upload, all files together
    json_bytes: int = 1 << 20  # of any other body
    flying_bytes: int = 768 << 20  # of all bodies that are being received
    files: int = 2048  # of an upload: slices of a series
    grace_seconds: float = 15.0  # in which a body may come as slowly as it likes
    bytes_per_second: float = 32_000.0  # that a body must reach after that
    header_seconds: float = 10.0  # until the head of a request is there
    request_seconds: float = 120.0  # from the head of a request to the end of its answer
    stop_seconds: float = 60.0  # that running requests get when the service is told to stop
    unread_seconds: float = 30.0  # that a client may leave an answer unread
    connections: int = 512
    waiting: int = 256  # requests in front of the towers; as many in front of the decoders
    workers: int = field(default_factory=lambda: max(1, _cores() // 2))  # threads that ask the towers and the index
    decoders: int = field(default_factory=lambda: max(2, _cores()))  # threads that wait for decoding processes, or draw
    uploads: int = 64  # kept at once; the least recently used goes
    upload_memory: int = 256 << 20  # bytes of all of them
    upload_seconds: float = 3600.0  # that an unused one is kept
    picture_memory: int = 384 << 20  # bytes of decoded items that are kept
    map_points: int = 3000
    check_seconds: float = 1.0  # between looks whether the index changed
    login_seconds: float = 12 * 3600.0  # that a login of the page lasts
