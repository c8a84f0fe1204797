"""Stage 1 on toys: the loss of a step is Eq. 6 written naively; what trains, what is stored, what remains of LoRA."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from m3bind.align import methods
from m3bind.align.balance import loss_weights
from m3bind.align.methods.procrustes import initial_bridges
from m3bind.align.procrustes import Bridge
from m3bind.align.stage import AlignStage
from m3bind.config import AlignConfig, BalanceConfig, ContrastiveConfig, LoraConfig
from m3bind.training.pairs import Images
from toys import toy_inputs, toy_pairs

SIZES = {"xray": 60, "ct": 15, "ecg": 40}
BASE = {"dim": 12, "steps": 30, "batch": 8, "shared_batch": 10, "pool": 200, "lr": 1e-2}


def naive_step(pairs, bridges, settings, inputs, step):
    """Eq. 6 with loops: one direction i2t and sum, or both and mean."""
    stage_weights = loss_weights(inputs.sizes, settings.balance.literal)
    from m3bind.data.batching import EpochSampler, PoolSampler

    shares = inputs.pool_probabilities(settings.balance)
    pool = PoolSampler([inputs.pool[m] for m in pairs], [shares[m] for m in pairs], settings.shared_batch, inputs.seed)
    shared, _ = pool.batch(step)
    total, texts = torch.zeros(()), {}
    for m, p in pairs.items():
        indices = EpochSampler(len(p), settings.batch, inputs.seed, f"align {m}").batch(step)
        captions = p.draw_captions(indices, inputs.seed, step)
        table = p.texts.table

        def encode(ids, p=p, m=m, table=table):
            return bridges[m](p.model.encode_text(p.model.tokenize([table[i] for i in ids])))

        image = bridges[m](p.images.embed(indices))
        text = encode(captions)
        texts[m] = encode(shared)
        loss = torch.zeros(())
        for i in range(len(indices)):
            scores = p.model.logit_scale * torch.stack([image[i] @ text[j] for j in range(len(indices))])
            loss = loss - (scores[i] - torch.logsumexp(scores, 0))
        total = total + stage_weights[m] * loss
    names = list(pairs)
    for a in range(len(names)):
        for b in range(a + 1, len(names)):
            mse = torch.stack(
                [(texts[names[a]][i] - texts[names[b]][i]).square().sum() for i in range(len(shared))]
            ).mean()
            total = total + settings.mse_weight * stage_weights[names[a]] * stage_weights[names[b]] * mse
    return total


@pytest.mark.parametrize("literal", [False, True])
def test_the_loss_of_a_step_is_equation_6(tmp_path, literal):
    settings = AlignConfig(
        **BASE,
        text="frozen",
        balance=BalanceConfig(literal=literal),
        contrastive=ContrastiveConfig(direction="i2t", reduction="sum", positives="diagonal"),
    )
    pairs = toy_pairs(SIZES)
    inputs = toy_inputs(pairs, tmp_path)
    bridges = initial_bridges(inputs, settings)
    stage = AlignStage(inputs, bridges, settings)
    for step in (0, 3):
        expected = naive_step(pairs, bridges, settings, inputs, step)
        torch.testing.assert_close(stage.losses(stage.batch(step))["loss"], expected, rtol=1e-5, atol=1e-6)


def with_copies(pairs, names, spread=0.6):
    """The pairs with three views of each image's embedding, the first of them the embedding."""
    random = np.random.default_rng(0)
    for m in names:
        rows = np.asarray(pairs[m].images.rows.array)
        offset = spread * random.standard_normal(rows.shape[1])  # a quality that is lost: the same direction everywhere
        views = np.stack([rows, rows + offset, rows - offset], axis=1)
        views /= np.linalg.norm(views, axis=-1, keepdims=True)
        pairs[m].images = Images(pairs[m].model, "embedding", views.astype(np.float32), views=3)
    return pairs


def test_consistency_is_the_weighted_distance_of_copies_to_their_images(tmp_path):
    pairs = with_copies(toy_pairs(SIZES, image="embedding"), ["xray", "ecg"])
    plain, settings = AlignConfig(**BASE, text="head"), AlignConfig(**BASE, text="head", consistency=2.0)
    inputs = toy_inputs(pairs, tmp_path)
    bridges = initial_bridges(inputs, settings)
    stage, without = AlignStage(inputs, bridges, settings), AlignStage(inputs, bridges, plain)
    batch = stage.batch(3)
    losses, expected = stage.losses(batch), torch.zeros(())
    assert "copies" not in batch["pairs"]["ct"]
    for m in ("xray", "ecg"):
        image, copy = (bridges[m](batch["pairs"][m][key]["images"]["rows"]) for key in ("images", "copies"))
        expected += stage.weights[m] * (image - copy).square().sum(1).mean()
    torch.testing.assert_close(losses["consistency"], expected)
    assert expected > 0.01
    torch.testing.assert_close(losses["loss"], without.losses(without.batch(3))["loss"] + 2 * expected)


