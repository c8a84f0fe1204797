"""A folder in another library's form is data: what its files may say, by allow-lists, before a library sees them.

* `settings_of`: a JSON file of the folder, of sensible size, depth and numbers. `sizes`: numbers that a network has.
* `make_config`: a transformers configuration of a known family; of its values, those that describe the network.
* `open_config`, `open_tokenizer`, `open_processor`: what transformers makes of a folder's files.
* `library`: what a library raises about a folder becomes an error that names the file.

transformers reads a copy of the folder that holds nothing but known files of data, their JSON reduced to known keys:
there code, addresses, adapters, kernels and templates are not refused one by one but never there.

What is not in the lists here is refused by name. A family is added by a line, after its module was looked at.
"""

import contextlib
import inspect
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from m3bind.core.files import write_json
from m3bind.core.stored import StoredFileError, inside, plain, read_bytes, read_json
from m3bind.errors import CheckpointError, M3BindError
from m3bind.modalities.formats.archive import temporary_folder
from m3bind.models.weights.allowed import (
    ENCODERS,
    IGNORED,
    PARTS,
    PROCESSOR_KEYS,
    PROCESSORS,
    TOKEN_KEYS,
    TOKENIZER_FILES,
    TOKENIZER_KEYS,
    TOKENIZERS,
)
from m3bind.models.weights.checkpoint import State, drop_position_ids, strip_prefix, unfit

__all__ = [
    "CONFIG",
    "ENCODERS",
    "PROCESSOR_CONFIG",
    "TOKENIZER_CONFIG",
    "build",
    "build_with_weights",
    "check_tokenizer",
    "described",
    "is_name",
    "library",
    "make_config",
    "open_config",
    "open_processor",
    "open_tokenizer",
    "quiet",
    "reason",
    "settings_of",
    "side",
    "sizes",
    "tokenizer_files",
]

CONFIG, TOKENIZER_CONFIG, PROCESSOR_CONFIG = "config.json", "tokenizer_config.json", "preprocessor_config.json"

_NAME = re.compile(r"[\w|-]{0,60}")
_ROPE = {"rope_parameters", "rope_scaling"}
MOST = 64 << 20  # bytes of a file of settings or of a tokenizer: the largest have half of it
_LARGE, _LAYERS, _SIDE = 1 << 24, 1024, 4096  # any number of a network; layers, blocks; pixels of a picture's side
_ADDED = 20_000  # tokens beside a vocabulary
_GROWTH = 4096  # times that a tokenizer's normalizer may make a text longer


# ---- JSON


