"""Tokenizers and image processors of third-party folders, validated by allow-lists before transformers reads them.

* `open_tokenizer`, `open_processor`: by transformers, from the folder's files.
* `tokenizer_files`: a reduced copy of the folder. `check_tokenizer`: the limits on tokenizer.json.

transformers reads a copy of the folder that holds only known data files, their JSON reduced to known keys: code,
addresses, adapters, kernels and templates are not copied.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from m3bind.core.files import write_json
from m3bind.core.stored import inside, read_bytes
from m3bind.errors import CheckpointError
from m3bind.modalities.formats.archive import temporary_folder
from m3bind.models.weights.allowed import (
    PROCESSOR_KEYS,
    PROCESSORS,
    TOKEN_KEYS,
    TOKENIZER_FILES,
    TOKENIZER_KEYS,
    TOKENIZERS,
)
from m3bind.models.weights.external import CONFIG, MAX_BYTES, MAX_NUMBER, kind_of, library, settings_of, side

TOKENIZER_CONFIG, PROCESSOR_CONFIG = "tokenizer_config.json", "preprocessor_config.json"
_MAX_ADDED = 20_000  # tokens beside a vocabulary
_MAX_GROWTH = 4096  # factor by which a tokenizer's normalizer may lengthen a text


def open_tokenizer(folder: Path) -> Any:
    """A folder's tokenizer, opened by transformers.

    Raises:
        CheckpointError: its files are missing or damaged, or need code or an unknown class.
    """
    from transformers import AutoTokenizer

    require_tokenizer(folder)
    with tokenizer_files(folder) as copy, library(folder, "a folder with a tokenizer"):
        return AutoTokenizer.from_pretrained(str(copy), local_files_only=True, trust_remote_code=False)


def require_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer's files, for which the libraries would make one without words.

    Raises:
        CheckpointError: none of the files is there.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        files = ", ".join(sorted(TOKENIZER_FILES))
        raise CheckpointError(f"{folder}: no tokenizer; copy the model's own files into it, some of {files}.")


def open_processor(folder: Path) -> Any:
    """A folder's image processor, opened by transformers from preprocessor_config.json.

    Raises:
        CheckpointError: missing, damaged, or of an unknown class.
    """
    from transformers import AutoImageProcessor

    values = settings_of(folder, PROCESSOR_CONFIG)
    with tokenizer_files(folder) as copy, library(folder / PROCESSOR_CONFIG, "the settings of an image processor"):
        write_json(copy / PROCESSOR_CONFIG, _processor(values))
        return AutoImageProcessor.from_pretrained(str(copy), local_files_only=True, trust_remote_code=False)


@contextlib.contextmanager
def tokenizer_files(folder: Path) -> Iterator[Path]:
    """A temporary folder: the tokenizer's files, their settings reduced to known keys, and the model's family."""
    with temporary_folder() as copy:
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                with library(folder / name, "a file inside the folder"):
                    (copy / name).write_bytes(read_bytes(inside(folder, name), MAX_BYTES))
        if (folder / "tokenizer.json").is_file():
            check_tokenizer(folder)
        config = settings_of(folder, CONFIG) if (folder / CONFIG).is_file() else {}
        family = config.get("model_type")
        write_json(copy / CONFIG, {"model_type": family} if isinstance(family, str) else {})
        values = settings_of(folder, TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
        with library(folder / TOKENIZER_CONFIG, "the settings of a tokenizer"):
            write_json(copy / TOKENIZER_CONFIG, _tokenizer(values, config))
        for name, keys in (("special_tokens_map.json", TOKEN_KEYS), ("added_tokens.json", None)):
            if (folder / name).is_file():
                values = settings_of(folder, name)
                with library(folder / name, "a list of tokens"):
                    write_json(copy / name, _tokens(values, keys))
        yield copy


def _tokenizer(values: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The known keys of tokenizer_config.json."""
    reduced = {key: value for key, value in values.items() if key in TOKENIZER_KEYS | TOKEN_KEYS}
    kind = values.get("tokenizer_class") or config.get("tokenizer_class")
    if kind is not None:
        known = TOKENIZERS | {f"{name}Fast" for name in TOKENIZERS}
        if kind not in known:
            raise ValueError(f"tokenizer_class is {str(kind)[:60]!r}; known: {', '.join(sorted(TOKENIZERS))}")
        reduced["tokenizer_class"] = kind
    if isinstance(longest := reduced.get("model_max_length"), int | float):
        reduced["model_max_length"] = int(min(max(longest, 1), 1 << 30))  # transformers writes 1e30 for no limit
    decoder = reduced.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict) or not all(key.isdecimal() and int(key) < MAX_NUMBER for key in decoder):
        raise ValueError("added_tokens_decoder does not name tokens by their numbers")
    if len(decoder) > _MAX_ADDED:
        raise ValueError(f"{len(decoder):,} added tokens, more than {_MAX_ADDED:,}")
    for key, value in reduced.items():
        _check_token_value(key, value)
    return reduced


