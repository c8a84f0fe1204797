"""The service in its own process, for tests that signal and measure it: FOLDER -> prints its address.

A text that begins with "slow" takes as many seconds as the number after it.
"""

import sys
import time
from pathlib import Path

from space import archives


def main(folder):
    from m3bind.serve.app import make_app
    from m3bind.serve.run import log_to_stderr, serve
    from m3bind.serve.settings import ServiceSettings

    archives.register()
    from m3bind.space.bundle import load

    space = load(folder / "space")
    encode = space.encode_text

    def encode_slowly(texts, encoder=None):
        if texts[0].startswith("slow"):
            time.sleep(float(texts[0].split()[1]))
        return encode(texts, encoder)

    space.encode_text = encode_slowly
    settings = ServiceSettings(waiting=64, workers=1, stop_seconds=20, upload_memory=8 << 20, picture_memory=8 << 20)
    log_to_stderr(20)
    serve(make_app(space, folder / "index", settings=settings), "127.0.0.1", 0, settings,
          lambda address: print(address, flush=True))  # fmt: skip
    print("stopped", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