def settings_of(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a folder.

    Raises:
        CheckpointError: missing, no JSON object, a link out of the folder, or of a size that no settings have.
    """
    path = folder / name
    try:
        found = read_json(inside(folder, name), MOST)
        if not isinstance(found, dict):
            raise ValueError(f"holds {_kind(found)}, not an object")
        plain(found)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no {name} here; copy the whole folder again.") from error
    except (OSError, ValueError) as error:
        said = error.reason if isinstance(error, StoredFileError) else error
        raise CheckpointError(f"{path}: no usable settings ({said}); copy the file again.") from error
    return found


def sizes(values: Mapping[str, Any], where: str = "") -> None:
    """Refuse numbers that no network has, before lists are made of them.

    Raises:
        ValueError: the key and its value.
    """
    for key, value in values.items():
        name = f"{where}{key}"
        numbers = [value] if isinstance(value, int) else value if isinstance(value, list) else []
        most = _LAYERS if re.search(r"layers|depth|blocks", key) else _LARGE
        for number in numbers:
            if isinstance(number, int) and abs(number) > most:
                raise ValueError(f"{name} is {str(number)[:20]}, more than {most:,}")
        if isinstance(value, dict):
            sizes(value, f"{name}.")


def side(value: Any, where: str) -> None:
    """Refuse a picture's side (or two of them) that no picture has.

    Raises:
        ValueError: the key and its value.
    """
    for pixels in value if isinstance(value, list) else [value]:
        if pixels is not None and not (isinstance(pixels, int) and 0 < pixels <= _SIDE):
            raise ValueError(f"{where} is {str(pixels)[:20]}; a side has 1 to {_SIDE} pixels")


def is_name(value: str) -> bool:
    """Whether a text can be the name of an activation, a kind of attention, a network: no path, address or module."""
    return _NAME.fullmatch(value) is not None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


# ---- errors


@contextlib.contextmanager
def library(path: Path | str, what: str) -> Iterator[None]:
    """Inside, whatever a library raises becomes a CheckpointError: `path`, that it is no `what`, and the reason.

    Libraries have no common base for what they raise about settings, and their Rust parts raise no Exception at all.
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
    """As `library`; and our own errors about a setting or a part become CheckpointErrors that name `path` as well."""
    try:
        with library(path, what):
            yield
    except M3BindError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error


def reason(error: BaseException) -> str:
    """What an error says, in a line, without the name of its class."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        return f"{'.'.join(map(str, first['loc']))[:200]}: {first['msg'][:200]}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return "too much memory" if isinstance(error, MemoryError) else "it stopped without saying why"
    start = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    said = re.sub(r"\b[A-Z]\w*(Error|Exception|Warning):?\s*", "", start)[:200]
    return f"{said} is missing or unknown" if isinstance(error, KeyError) else said


# ---- configuration


def open_config(folder: Path, families: Collection[str]) -> Any:
    """The transformers configuration in a folder's config.json.

    Raises:
        CheckpointError: missing, damaged, or of a family not in `families`.
    """
    return make_config(settings_of(folder, CONFIG), families, folder / CONFIG)


def make_config(values: Mapping[str, Any], families: Collection[str], where: Path | str) -> Any:
    """A transformers configuration from the values that describe its network; all others are left out.

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
        made = CONFIG_MAPPING[family](**_network(CONFIG_MAPPING[family], values))
        _activations(made)
        return made


def _network(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration describes a network: numbers, names that its class knows, and the same of its parts."""
    parts, known = dict(getattr(kind, "sub_configs", {})), inspect.signature(kind.__init__).parameters
    found: dict[str, Any] = {}
    for key, value in values.items():
        part = parts.get(key.removesuffix("_dict"))
        if key in IGNORED or key.startswith("_") or key.endswith("_implementation") or key == "model_type":
            continue
        if part is not None:
            if isinstance(value, dict):
                found[key] = _part(key, part, value)
            elif value is not None:
                raise ValueError(f"{key} holds {_kind(value)}, not an object")
        elif key in _ROPE or _only_numbers(value) or (key in known and _only_names(value)):
            found[key] = value
    return found


def _part(key: str, kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What describes a network's part; a part of any family names its own, which must be known as well."""
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


def _activations(config: Any) -> None:
    """Refuse a GELU or the like that transformers does not have (it would only be missed when the network is built)."""
    from transformers.activations import ACT2FN

    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))):
        name = getattr(part, "hidden_act", None)
        if isinstance(name, str) and name not in ACT2FN:
            raise ValueError(f"hidden_act {name[:40]!r} is no activation")


def build(config: Any, where: Path | str) -> Any:
    """The untrained float32 network of a configuration, without the pooling layer that most checkpoints lack.

    Raises:
        CheckpointError: the values do not make a network.
    """
    from transformers import MODEL_MAPPING, AutoModel

    with library(where, f"a network of family {config.model_type}"), quiet():
        options = _without_pooler(MODEL_MAPPING[type(config)])
        return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False, **options)