def _tokens(values: Mapping[str, Any], keys: Collection[str] | None) -> dict[str, Any]:
    """Special tokens by name, or added tokens with their numbers."""
    reduced = {key: value for key, value in values.items() if keys is None or key in keys}
    if len(reduced) > _MAX_ADDED:
        raise ValueError(f"{len(reduced):,} added tokens, more than {_MAX_ADDED:,}")
    for key, value in reduced.items():
        if keys is None and not (isinstance(value, int) and 0 <= value < MAX_NUMBER):
            raise ValueError(f"{key[:40]!r} has no number")
        _check_token_value(key, value)
    return reduced


def _check_token_value(key: str, value: Any) -> None:
    """Accept texts, numbers, and tokens, which are objects with a content and booleans."""
    inner = value.values() if isinstance(value, dict) and "content" not in value else value
    if isinstance(inner, dict):
        for name, part in inner.items():
            named = name in ("content", "__type", "id") and isinstance(part, str | int)
            if not named and not isinstance(part, bool):
                raise ValueError(f"{key}: {name} holds {kind_of(part)}")
    elif not isinstance(inner, str | bool | int | float | type(None)):
        for part in inner:
            _check_token_value(key, part)


def _processor(values: Mapping[str, Any]) -> dict[str, Any]:
    """The known keys of preprocessor_config.json, with sizes within the limits."""
    kind = values.get("image_processor_type") or values.get("feature_extractor_type")
    name = str(kind).replace("FeatureExtractor", "ImageProcessor")
    if kind is not None and name.removesuffix("Fast") not in PROCESSORS:
        raise ValueError(f"image_processor_type is {name[:60]!r}; known: {', '.join(sorted(PROCESSORS))}")
    reduced = {key: value for key, value in values.items() if key in PROCESSOR_KEYS}
    for key in ("size", "crop_size", "pad_size"):
        sides = reduced[key].values() if isinstance(reduced.get(key), dict) else [reduced.get(key)]
        for value in sides:
            side(value, key)
    return reduced if kind is None else {"image_processor_type": name, **reduced}


def _check_numbers(values: Mapping[str, Any]) -> None:
    """Limit the number of tokens, and their ids, which set the size of an array."""
    added, words = values.get("added_tokens") or [], (values.get("model") or {}).get("vocab")
    if len(added) > _MAX_ADDED:
        raise ValueError(f"{len(added):,} added tokens, more than {_MAX_ADDED:,}")
    numbers = [*(token.get("id") for token in added), *(words.values() if isinstance(words, dict) else ())]
    for number in numbers:
        if not isinstance(number, int) or not 0 <= number < MAX_NUMBER:
            raise ValueError(f"a token has the number {str(number)[:20]}, not one from 0 to {MAX_NUMBER:,}")


def check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer.json whose steps could lengthen a text without limit, or with token ids out of range.

    Raises:
        CheckpointError: damaged, or beyond the limits.
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
                literal = (part.get("pattern") or {}).get("String")  # an empty one matches everywhere
                growth *= max(1, len(content)) if literal else 1 + len(content)
            if max(len(part.get(name) or ()) for name in ("single", "pair", "prepend", "special_tokens")) > 256:
                raise ValueError("a template of more than 256 tokens")
            if growth > _MAX_GROWTH or count > 256:
                raise ValueError("its steps make a text longer without measure")
