"""Download of open data sets: checked by published sums, continued where it stopped, from mirrors if there are any.

* `files_text`: files, sizes, sums and licences of data sets, to be accepted before anything is fetched.
* `download`: the files of a data set into its folder, in the official layout.

pooch fetches, checks and moves each file; `_Continued` is its downloader: it asks for the bytes that NAME.part lacks,
and starts again if the server cannot send a part of a file. Needs the extra `download`.
"""

import fnmatch
import hashlib
import importlib.util
import logging
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from m3bind.core.files import atomic_path, only_one
from m3bind.core.progress import Progress, progress, track
from m3bind.errors import ConfigError, DownloadError
from m3bind.evaluate.benchmarks.base import Benchmark, PublishedFile, get

log = logging.getLogger(__name__)
CHUNK = 1 << 16  # bytes; at most so many are lost if a connection breaks
TIMEOUT = (30, 60)  # seconds: to connect, and without data
TRIES = 3  # per address
MAX_MEMBER = 1 << 28  # bytes of a member of an archive


def files_text(names: Sequence[str]) -> str:
    """What `download` fetches for the data sets `names`: files, sizes, sums, licences."""
    lines, total, open_ended = [], 0, False
    for benchmark in map(get, names):
        lines.append(f"{benchmark.title} ({', '.join(benchmark.modalities)}): {benchmark.licence}, {benchmark.url}")
        for file in files_of(benchmark):
            total, open_ended = total + file.size, open_ended or not file.size
            size = f"{file.size / 1e9:.2f} GB" if file.size else "size not known in advance"
            check = file.sum or (f"each file by {file.sums[0]}" if file.sums[0] else "no sum published")
            lines.append(f"  {file.name}: {size}; {check}")
    return "\n".join([*lines, f"together {total / 1e9:.1f} GB{' and files of unknown size' if open_ended else ''}"])


def files_of(benchmark: Benchmark) -> tuple[PublishedFile, ...]:
    """The files of a data set that a program may download.

    Raises:
        ConfigError: it is not open.
    """
    if not benchmark.files:
        raise ConfigError(f"{benchmark.title} cannot be downloaded by a program. {benchmark.access} {benchmark.url}")
    return benchmark.files


def download(benchmark: Benchmark, folder: Path, mirrors: Sequence[str] = ()) -> None:
    """Fetch the files of a data set into `folder`; files that are there already are checked, not fetched again.

    Args:
        benchmark: an open data set.
        folder: gets the official layout.
        mirrors: addresses of folders that hold the files by name; tried before the official one.

    Raises:
        ConfigError: the data set is not open, or the extra is missing.
        DownloadError: no address sends a file, or what it sends has another sum.
        BusyError: another process downloads into `folder`.
    """
    files = files_of(benchmark)
    if importlib.util.find_spec("pooch") is None:
        raise ConfigError("pooch is not installed, which downloading needs: pip install 'm3bind[download]'")
    with only_one(folder, "download"):
        for file in files:
            addresses = [f"{mirror.rstrip('/')}/{file.name}" for mirror in mirrors]
            archive = _fetched(file, folder, [*addresses, file.url])
            if file.unpack:
                _unpack(archive, file, folder)


def _fetched(file: PublishedFile, folder: Path, addresses: Sequence[str]) -> Path:
    """The path of a file, fetched from the first address that has it.

    Raises:
        DownloadError: no address does.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    reasons = []
    for address in addresses:
        keeper = pooch.create(
            path=folder, base_url="", registry={file.name: file.sum or None}, urls={file.name: address},
            retry_if_failed=TRIES - 1,
        )  # fmt: skip
        try:
            return Path(keeper.fetch(file.name, downloader=_Continued(file, folder)))
        except (requests.RequestException, ValueError) as error:  # ValueError: pooch's word for a wrong sum
            reasons.append(f"{address}: {_reason(error)}")
            log.warning("%s", reasons[-1])
    raise DownloadError(
        f"{file.name} cannot be downloaded:\n  " + "\n  ".join(reasons) + "\nThe same command continues where it "
        "stopped; --mirror ADDRESS names another server, and --root a folder with files that you have"
    )


def _reason(error: Exception) -> str:
    """Why an address failed, as a clause."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return f"no data for {TIMEOUT[1]} s"
    if isinstance(error, requests.ConnectionError):
        return "it cannot be reached"
    if isinstance(error, requests.RequestException):
        return "the connection broke"
    return "what it sends has another sum than the published file"


