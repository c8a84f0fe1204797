"""All limits of the service.

* `ServiceSettings`: with defaults for one machine.
* `DECODING`: budgets of one uploaded file, tighter than those of the command line (`modalities.formats.limits`).
"""

import os
from dataclasses import dataclass

TEXT_CHARS = 2000  # of one text of a query
HITS = 200
PARTS = 16  # of one query
LABELS = 100  # of one zero-shot query
PROMPTS = 64  # of one label
TEXTS = 64  # encoded in one call
ID_CHARS = 4096
DECODING = "bytes=1e9 pixels=4e7 voxels=2e8 samples=2e7 files=2048 seconds=30 memory=2e9"
NOTICE = "Research use only. Not a medical device; nothing here may guide the care of a patient."


@dataclass(frozen=True)
class ServiceSettings:
    """Limits of requests, queues and caches."""

    body_bytes: int = 256 << 20  # of an upload, all files together
    json_bytes: int = 1 << 20  # of any other body
    flying_bytes: int = 768 << 20  # of all bodies that are being received
    files: int = 2048  # of an upload: slices of a series
    grace_seconds: float = 15.0  # of a body before its rate counts
    bytes_per_second: float = 32_000.0  # minimum rate of a body after that
    header_seconds: float = 10.0  # until the head of a request is complete
    request_seconds: float = 120.0  # from the head of a request to the end of its answer
    stop_seconds: float = 60.0  # for running requests at shutdown
    unread_seconds: float = 30.0  # for which a client may leave an answer unread
    connections: int = 512
    waiting: int = 256  # requests in front of the towers; as many in front of the decoders
    workers: int = max(1, (os.cpu_count() or 1) // 2)  # threads for the towers and the index
    decoders: int = max(2, os.cpu_count() or 1)  # threads that wait for decoding processes, or draw
    uploads: int = 64  # stored at once; the least recently used is removed
    upload_memory: int = 256 << 20  # bytes of all of them
    upload_seconds: float = 3600.0  # for which an unused one is stored
    picture_memory: int = 384 << 20  # bytes of cached decoded items
    map_points: int = 3000
    check_seconds: float = 1.0  # between checks for changes of the index
    login_seconds: float = 12 * 3600.0  # of a login of the page
