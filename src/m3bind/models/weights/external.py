"""Third-party folders (transformers, open_clip): settings validated by allow-lists before a library reads them.

* `settings_of`: a JSON file of the folder, limited in size, depth and numbers. `sizes`, `side`, `is_name`: values.
* `make_config`, `open_config`: a transformers configuration of a known family, reduced to values of the network.
* `build`, `build_with_weights`: the network of a configuration.
* `library`, `described`, `reason`: errors of a library become errors that name the file. `quiet`: no output.

Unknown families are refused by name (`allowed`). Tokenizers and image processors: `external_tokenizer`.
"""

import contextlib
import inspect
import logging
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from m3bind.core.stored import StoredFileError, inside, plain, read_json
from m3bind.errors import CheckpointError, M3BindError
from m3bind.models.layers.attention_masks import avoid_mask_syncs
from m3bind.models.weights.allowed import IGNORED, PARTS
from m3bind.models.weights.checkpoint import drop_position_ids, strip_prefix, unfit
from m3bind.models.weights.weight_files import State

CONFIG = "config.json"
_NAME = re.compile(r"[\w|-]{0,60}")
_ROPE = {"rope_parameters", "rope_scaling"}
MAX_BYTES = 64 << 20  # of a file of settings or of a tokenizer: twice the largest known
MAX_NUMBER, _MAX_LAYERS, _MAX_SIDE = 1 << 24, 1024, 4096  # of a network; layers, blocks; pixels of an image's side


# ---- JSON


