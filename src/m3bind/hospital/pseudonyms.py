"""Replacements of identifiers: keyed hashes, the same for the same salt, not reproducible without it.

* `Pseudonyms`: patients, UIDs, days and file names under one salt.
* `open_salt`: the salt of the environment variable M3BIND_SALT, or of a private file that is created once.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
import uuid
from datetime import date, timedelta
from pathlib import Path

from m3bind.core.stored import bytes_given
from m3bind.errors import ConfigError, DiskError

VARIABLE = "M3BIND_SALT"
SHORTEST = 16  # characters of a salt
SPAN = 3650  # days: maximum by which dates are moved back


def default_salt() -> Path:
    """The default file of the salt, in the user's folder of settings."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "m3bind" / "salt"


def open_salt(path: Path | None = None) -> bytes:
    """The salt: M3BIND_SALT if it is set and no `path` is given, else the file's, which is created if missing.

    Raises:
        ConfigError: shorter than 16 characters, or a file that others may read.
        DiskError: the file cannot be created or read.
    """
    text = os.environ.get(VARIABLE, "") if path is None else ""
    if text:
        return _checked(text.encode(), f"the environment variable {VARIABLE}")
    path = path or default_salt()
    try:
        if not path.exists():
            _make(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"{path}: others may read the salt; chmod 600 it, and take a new one if they did")
        return _checked(bytes_given(path, "--salt-file").strip(), str(path))
    except OSError as error:
        raise DiskError(f"{path}: cannot hold a salt ({error.strerror}); name another --salt-file") from error


def _checked(salt: bytes, where: str) -> bytes:
    if len(salt) < SHORTEST:
        raise ConfigError(f"{where}: a salt of {len(salt)} characters; use {SHORTEST} or more random ones")
    return salt


def _make(path: Path) -> None:
    """A new salt, unless another process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(secrets.token_hex(32).encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


class Pseudonyms:
    """Identifiers under one salt. The same input always gives the same output."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt

    def _digest(self, kind: str, *texts: str) -> bytes:
        state = hmac.new(self._salt, digestmod=hashlib.sha256)
        for text in (kind, *texts):
            data = text.encode("utf-8", "surrogateescape")
            state.update(len(data).to_bytes(8, "little"))
            state.update(data)
        return state.digest()

    def key(self, kind: str, *texts: str) -> str:
        """24 hexadecimal digits, for ids and file names; `kind` separates a patient's number from a series' UID."""
        return self._digest(kind, *texts).hex()[:24]

    def uid(self, uid: str) -> str:
        """The replacement of a UID, of the form 2.25.<number>; "" stays ""."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', uid)[:16], version=4).int}" if uid else ""

    def patient(self, number: str, issuer: str = "", study: str = "") -> str:
        """A patient's pseudonym: the same for the same number and issuer; without a number, for the same study."""
        number, issuer = number.strip().casefold(), issuer.strip().casefold()
        return self.key("patient", issuer, number) if number else self.key("patient of study", study)

    def moved(self, day: str, patient: str) -> str:
        """A DICOM date (YYYYMMDD) 1 to 3,650 days earlier, the same number for all dates of a patient's pseudonym.

        "" for an invalid date, or one that would leave the calendar.
        """
        try:
            value = date(int(day[:4]), int(day[4:6]), int(day[6:8]))
            back = timedelta(days=1 + int.from_bytes(self._digest("days", patient)[:4], "little") % SPAN)
            return (value - back).strftime("%Y%m%d") if len(day) == 8 and value.year > 1000 + SPAN // 365 else ""
        except (ValueError, OverflowError):
            return ""

    def moved_time(self, moment: str, study: str) -> str:
        """A DICOM time (HHMMSS.FFFFFF) as another one in the same order within a study; "" for an invalid time.

        Half of the time since midnight plus a number of seconds per study, below half a day. A date before the time
        becomes 19000101.
        """
        found = re.fullmatch(r"(\d{8})?(\d{2})(\d{2})?(\d{2})?(?:\.(\d{1,6}))?(?:[+-]\d{4})?", moment.strip())
        if found is None:
            return ""
        day, hours, minutes, seconds, part = found.groups()
        total = 3600 * int(hours) + 60 * int(minutes or 0) + int(seconds or 0) + float(f"0.{part or 0}")
        if total >= 86_400:
            return ""
        later = int.from_bytes(self._digest("time", study)[:4], "little") % 43_200
        rest, micro = divmod(round((total / 2 + later) * 1e6), 1_000_000)
        text = f"{rest // 3600:02}{rest // 60 % 60:02}{rest % 60:02}.{micro:06}"
        return f"19000101{text}" if day else text