def test_consistency_draws_copies_to_their_images(tmp_path):
    def spread(consistency):
        pairs = with_copies(toy_pairs(SIZES, image="embedding"), SIZES)
        settings = AlignConfig(**BASE, consistency=consistency)
        bridges = methods.get("m3bind").bind(toy_inputs(pairs, tmp_path / str(consistency)), settings)
        with torch.no_grad():
            rows = {m: bridges[m](torch.from_numpy(p.images.rows.array)) for m, p in pairs.items()}
        return np.mean([float((r[:, 1:] - r[:, :1]).square().sum(-1).mean()) for r in rows.values()])

    assert spread(20.0) < 0.7 * spread(0.0)


def within(pairs, bridges):
    """Cosines between images and texts of each modality, before and after the bridge."""
    answer = {}
    with torch.no_grad():
        for m, p in pairs.items():
            image = p.images.embed(np.arange(len(p)))
            text = p.texts.embed(np.concatenate(p.captions))
            answer[m] = (image @ text.T, bridges[m](image) @ bridges[m](text).T)
    return answer


@pytest.mark.parametrize("bridge", ["procrustes", "identity"])
def test_initial_bridges_keep_every_cosine(tmp_path, bridge):
    pairs = toy_pairs(SIZES)
    bridges = initial_bridges(toy_inputs(pairs, tmp_path), AlignConfig(**BASE, bridge=bridge))
    for before, after in within(pairs, bridges).values():
        torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "image"), [("lora", "lora"), ("head", "bridge"), ("lora", "frozen"), ("frozen", "head")]
)
def test_training_draws_the_text_towers_together_and_changes_only_what_it_should(tmp_path, text, image):
    pairs = toy_pairs(SIZES)
    before = {m: {k: v.clone() for k, v in p.model.state_dict().items()} for m, p in pairs.items()}
    settings = AlignConfig(**BASE, text=text, image=image, lora=LoraConfig(dropout=0.0))
    inputs = toy_inputs(pairs, tmp_path)
    start = initial_bridges(inputs, settings)
    ids = torch.arange(len(pairs["xray"].texts.table))

    def distance(bridges):
        rows = torch.stack([bridges[m](inputs.embed_texts(m, ids)) for m in pairs])
        return float((rows - rows.mean(0)).square().sum(-1).mean().detach())

    apart = distance(start)
    bridges = methods.get("m3bind").bind(inputs, settings)
    assert distance(bridges) < apart
    for m, p in pairs.items():
        after = p.model.state_dict()
        assert after.keys() == before[m].keys()
        changed = {name.split(".")[0] for name in after if not torch.equal(after[name], before[m][name])}
        allowed = (
            {"lora": "text_trunk", "head": "text_head", "frozen": ""}[text],
            {"lora": "image_trunk", "head": "image_head"}.get(image, ""),
        )
        assert changed <= set(allowed) - {""} and changed
        assert torch.equal(start[m].weight, bridges[m].weight) == (image == "frozen")


