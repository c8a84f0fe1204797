"""Models by name: listed, built, saved and loaded; a new file in this package (or an entry point) registers its model.

* `names`, `get`, `card`: the registered models, without building one.
* `build`: a network from settings. `load`: with the weights of a checkpoint, or from a folder that `save` wrote.
* `rebuild`: the network that a stored folder describes, with untrained weights.
* `stored_settings`: from which a model can be built again.
* `save`: model.json (name, settings, hash), weights.safetensors and assets/ in one folder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from m3bind.core.files import atomic_path, write_json
from m3bind.core.registry import Registry
from m3bind.core.stored import inside, plain
from m3bind.errors import CheckpointError, ConfigError
from m3bind.models.base import DualEncoder, ModelCard, constructor_parameters
from m3bind.models.weights import external
from m3bind.models.weights.checkpoint import (
    bounded,
    hash_state,
    load_strict,
    save_state,
    without_initialisation,
)
from m3bind.models.weights.weight_files import read_state

MODEL_FILE, WEIGHTS_FILE, ASSETS_FOLDER = "model.json", "weights.safetensors", "assets"

_registry: "Registry[DualEncoder]" = Registry("model", "m3bind.models", "m3bind.models", DualEncoder)  # type: ignore[type-abstract]


def names() -> list[str]:
    """Names of all models."""
    return _registry.names()


def get(name: str) -> type[DualEncoder]:
    """The class registered as `name`.

    Raises:
        UnknownNameError: no such model; the message offers the nearest names.
    """
    return _registry.get(name)


def card(name: str) -> ModelCard:
    """The facts about a model: source, licences, dimensions, LoRA targets.

    Raises:
        UnknownNameError: no such model; the message offers the nearest names.
        ConfigError: the class declares no card.
    """
    cls = _registry.get(name)
    cards: dict[str, ModelCard] = getattr(cls, "cards", {})
    own = cards.get(name, getattr(cls, "card", None))
    if not isinstance(own, ModelCard):
        raise ConfigError(f"model {name!r} ({cls.__module__}.{cls.__name__}) has no ModelCard; give it a `card`.")
    return own


def build(name: str, assets: Path | str | None = None, **settings: Any) -> DualEncoder:
    """A new network of the model `name`.

    Args:
        name: a registered name.
        assets: folder with the files that the model needs beside settings (`tokenizer.json`).
        settings: arguments of the model's constructor.

    Raises:
        UnknownNameError: no such model or setting; the message offers the nearest names.
        ConfigError: a setting is missing or contradicts another one.
    """
    folder = None if assets is None else Path(assets)
    model = _registry.get(name).from_settings(settings, assets=folder, variant=name)
    model.registered_name = name
    return model


def load(name_or_folder: Path | str, checkpoint: Path | str | None = None, **settings: Any) -> DualEncoder:
    """A model with weights, in eval mode.

    Args:
        name_or_folder: a registered name, or a folder written by `save`.
        checkpoint: published weights of a named model: a file or folder.
        settings: arguments of the constructor; they override those stored in a folder.

    Raises:
        UnknownNameError: neither a model nor a folder written by `save`.
        CheckpointError: weights that are damaged, unsafe to read, or do not fit.
    """
    folder = Path(name_or_folder)
    if (folder / MODEL_FILE).is_file():
        if checkpoint is not None:
            raise ConfigError(f"{folder} holds its own weights; give either the folder or a name with a checkpoint.")
        return _load_folder(folder, settings)
    name = str(name_or_folder)
    cls = _registry.get(name)
    if checkpoint is None:
        return build(name, **settings).eval()
    model = cls.from_checkpoint(checkpoint, settings, variant=name)
    model.registered_name = model.registered_name or name  # a file in another layout sets the name of its own model
    return model.eval()


def _load_folder(folder: Path, overrides: dict[str, Any]) -> DualEncoder:
    where = folder / MODEL_FILE
    content = external.settings_of(folder, MODEL_FILE)
    name, settings = content.get("model"), content.get("settings")
    if not isinstance(name, str) or not isinstance(settings, dict):
        raise CheckpointError(f"{where}: damaged: the model's name or settings are missing; save the model again.")
    with external.library(folder / WEIGHTS_FILE, "weights inside the folder"):
        state = read_state(inside(folder, WEIGHTS_FILE))
    with without_initialisation():
        model = rebuild(name, settings, folder / ASSETS_FOLDER, [state], where, overrides)
    load_strict(model, state, source=str(folder / WEIGHTS_FILE))
    return model.eval()


def rebuild(
    name: str,
    settings: Mapping[str, Any],
    assets: Path | None,
    states: Sequence[Mapping[str, Tensor]],
    where: Path | str,
    overrides: Mapping[str, Any] | None = None,
) -> DualEncoder:
    """The network that a third-party folder describes: it may name no files and be no larger than its weights.

    Args:
        name: name of the model.
        settings: as stored in the folder.
        assets: the folder's own assets.
        states: the weights that will be loaded into it.
        where: the file for error messages.
        overrides: settings of the caller, without these limits.

    Raises:
        CheckpointError: an unknown model, settings that name a file or an address, or that are not a network's.
    """
    with external.described(where, "the settings of a model"):
        plain(dict(settings))
        external.sizes(settings)
        parameters = constructor_parameters(_registry.get(name))
        for key, value in settings.items():
            if isinstance(value, str) and key in parameters and "Path" in str(parameters[key].annotation):
                raise ValueError(f"{key} names {value[:60]!r}: a folder's settings may name no other folder and no hub")
        with bounded(states, str(where)):
            return build(name, assets=assets, **{**settings, **(overrides or {})})


def save(model: DualEncoder, folder: Path | str) -> None:
    """Write a model so that `load(folder)` gives bitwise the same one.

    Raises:
        ConfigError: the model was not created by `build` or `load` and its class has several names or none, or see
            `stored_settings`.
        DiskError: the file system refused; the previous folder is unchanged.
    """
    name = model.registered_name or type(model).name
    if not name:
        raise ConfigError(f"{type(model).__name__} has no registered name; make it with m3bind.models.build.")
    state = model.state_dict()
    with atomic_path(folder, directory=True) as temporary:
        (temporary / ASSETS_FOLDER).mkdir()
        model.save_assets(temporary / ASSETS_FOLDER)
        save_state(state, temporary / WEIGHTS_FILE)
        write_json(
            temporary / MODEL_FILE,
            {"model": name, "settings": stored_settings(model), "weights_hash": hash_state(state)},
        )


def stored_settings(model: DualEncoder) -> dict[str, Any]:
    """`model.settings()`, from which a stored model is built again.

    Raises:
        ConfigError: they name what the constructor does not take.
    """
    settings = model.settings()
    if other := sorted(set(settings) - set(constructor_parameters(type(model)))):
        raise ConfigError(
            f"settings() of {type(model).__name__} names {', '.join(other)}, which its constructor does not take, so "
            "that no stored model could be opened; let it return arguments of the constructor"
        )
    return settings


def refresh() -> None:
    """Search for models again at the next call (after a file was added to the package)."""
    _registry.refresh()
