"""Binding from Python, without a settings file or a run's folder: models and texts in, a space out."""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from m3bind.align import methods
from m3bind.config import AlignConfig, ModelConfig, PostConfig, RunConfig
from m3bind.core.device import pick
from m3bind.data.cache import FeatureCache
from m3bind.data.records import Record
from m3bind.errors import ConfigError
from m3bind.models.base import DualEncoder
from m3bind.pipeline import stages
from m3bind.pipeline.dataset import make_dataset
from m3bind.pipeline.features import FeatureExtractor
from m3bind.pipeline.reference_texts import reference_texts
from m3bind.space.bundle import Space

Pair = tuple[Path | str, str]  # an image file and its caption


def bind(
    models: Mapping[str, DualEncoder],
    texts: Sequence[str] | Mapping[str, Sequence[str]],
    pairs: Mapping[str, Sequence[Pair]] | None = None,
    *,
    settings: AlignConfig | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int | str = "auto",
) -> Space:
    """Bind dual encoders through texts that all of them embed.

    Without `settings`, the text spaces are rotated onto each other in closed form (Procrustes): this takes seconds,
    needs no images, and preserves zero-shot of every model. With `settings`, any binding method: `AlignConfig(
    steps=2000)` is stage 1 of the paper (Eq. 1-6), which needs `pairs`.

    Args:
        models: modality -> dual encoder with its weights, e.g. {"ct": m3bind.models.load("ct_clip", FILE)}. Models
            that the method trains are copied first.
        texts: the shared pool, some hundreds of texts or more; or the texts that each modality contributes.
        pairs: modality -> (image file, caption) to train on.
        settings: of stage 1; None: closed form.
        folder: for checkpoints and cached features, from which a killed call resumes; default: a temporary folder.
        seed: of all random numbers.
        device: where to compute: "auto" (a GPU if available), "cpu", "cuda", "cuda:1", "mps"; models are moved there.
        workers: processes that read files; "auto": one per core.

    Returns:
        The space. `m3bind.save_space` writes it; it contains reference texts for ranking hits (search/ranking.py), and
        with `pairs` the means that gap correction needs.

    Raises:
        ConfigError: fewer than two models, no texts, missing pairs, or a file that cannot be read.
        UnknownNameError: no such method, option or modality.
    """
    names = list(models)
    settings = settings or AlignConfig(method="procrustes", dim=max([8, *(m.joint_dim for m in models.values())]))
    pool = dict(texts) if isinstance(texts, Mapping) else dict.fromkeys(names, texts)
    _check(names, pool, pairs, settings)
    method = methods.get(settings.method)
    compute = pick(device, workers=workers)
    used = {m: (copy.deepcopy(model) if method.towers else model).to(compute.device) for m, model in models.items()}
    with tempfile.TemporaryDirectory(prefix="m3bind-") as temporary:
        place = Path(folder or temporary)
        extractor = FeatureExtractor(FeatureCache(place / "cache"), workers=compute.workers)
        records = [record for m in names for record in _readable(m, (pairs or {}).get(m, ()), used[m], extractor)]
        config = RunConfig(
            name="bind", seed=seed, align=settings, modalities={m: ModelConfig(model=used[m].name) for m in names}
        )
        data = make_dataset(records, names, {m: list(pool.get(m, ())) for m in names}, seed, 0, [])
        setup = stages.Setup(config, data, extractor, compute)
        state = stages.align(stages.unbound(stages.State(used), setup), setup, place / "align")
        means = {m: stages.embed_images(state, setup, m, "train").mean(0) for m in names if data.records[m]["train"]}
        references = reference_texts(data, lambda m, part: stages.embed_text(state, setup, part, m), seed)
        return Space(state.models, state.bridges, means, texts=references)


def _check(
    names: Sequence[str],
    pool: Mapping[str, Sequence[str]],
    pairs: Mapping[str, Sequence[Pair]] | None,
    settings: AlignConfig,
) -> None:
    if len(names) < 2:
        raise ConfigError(f"binding takes at least two models, not {len(names)}")
    if not any(pool.values()):
        raise ConfigError("no texts: give some hundreds or more, for all text towers")
    for m in {*pool, *(pairs or {})} - set(names):
        raise ConfigError(f"texts or pairs of {m!r}, which is none of the models' modalities ({', '.join(names)})")
    if settings.consistency:
        raise ConfigError("consistency has no effect: the copies of images that it needs are made by m3bind fit alone")
    needs = methods.get(settings.method).uses or (("images",) if settings.post != PostConfig() else ())
    lacking = [m for m in names if needs and not (pairs or {}).get(m)]
    if lacking:
        raise ConfigError(f"{settings.method} uses {', '.join(needs)}: give pairs of {', '.join(lacking)}")


def _readable(
    modality: str, pairs: Sequence[Pair], model: DualEncoder, extractor: FeatureExtractor
) -> Sequence[Record]:
    """The pairs as records.

    Raises:
        ConfigError: a file cannot be read.
    """
    records = [
        Record(f"{modality}{n}", modality, Path(path), "", (), (caption,), (), f"{n}", "train", "")
        for n, (path, caption) in enumerate(pairs)
    ]
    good, bad = extractor.readable(records, model)
    if bad:
        raise ConfigError(f"{len(bad)} files of {modality} cannot be read, first {bad[0].path}: {bad[0].reason}")
    return good