@pytest.mark.parametrize("die_at", [2, 17])  # before and after the first checkpoint
def test_killed_in_stage_1_and_resumed_gives_the_same_bits(tmp_path, die_at):
    settings = AlignConfig(**BASE, text="lora", lora=LoraConfig(dropout=0.1), checkpoint_steps=7)

    def bind(folder, die_at=None):
        pairs = toy_pairs(SIZES)
        inputs = toy_inputs(pairs, folder)
        original = AlignStage.batch

        def batch(self, step):
            if step == die_at:
                raise KeyboardInterrupt
            return original(self, step)

        AlignStage.batch = batch
        try:
            bridges = methods.get("m3bind").bind(inputs, settings)
        finally:
            AlignStage.batch = original
        return [b.weight for b in bridges.values()] + [v for p in pairs.values() for v in p.model.state_dict().values()]

    whole = bind(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        bind(tmp_path / "broken", die_at=die_at)
    torch.manual_seed(12345)  # a resumed process has another history of random numbers
    resumed = bind(tmp_path / "broken")
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_one_modality_alone_has_no_text_text_term(tmp_path):
    pairs = toy_pairs({"xray": 30})
    inputs = toy_inputs(pairs, tmp_path)
    settings = AlignConfig(**BASE, text="frozen")
    stage = AlignStage(inputs, {"xray": Bridge(torch.eye(6, 12))}, settings)
    losses = stage.losses(stage.batch(0))
    assert set(losses) == {"clip/xray", "loss"}


def test_text_contrastive_separates_texts_that_mse_alone_would_collapse(tmp_path):
    spread = {}
    for weight in (0.0, 5.0):
        pairs = toy_pairs(SIZES)
        inputs = toy_inputs(pairs, tmp_path / str(weight))
        settings = AlignConfig(**BASE | {"steps": 60}, text="head", mse_weight=50.0, text_contrastive=weight)
        bridges = methods.get("m3bind").bind(inputs, settings)
        rows = bridges["xray"](inputs.embed_texts("xray", torch.arange(30)))
        cosines = F.normalize(rows, dim=-1) @ F.normalize(rows, dim=-1).T
        spread[weight] = float((cosines.sum() - 30) / (30 * 29))
    assert spread[5.0] < spread[0.0]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_parts_of_a_batch_give_the_gradients_of_the_whole(tmp_path, dropout):
    gradients = []
    for micro in ({}, {"micro_batch": 3, "micro_batches": {"ct": 1}, "micro_tokens": 12}):
        pairs = toy_pairs(SIZES)
        settings = AlignConfig(**BASE, text="lora", image="lora", lora=LoraConfig(dropout=dropout), **micro)
        inputs = toy_inputs(pairs, tmp_path)
        stage = AlignStage(inputs, initial_bridges(inputs, settings), settings)
        for group in stage.groups():
            for parameter in group.parameters:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
        torch.manual_seed(0)
        loss = stage.losses(stage.batch(0))["loss"]
        loss.backward()
        found = [p.grad for group in stage.groups() for p in group.parameters]
        assert all(g is not None and g.abs().max() > 0 for g in found)
        torch.manual_seed(0)
        assert torch.equal(stage.losses(stage.batch(0))["loss"], loss)
        gradients.append([loss.detach(), *found])
    if dropout == 0:  # with dropout, parts draw other masks than the whole; each way repeats itself
        for whole, parts in zip(*gradients, strict=True):
            torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


def test_recomputed_parts_use_the_same_dropout(tmp_path):
    """The gradient of a part is that of the masks its forward pass drew, by finite differences."""
    pairs = toy_pairs(SIZES)
    settings = AlignConfig(**BASE, text="lora", image="lora", lora=LoraConfig(dropout=0.3), micro_batch=3)
    inputs = toy_inputs(pairs, tmp_path)
    bridges = initial_bridges(inputs, settings)
    stage = AlignStage(inputs, bridges, settings)
    target = next(p for g in stage.groups() if g.name == "xray" for p in g.parameters)
    with torch.no_grad():
        for group in stage.groups():
            for parameter in group.parameters:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        return stage.losses(stage.batch(0))["loss"]

    loss().backward()
    place = tuple(int(i) for i in np.unravel_index(int(target.grad.abs().argmax()), target.shape))
    slope, step = float(target.grad[place]), 1e-2
    with torch.no_grad():
        target[place] += step
        above = float(loss())
        target[place] -= 2 * step
        below = float(loss())
    assert (above - below) / (2 * step) == pytest.approx(slope, rel=0.05)


def test_two_maps_start_as_one_and_then_part(tmp_path):
    made = {}
    for maps, steps in (("one", 0), ("two", 0), ("two", 20)):
        pairs = toy_pairs(SIZES)
        settings = AlignConfig(**{**BASE, "steps": steps}, text="frozen", bridge_maps=maps)
        bridges = methods.get("m3bind").bind(toy_inputs(pairs, tmp_path / f"{maps}{steps}"), settings)
        images, texts = pairs["ct"].images.embed(np.arange(15)), pairs["ct"].texts.embed(np.arange(15))
        with torch.no_grad():
            made[maps, steps] = bridges["ct"].image(images), bridges["ct"].text(texts), bridges["ct"]
    for side in (0, 1):
        torch.testing.assert_close(made["two", 0][side], made["one", 0][side], rtol=1e-5, atol=1e-6)
    trained = made["two", 20][2]
    assert not torch.allclose(trained.images.weight, trained.texts.weight, atol=1e-3)