@dataclass
class _Continued:
    """A downloader of pooch that continues NAME.part."""

    file: PublishedFile
    folder: Path

    def __call__(self, url: str, output_file: str, pooch: Any, check_only: bool = False) -> None:
        """Fetch `url` into `output_file`.

        Raises:
            requests.RequestException: the server cannot be reached, refuses, or ends early.
        """
        import requests

        part = self.folder / f"{self.file.name}.part"
        have = part.stat().st_size if part.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                # The part is complete, or another file: then its sum is wrong, and the next try starts from nothing.
                os.replace(part, output_file)
                return
            answer.raise_for_status()
            have = have if answer.headers.get("Content-Range", "").startswith(f"bytes {have}-") else 0
            total = have + int(answer.headers.get("Content-Length", 0))
            label = f"download {self.file.name} (MB)"
            with part.open("ab" if have else "wb") as target, progress(label, total >> 20, done=have >> 20) as bar:
                self._copy(answer, target, bar)
        os.replace(part, output_file)

    @staticmethod
    def _copy(answer: Any, target: Any, bar: Progress) -> None:
        received = 0
        for chunk in answer.iter_content(CHUNK):
            target.write(chunk)
            before, received = received, received + len(chunk)
            bar.advance((received >> 20) - (before >> 20))
        target.flush()
        os.fsync(target.fileno())


def _unpack(archive: Path, file: PublishedFile, folder: Path) -> None:
    """Write the needed members of a zip archive, without its top folder; each is compared with the listed sum.

    Raises:
        DownloadError: the archive is damaged, or a member has another sum; the archive is removed.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = {_below(info): info for info in opened.infolist() if not info.is_dir()}
            listed = _listed_sums(opened, members, file)
            needed = [name for name in members if any(fnmatch.fnmatch(name, pattern) for pattern in file.unpack)]
            for name in track(needed, len(needed), f"unpack {file.name}"):
                target = folder / name
                if target.exists() and target.stat().st_size == members[name].file_size:
                    continue  # written as a whole, after its sum was checked
                content = opened.read(members[name])
                if listed and listed.get(name) != hashlib.sha256(content).hexdigest():
                    raise zipfile.BadZipFile(f"{name} has another sum than the published one")
                with atomic_path(target) as temporary:
                    temporary.write_bytes(content)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        archive.unlink(missing_ok=True)
        raise DownloadError(f"{archive.name}: {error}; it was removed, the same command fetches it again") from error


def _below(info: zipfile.ZipInfo) -> str:
    """The name of a member below the archive's top folder.

    Raises:
        BadZipFile: it leads out of the folder, or the member is larger than a record or table can be.
    """
    _, _, name = info.filename.partition("/")
    if ".." in PurePosixPath(info.filename).parts or PurePosixPath(name).is_absolute() or info.file_size > MAX_MEMBER:
        raise zipfile.BadZipFile("a member leads out of the folder or is too large")
    return name


def _listed_sums(opened: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], file: PublishedFile) -> dict[str, str]:
    """Name -> SHA-256 of the members, from the archive's own list; empty if none is known.

    Raises:
        BadZipFile: the list is not the published one.
    """
    name, known = file.sums
    if not name:
        return {}
    content = opened.read(members[name])
    if hashlib.sha256(content).hexdigest() != known:
        raise zipfile.BadZipFile(f"{name} is not the published list of sums")
    pairs = (line.split(maxsplit=1) for line in content.decode("utf-8", "replace").splitlines() if line.strip())
    return {path.strip().lstrip("*"): digest.lower() for digest, path in pairs}
