"""The bound models as one object and one folder.

* `bundle`: `Space`, `load`, `save_space`. * `folder`, `reader`: the space on disk. * `manifest`: schema of space.json.
* `prompts`: prompt templates. * `exported_folders`: folders that `export` wrote, which are not spaces.
"""

from typing import TYPE_CHECKING

from m3bind.core.lazy import lazy_names

if TYPE_CHECKING:
    from m3bind.space.bundle import Space, load, save_space
    from m3bind.space.folder import SpaceInfo

__all__ = ["Space", "SpaceInfo", "load", "save_space"]

__getattr__ = lazy_names(__name__, {"Space": "bundle", "SpaceInfo": "folder", "load": "bundle", "save_space": "bundle"})