def _without_pooler(network: Any) -> dict[str, bool]:
    known = inspect.signature(network.__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def build_with_weights(config: Any, state: State, folder: Path, ignore: Sequence[str] = ()) -> Any:
    """The float32 network of a configuration with the weights of a folder, under whatever names transformers knows.

    transformers itself gives old and new names of parts to each other; nothing may be left over on either side, but for
    keys of the file that match the shell patterns `ignore`. An encoder is built without its pooling layer.

    Raises:
        CheckpointError: the values do not make a network, or the weights are another's; all names listed.
    """
    from transformers import MODEL_MAPPING

    state = strip_prefix("module.")(drop_position_ids(state, frozenset()), frozenset())
    network = MODEL_MAPPING[type(config)]
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
    shapes = [f"{key} {tuple(had)} (the network has {tuple(has)})" for key, had, has in report["mismatched_keys"]]
    missing, unexpected = (sorted(report[key]) for key in ("missing_keys", "unexpected_keys"))
    unexpected = [key for key in unexpected if not any(fnmatchcase(key, pattern) for pattern in ignore)]
    if missing or unexpected or shapes or report["error_msgs"]:
        raise unfit(str(folder), network.__name__, missing, unexpected, sorted(shapes))
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, a library says nothing of a network it builds: no progress bar, no table of keys, no warnings."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


# ---- tokenizer and image processor


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer that transformers makes of a folder's files.

    Raises:
        CheckpointError: its files are missing, damaged, or ask for code or for a class that is not known.
    """
    from transformers import AutoTokenizer

    with tokenizer_files(folder) as copy, library(folder, "a folder with a tokenizer"):
        return AutoTokenizer.from_pretrained(str(copy), local_files_only=True, trust_remote_code=False)


def open_processor(folder: Path) -> Any:
    """The image processor that transformers makes of a folder's preprocessor_config.json.

    Raises:
        CheckpointError: missing, damaged, or of a class that is not known.
    """
    from transformers import AutoImageProcessor

    values = settings_of(folder, PROCESSOR_CONFIG)
    with tokenizer_files(folder) as copy, library(folder / PROCESSOR_CONFIG, "the settings of an image processor"):
        write_json(copy / PROCESSOR_CONFIG, _processor(values))
        return AutoImageProcessor.from_pretrained(str(copy), local_files_only=True, trust_remote_code=False)


@contextlib.contextmanager
def tokenizer_files(folder: Path) -> Iterator[Path]:
    """A temporary folder: the tokenizer's files, their settings reduced to what is known, and the model's family."""
    with temporary_folder() as copy:
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                with library(folder / name, "a file inside the folder"):
                    (copy / name).write_bytes(read_bytes(inside(folder, name), MOST))
        if (folder / "tokenizer.json").is_file():
            check_tokenizer(folder)
        config = settings_of(folder, CONFIG) if (folder / CONFIG).is_file() else {}
        family = config.get("model_type")
        write_json(copy / CONFIG, {"model_type": family} if isinstance(family, str) else {})
        told = settings_of(folder, TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
        with library(folder / TOKENIZER_CONFIG, "the settings of a tokenizer"):
            write_json(copy / TOKENIZER_CONFIG, _tokenizer(told, config))
        for name, keys in (("special_tokens_map.json", TOKEN_KEYS), ("added_tokens.json", None)):
            if (folder / name).is_file():
                values = settings_of(folder, name)
                with library(folder / name, "a list of tokens"):
                    write_json(copy / name, _tokens(values, keys))
        yield copy


def _tokenizer(values: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The known keys of tokenizer_config.json."""
    found = {key: value for key, value in values.items() if key in TOKENIZER_KEYS | TOKEN_KEYS}
    kind = values.get("tokenizer_class") or config.get("tokenizer_class")
    if kind is not None:
        known = TOKENIZERS | {f"{name}Fast" for name in TOKENIZERS}
        if kind not in known:
            raise ValueError(f"tokenizer_class is {str(kind)[:60]!r}; known: {', '.join(sorted(TOKENIZERS))}")
        found["tokenizer_class"] = kind
    if isinstance(longest := found.get("model_max_length"), int | float):
        found["model_max_length"] = int(min(max(longest, 1), 1 << 30))  # transformers writes 1e30 for none
    decoder = found.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict) or not all(key.isdecimal() and int(key) < _LARGE for key in decoder):
        raise ValueError("added_tokens_decoder does not name tokens by their numbers")
    if len(decoder) > _ADDED:
        raise ValueError(f"{len(decoder):,} added tokens, more than {_ADDED:,}")
    for key, value in found.items():
        _check_token_value(key, value)
    return found


