"""m3bind COMMAND: thin layer that parses, calls and prints. Heavy libraries are imported inside the commands.

* `app`: what all commands share.
* `runs`, `measure`, `encode`, `search`, `serve`, `hospital`, `export`, `tools`: the commands, as in `m3bind --help`.

Exit code 0 only when everything asked for was done; 1 when work failed or parts were quarantined; 2 for wrong use.
"""

import importlib

from m3bind.cli.app import app, main

# each adds its commands to `app`, in order
for _part in ("runs", "measure", "encode", "search", "serve", "hospital", "export", "tools"):
    importlib.import_module(f"m3bind.cli.{_part}")

__all__ = ["app", "main"]