def settings_of(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a folder.

    Raises:
        CheckpointError: missing, not a JSON object, a link out of the folder, or too large for settings.
    """
    path = folder / name
    try:
        values = read_json(inside(folder, name), MAX_BYTES)
        if not isinstance(values, dict):
            raise ValueError(f"holds {kind_of(values)}, not an object")
        plain(values)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no {name} here; copy the whole folder again.") from error
    except (OSError, ValueError) as error:
        why = error.reason if isinstance(error, StoredFileError) else error
        raise CheckpointError(f"{path}: no usable settings ({why}); copy the file again.") from error
    return values


def sizes(values: Mapping[str, Any], where: str = "") -> None:
    """Refuse numbers too large for a network, before lists of that length are allocated.

    Raises:
        ValueError: with the key and its value.
    """
    for key, value in values.items():
        name = f"{where}{key}"
        numbers = [value] if isinstance(value, int) else value if isinstance(value, list) else []
        limit = _MAX_LAYERS if re.search(r"layers|depth|blocks", key) else MAX_NUMBER
        for number in numbers:
            if isinstance(number, int) and abs(number) > limit:
                raise ValueError(f"{name} is {str(number)[:20]}, more than {limit:,}")
        if isinstance(value, dict):
            sizes(value, f"{name}.")


def side(value: Any, where: str) -> None:
    """Refuse an image's side (or two of them) outside of the limits.

    Raises:
        ValueError: with the key and its value.
    """
    for pixels in value if isinstance(value, list) else [value]:
        if pixels is not None and not (isinstance(pixels, int) and 0 < pixels <= _MAX_SIDE):
            raise ValueError(f"{where} is {str(pixels)[:20]}; a side has 1 to {_MAX_SIDE} pixels")


def is_name(value: str) -> bool:
    """Whether a text can name an activation, a kind of attention or a network: not a path, address or module."""
    return _NAME.fullmatch(value) is not None


def kind_of(value: object) -> str:
    """The JSON type of a value, for messages."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


# ---- errors


@contextlib.contextmanager
def library(path: Path | str, what: str) -> Iterator[None]:
    """Raise any error of a library as a CheckpointError: "`path`: not `what`", and the reason.

    The errors of libraries about settings have no common base, and those of their Rust parts are not Exceptions.
    """
    try:
        yield
    except M3BindError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{path}: not {what} ({reason(error)}).") from error


@contextlib.contextmanager
def described(path: Path | str, what: str) -> Iterator[None]:
    """As `library`; m3bind's own errors about a setting or a part also become CheckpointErrors that name `path`."""
    try:
        with library(path, what):
            yield
    except M3BindError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error


def reason(error: BaseException) -> str:
    """The message of an error, in one line, without the name of its class."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        return f"{'.'.join(map(str, first['loc']))[:200]}: {first['msg'][:200]}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return "too much memory" if isinstance(error, MemoryError) else "it stopped without saying why"
    start = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    message = re.sub(r"\b[A-Z]\w*(Error|Exception|Warning):?\s*", "", start)[:200]
    return f"{message} is missing or unknown" if isinstance(error, KeyError) else message


# ---- configuration


def open_config(folder: Path, families: Collection[str]) -> Any:
    """The transformers configuration in a folder's config.json.

    Raises:
        CheckpointError: missing, damaged, or of a family not in `families`.
    """
    return make_config(settings_of(folder, CONFIG), families, folder / CONFIG)


def make_config(values: Mapping[str, Any], families: Collection[str], where: Path | str) -> Any:
    """A transformers configuration from the values that describe its network; all others are dropped.

    Raises:
        CheckpointError: a family not in `families`, or values that cannot be a network's.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    family = values.get("model_type")
    if not isinstance(family, str) or family not in families:
        own = " (its own code is not run)" if "auto_map" in values else ""
        raise CheckpointError(
            f"{where}: model_type is {str(family)[:60]!r}, which m3bind does not open{own}; it opens "
            f"{', '.join(sorted(families))}."
        )
    if values.get("quantization_config"):
        raise CheckpointError(f"{where}: quantization_config asks for quantised weights; give the plain ones.")
    with library(where, f"the configuration of a {family}"):
        plain(dict(values))
        sizes(values)
        config = CONFIG_MAPPING[family](**_network(CONFIG_MAPPING[family], values))
        _check_activations(config)
        return config


def _network(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that describe a network: numbers, names that its class knows, and the same of its parts."""
    parts, known = dict(getattr(kind, "sub_configs", {})), inspect.signature(kind.__init__).parameters
    network: dict[str, Any] = {}
    for key, value in values.items():
        part = parts.get(key.removesuffix("_dict"))
        if key in IGNORED or key.startswith("_") or key.endswith("_implementation") or key == "model_type":
            continue
        if part is not None:
            if isinstance(value, dict):
                network[key] = _part(key, part, value)
            elif value is not None:
                raise ValueError(f"{key} holds {kind_of(value)}, not an object")
        elif key in _ROPE or _only_numbers(value) or (key in known and _only_names(value)):
            network[key] = value
    return network


def _part(key: str, kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a network's part; a part of any family states its own, which must be known as well."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind is not AutoConfig:
        return _network(kind, values)
    family = values.get("model_type")
    if family not in PARTS:
        raise ValueError(f"{key} is of the family {str(family)[:60]!r}; known: {', '.join(sorted(PARTS))}")
    return {"model_type": family, **_network(CONFIG_MAPPING[family], values)}


def _only_numbers(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_only_numbers, value))
    return value is None or isinstance(value, bool | int | float)


def _only_names(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return all(isinstance(name, str) and is_name(name) for name in names)


def _check_activations(config: Any) -> None:
    """Refuse an activation unknown to transformers (otherwise an error only when the network is built)."""
    from transformers.activations import ACT2FN

    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))):
        name = getattr(part, "hidden_act", None)
        if isinstance(name, str) and name not in ACT2FN:
            raise ValueError(f"hidden_act {name[:40]!r} is not an activation")


def build(config: Any, where: Path | str) -> Any:
    """The untrained float32 network of a configuration, without the pooling layer that most checkpoints lack.

    Raises:
        CheckpointError: the values are not those of a network.
    """
    from transformers import MODEL_MAPPING, AutoModel

    avoid_mask_syncs()
    with library(where, f"a network of family {config.model_type}"), quiet():
        options = _without_pooler(MODEL_MAPPING[type(config)])
        return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False, **options)


def _without_pooler(network: Any) -> dict[str, bool]:
    known = inspect.signature(network.__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def build_with_weights(config: Any, state: State, folder: Path, ignore: Sequence[str] = ()) -> Any:
    """The float32 network of a configuration with the weights of a folder, under any names known to transformers.

    transformers itself maps old names of parts to new ones; no key may be left over on either side, except keys of the
    file that match the shell patterns `ignore`. An encoder is built without its pooling layer.

    Raises:
        CheckpointError: the values are not those of a network, or the weights do not fit it; all names listed.
    """
    from transformers import MODEL_MAPPING

    state = strip_prefix("module.")(drop_position_ids(state, frozenset()), frozenset())
    network = MODEL_MAPPING[type(config)]
    avoid_mask_syncs()
    with library(folder / CONFIG, f"a network of family {config.model_type}"), quiet():
        model, report = network.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            dtype=torch.float32,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **_without_pooler(network),
        )
    shapes = [f"{key} {tuple(file)} (the network has {tuple(own)})" for key, file, own in report["mismatched_keys"]]
    missing, unexpected = (sorted(report[key]) for key in ("missing_keys", "unexpected_keys"))
    unexpected = [key for key in unexpected if not any(fnmatchcase(key, pattern) for pattern in ignore)]
    if missing or unexpected or shapes or report["error_msgs"]:
        raise unfit(str(folder), network.__name__, missing, unexpected, sorted(shapes))
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress a library's output about a network it builds: progress bar, table of keys, warnings."""
    from transformers.utils import logging as library_logging

    shown, level = library_logging.is_progress_bar_enabled(), library_logging.get_verbosity()
    library_logging.disable_progress_bar()
    library_logging.set_verbosity(library_logging.CRITICAL)
    disabled = logging.root.manager.disable  # open_clip warns that weights are missing which are loaded later
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)
        library_logging.set_verbosity(level)
        if shown:
            library_logging.enable_progress_bar()