def _tokens(values: Mapping[str, Any], keys: Collection[str] | None) -> dict[str, Any]:
    """Special tokens by name, or added tokens with their numbers."""
    found = {key: value for key, value in values.items() if keys is None or key in keys}
    if len(found) > _ADDED:
        raise ValueError(f"{len(found):,} added tokens, more than {_ADDED:,}")
    for key, value in found.items():
        if keys is None and not (isinstance(value, int) and 0 <= value < _LARGE):
            raise ValueError(f"{key[:40]!r} has no number")
        _check_token_value(key, value)
    return found


def _check_token_value(key: str, value: Any) -> None:
    """Texts, numbers, and tokens: objects with a content and switches."""
    inner = value.values() if isinstance(value, dict) and "content" not in value else value
    if isinstance(inner, dict):
        for name, switch in inner.items():
            named = name in ("content", "__type", "id") and isinstance(switch, str | int)
            if not named and not isinstance(switch, bool):
                raise ValueError(f"{key}: {name} holds {_kind(switch)}")
    elif not isinstance(inner, str | bool | int | float | type(None)):
        for one in inner:
            _check_token_value(key, one)


def _processor(values: Mapping[str, Any]) -> dict[str, Any]:
    """The known keys of preprocessor_config.json, in sizes that pictures have."""
    kind = values.get("image_processor_type") or values.get("feature_extractor_type")
    name = str(kind).replace("FeatureExtractor", "ImageProcessor")
    if kind is not None and name.removesuffix("Fast") not in PROCESSORS:
        raise ValueError(f"image_processor_type is {name[:60]!r}; known: {', '.join(sorted(PROCESSORS))}")
    found = {key: value for key, value in values.items() if key in PROCESSOR_KEYS}
    for key in ("size", "crop_size", "pad_size"):
        sides = found[key].values() if isinstance(found.get(key), dict) else [found.get(key)]
        for value in sides:
            side(value, key)
    return found if kind is None else {"image_processor_type": name, **found}


def _check_numbers(values: Mapping[str, Any]) -> None:
    """Tokens are as many as tokenizers have, and lie in an array that is no larger than theirs."""
    added, words = values.get("added_tokens") or [], (values.get("model") or {}).get("vocab")
    if len(added) > _ADDED:
        raise ValueError(f"{len(added):,} added tokens, more than {_ADDED:,}")
    numbers = [*(token.get("id") for token in added), *(words.values() if isinstance(words, dict) else ())]
    for number in numbers:
        if not isinstance(number, int) or not 0 <= number < _LARGE:
            raise ValueError(f"a token has the number {str(number)[:20]}, not one from 0 to {_LARGE:,}")


def check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer.json whose normalizers would make a short text grow without measure, or with wild numbers.

    Raises:
        CheckpointError: damaged, or such a one.
    """
    values = settings_of(folder, "tokenizer.json")
    with library(folder / "tokenizer.json", "a tokenizer"):
        _check_numbers(values)
        parts = [values.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
        growth, count = 1.0, 0
        while parts:
            part = parts.pop()
            if not isinstance(part, dict):
                continue
            count += 1
            for name in ("normalizers", "pretokenizers", "processors", "decoders"):
                parts += part.get(name) or []
            content = part.get("content", "")
            if part.get("type") == "Replace" and isinstance(content, str):
                only_found = "String" in (part.get("pattern") or {}) and (part["pattern"]["String"] or "") != ""
                growth *= max(1, len(content)) if only_found else 1 + len(content)
            if max(len(part.get(name) or ()) for name in ("single", "pair", "prepend", "special_tokens")) > 256:
                raise ValueError("a template of more than 256 tokens")
            if growth > _GROWTH or count > 256:
                raise ValueError("its steps make a text longer without measure")
