"""What a launcher (torchrun, accelerate) states about this process in the environment.

* `processes`: rank and number of processes. * `local_rank`, `local_processes`: the same on this machine.
* `meeting_point`: where they meet.

Variables that are set to nothing count as missing. Without WORLD_SIZE, a RANK left by another job means nothing.
"""

import os

from m3bind.errors import ConfigError

ALONE = "start the command with torchrun or accelerate launch, or unset RANK, WORLD_SIZE and LOCAL_RANK to run alone"


def processes() -> tuple[int, int]:
    """(rank of this process, number of processes); (0, 1) without a launcher.

    Raises:
        ConfigError: the variables are not numbers, or contradict each other.
    """
    size = _number("WORLD_SIZE", 1, least=1)
    if size == 1:
        return 0, 1
    rank = _number("RANK", -1)
    if rank < 0:
        raise ConfigError(f"WORLD_SIZE={size}, but RANK is not set; {ALONE}")
    if rank >= size:
        raise ConfigError(f"RANK={rank}, but WORLD_SIZE={size}: ranks are numbered from 0 to {size - 1}; {ALONE}")
    return rank, size


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return _number("LOCAL_RANK", 0)


def local_processes() -> int:
    """How many processes the launcher started on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1, least=1)


def meeting_point() -> str:
    """ADDRESS:PORT of the first process.

    Raises:
        ConfigError: it is not stated.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), _number("MASTER_PORT", -1)
    if not address or port < 0:
        name = "MASTER_PORT" if address else "MASTER_ADDR"
        raise ConfigError(f"WORLD_SIZE={os.environ.get('WORLD_SIZE')}, but {name} is not set; {ALONE}")
    return f"{address}:{port}"


def _number(name: str, default: int, least: int = 0) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"environment variable {name}={text!r}: not a whole number of at least {least}; {ALONE}")
    return int(text)
