import json
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

import m3bind
from m3bind.errors import ConfigError, NotFiniteError, ReadError, SpaceError, UnknownNameError
from m3bind.models.bridges import Affine, Head, Relative, Sided, freeze
from m3bind.models.embedding import correct_gap
from m3bind.space.bundle import Space, load, save_space
from space import tiny

TEXTS = ["normal heart", "abnormal lung, dark", "x", "normal heart", "a bright picture of a heart" * 3]


def everything(space, paths):
    """All embeddings a space can give."""
    arrays = [space.encode_image(paths, modality) for modality in space.modalities]
    arrays += [space.encode_text(TEXTS, text) for text in space.text_encoders]
    return arrays + [space.image_mean(modality) for modality in space.modalities]


def assert_same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_saved_and_loaded_gives_bitwise_the_same(tmp_path):
    space, paths = tiny.make_space(), tiny.pictures(tmp_path, 7)
    before = everything(space, paths)
    loaded = m3bind.load(save_space(space, tmp_path / "space"))
    assert_same(before, everything(loaded, paths))
    assert loaded.modalities == ("grey", "other") and loaded.text_encoders == ("grey", "other", "student")
    assert loaded.dim == 8 and loaded.fingerprint == space.fingerprint
    assert loaded.logit_scale("other") == pytest.approx(np.exp(3.0))
    assert loaded.licences == {"grey": "CC0-1.0", "other": "CC0-1.0"}
    np.testing.assert_array_equal(loaded.bridge("grey"), space.bridge("grey"))


def test_all_embeddings_are_float32_unit_rows_in_order(tmp_path):
    space, paths = tiny.make_space(), tiny.pictures(tmp_path, 5)
    for rows in everything(space, paths)[:5]:
        assert rows.dtype == np.float32 and rows.shape == (5, 8)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(space.encode_text(TEXTS, "grey")[0], space.encode_text(TEXTS, "grey")[3])
    np.testing.assert_allclose(space.encode_text(TEXTS)[[2]], space.encode_text("x"), atol=1e-6)
    np.testing.assert_allclose(space.encode_image(paths, "grey", batch=2), space.encode_image(paths, "grey"), atol=1e-6)
    assert space.encode_text([]).shape == space.encode_image([], "grey").shape == (0, 8)


def test_a_bridge_with_orthonormal_rows_keeps_cosines(tmp_path):
    space, paths = tiny.make_space(), tiny.pictures(tmp_path, 4)
    model = space.model("grey")
    with torch.no_grad():
        image = model.encode_image(torch.stack([space.read(path, "grey") for path in paths]))
        text = model.encode_text(model.tokenize(TEXTS))
    cosines = space.similarity(space.encode_image(paths, "grey"), space.encode_text(TEXTS, "grey"))
    np.testing.assert_allclose(cosines, (image @ text.T).numpy(), atol=1e-6)


def test_each_distinct_text_is_encoded_once(monkeypatch):
    space, counted = tiny.make_space(), []
    encode = tiny.Tiny.encode_text
    monkeypatch.setattr(
        tiny.Tiny, "encode_text", lambda self, t: counted.append(len(t["input_ids"])) or encode(self, t)
    )
    space.encode_text(TEXTS * 10, "grey")
    assert sum(counted) == 4


def test_identical_trunks_are_stored_and_loaded_once(tmp_path):
    folder = save_space(tiny.make_space(), tmp_path / "space")
    content = json.loads((folder / "space.json").read_text())
    weights = {name: entry["weights"] for name, entry in content["modalities"].items()}
    assert weights["grey"]["text_trunk"] == weights["other"]["text_trunk"]
    assert weights["grey"]["text_head"] != weights["other"]["text_head"]
    # shared: 2 trunks; own: 2 heads and a scale per modality; student: trunk and head; bridges with means
    assert len(list((folder / "weights").iterdir())) == 2 + 2 * 3 + 2 + 1
    space = load(folder)
    pointers = [space.model(m).text_trunk.table.weight.data_ptr() for m in space.modalities]
    assert pointers[0] == pointers[1]
    assert not any(p.requires_grad for p in space.model("grey").parameters())


def test_modules_known_under_two_names_are_stored_once_and_filled():
    from m3bind.space.folder import join_state, split_state

    class Twice(torch.nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.encoder = torch.nn.ModuleDict({"trunk": torch.nn.Linear(2, 2)})
            self.trunk = self.encoder["trunk"]
            self.scale = torch.nn.Parameter(torch.rand(()))

    one, two = Twice(0), Twice(1)
    split = split_state(one, ("trunk",))
    assert {part: sorted(state) for part, state in split.items()} == {"trunk": ["bias", "weight"], "rest": ["scale"]}
    join_state(two, split, "here")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    with pytest.raises(SpaceError, match="no weights for scale"):
        join_state(two, {"trunk": split["trunk"]}, "here")
    with pytest.raises(SpaceError, match="unexpected strange"):
        join_state(two, {**split, "rest": {"strange": torch.zeros(1)}}, "here")


def test_loading_leaves_random_numbers_alone(tmp_path):
    folder = save_space(tiny.make_space(), tmp_path / "space")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(folder)
    assert torch.equal(torch.rand(3), expected)


def test_training_mode_is_put_back(tmp_path):
    space, paths = tiny.make_space(), tiny.pictures(tmp_path, 2)
    model = space.model("grey").train()
    model.text_trunk.eval()
    everything(space, paths)
    assert model.training and model.image_trunk.training and not model.text_trunk.training


def test_information_survives(tmp_path):
    info = {
        "config": {"seed": 3, "dims": {1: "a", 10: "b", 2: "c"}},
        "prompts": {"grey": ["a {} picture"]},
        "records": {"grey": {"train": 12, "test": 3}},
        "synthetic": True,
    }
    space = load(save_space(tiny.make_space(**info), tmp_path / "space"))
    assert space.synthetic and space.info.prompts == info["prompts"] and space.info.records == info["records"]
    assert space.info.config["dims"]["10"] == "b" and space.info.versions["m3bind"] == m3bind.__version__
    content = json.loads((tmp_path / "space" / "space.json").read_text())
    assert set(content["prompts_hashes"]) == {"grey"} and content["modalities"]["grey"]["card"]["source"] == "here"
    text = repr(space)
    for piece in ("8 dimensions", "SYNTHETIC", "grey: tiny (6 -> 8)", "train 12", "CC0-1.0", "student"):
        assert piece in text


def test_saving_twice_gives_the_same_bytes_and_overwrites_only_spaces(tmp_path):
    folder = save_space(tiny.make_space(), tmp_path / "a")
    again = save_space(load(folder), tmp_path / "b")
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    assert files and all((folder / f).read_bytes() == (again / f).read_bytes() for f in files)
    save_space(tiny.make_space(seed=4), folder)
    assert load(folder).logit_scale("grey") == pytest.approx(np.exp(6.0))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not a space"):
        save_space(tiny.make_space(), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_fingerprint_follows_what_embeddings_depend_on(tmp_path):
    prints = [
        load(save_space(space, tmp_path / str(i))).fingerprint
        for i, space in enumerate(
            [tiny.make_space(), tiny.make_space(notes="x", synthetic=True), tiny.make_space(seed=1)]
        )
    ]
    assert prints[0] == prints[1] != prints[2]
    with pytest.raises(SpaceError, match="memory only"):
        _ = tiny.make_space().fingerprint


def test_every_damaged_or_missing_file_is_named(tmp_path):
    folder = save_space(tiny.make_space(), tmp_path / "space")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) > 10
    for path in files:
        good = path.read_bytes()
        for harm in ("flip", "truncate", "remove"):
            bad = bytearray(good)
            bad[len(good) // 3] ^= 16
            path.write_bytes(bad[: len(good) // 2] if harm == "truncate" else bad)
            if harm == "remove":
                path.unlink()
            with pytest.raises(SpaceError) as caught:
                load(folder)
            assert path.name in str(caught.value) and any(word in str(caught.value) for word in ("again", "holds no"))
        path.write_bytes(good)
    load(folder)


def change(folder, **values):
    """Rewrite space.json with a fitting checksum, as an attacker would."""
    from m3bind.space.folder import manifest_checksum

    content = json.loads((folder / "space.json").read_text())
    del content["checksum"]
    content.update(values)
    (folder / "space.json").write_text(json.dumps({**content, "checksum": manifest_checksum(content)}))


def test_other_folders_newer_versions_and_files_outside_are_refused(tmp_path):
    with pytest.raises(SpaceError, match=r"holds no space\.json"):
        load(tmp_path)
    with pytest.raises(SpaceError, match=r"holds no space\.json"):
        load(tmp_path / "nothing")
    folder = save_space(tiny.make_space(), tmp_path / "space")
    change(folder, version=99)
    with pytest.raises(SpaceError, match="newer m3bind"):
        load(folder)
    change(folder, version=1, files={"../secret": "0"})
    with pytest.raises(SpaceError, match="outside the space"):
        load(folder)


def test_a_process_that_died_while_replacing_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr("m3bind.space.reader.PATIENCE", 0.1)
    save_space(tiny.make_space(), tmp_path / "space").rename(tmp_path / ".space.77.old")
    with pytest.raises(SpaceError, match=r"rename .*\.space\.77\.old to"):
        load(tmp_path / "space")


def test_hub_id_without_connection_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpaceError, match="cannot be fetched from the Hugging Face hub"):
        load("nobody/no-such-space-here")


def test_hub_id_is_fetched_and_opened(monkeypatch, tmp_path):
    import huggingface_hub

    folder, asked = save_space(tiny.make_space(), tmp_path / "space"), []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(folder))
    assert load("someone/a-space").dim == 8 and asked == ["someone/a-space"]


def test_questions_that_cannot_be_answered(tmp_path):
    space = tiny.make_space(distilled=False)
    with pytest.raises(SpaceError, match=r"no student.*grey"):
        space.encode_text(["a"])
    with pytest.raises(UnknownNameError, match="did you mean 'grey'"):
        space.encode_text(["a"], encoder="gray")
    with pytest.raises(UnknownNameError, match="did you mean 'other'"):
        space.encode_image([], "others")
    with pytest.raises(ConfigError, match="text 1 is empty"):
        space.encode_text(["a", " "], "grey")
    with pytest.raises(ReadError, match="no such file"):
        space.encode_image([tmp_path / "none.png"], "grey")
    with pytest.raises(SpaceError, match="no image mean"):
        Space({"grey": space.model("grey")}, {"grey": space.bridge("grey")}).image_mean("grey")


def test_parts_that_do_not_fit_are_refused(tmp_path):
    model = tiny.Tiny()
    with pytest.raises(SpaceError, match="one bridge per modality"):
        Space({"grey": model}, {})
    with pytest.raises(SpaceError, match="shape"):
        Space({"grey": model}, {"grey": np.eye(5, 8)})
    with pytest.raises(SpaceError, match="not finite"):
        Space({"grey": model}, {"grey": np.full((6, 8), np.nan)})
    with pytest.raises(SpaceError, match="student"):
        Space({"student": model}, {"student": np.eye(6, 8)})
    space = Space({"grey": model}, {"grey": np.eye(6, 8)})
    model.image_head.lora_A = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="merge"):
        save_space(space, tmp_path / "space")
    assert not (tmp_path / "space").exists()


def test_embeddings_that_are_not_finite_stop(tmp_path):
    space, paths = tiny.make_space(), tiny.pictures(tmp_path, 1)
    with torch.no_grad():
        space.model("grey").image_head.weight.fill_(torch.nan)
        space.model("grey").text_head.weight.fill_(torch.nan)
    with pytest.raises(NotFiniteError):
        space.encode_image(paths, "grey")
    with pytest.raises(NotFiniteError):
        space.encode_text(["a"], "grey")


def test_classify_is_the_softmax_of_scaled_cosines(tmp_path):
    space, paths = tiny.make_space(prompts={"grey": ["a {} picture", "{}"]}), tiny.pictures(tmp_path, 6)
    labels = ["normal", "abnormal", "bright"]
    for text in (None, "grey", "other"):
        got = space.classify(paths, "grey", labels, encoder=text)
        path = text or "student"
        means = np.stack([space.encode_text([f"a {label} picture", label], path).mean(0) for label in labels])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        logits = space.logit_scale("grey") * space.encode_image(paths, "grey") @ means.T
        expected = torch.softmax(torch.from_numpy(logits), 1).numpy()
        np.testing.assert_allclose(got, expected, atol=1e-5)
    own = {label: [label] for label in labels}
    np.testing.assert_array_equal(
        space.classify(paths, "grey", labels, own), space.classify(paths, "grey", labels, ["{}"])
    )
    np.testing.assert_array_equal(space.classify(paths, "other", labels), space.classify(paths, "other", labels, own))
    wordings = {label: [f"{label} one", f"{label} two"] for label in labels}  # labels with their own prompts
    np.testing.assert_array_equal(
        space.classify(paths, "grey", wordings), space.classify(paths, "grey", labels, wordings)
    )


@pytest.mark.parametrize(
    ("labels", "prompts", "message"),
    [
        ([], None, "list of labels"),
        ("normal", None, "list of labels"),
        (["a"], {"b": ["b"]}, "no list of prompts for label 'a'"),
        (["a"], "a {}", "must be a list"),
        (["a"], ["a {x}"], "where the label goes"),
        (["a"], ["nothing"], "where the label goes"),
    ],
)
def test_classes_that_make_no_sense_are_refused(labels, prompts, message):
    with pytest.raises(ConfigError, match=message):
        tiny.make_space().class_embeddings(labels, "grey", prompts)


def test_gap_correction_takes_the_mean_away():
    rng = np.random.default_rng(0)
    rows, mean = rng.normal(size=(5, 8)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    expected = (rows - mean) / np.linalg.norm(rows - mean, axis=1, keepdims=True)
    np.testing.assert_allclose(correct_gap(rows, mean), expected, atol=1e-6)
    np.testing.assert_array_equal(correct_gap(mean[None], mean), np.zeros((1, 8)))


USE = """
import sys
from space import tiny
tiny.register()
import m3bind
space = m3bind.load(sys.argv[1])
space.encode_text(["normal"])
space.encode_image([sys.argv[2]], "grey")
import m3bind.encode.job, m3bind.search.searcher
stages = ("training", "pretrain", "align", "distill", "evaluate")
print([name for name in sys.modules if name.startswith(tuple(f"m3bind.{stage}" for stage in stages))])
"""


def test_using_a_space_needs_no_training_code(tmp_path, start):
    folder, paths = save_space(tiny.make_space(), tmp_path / "space"), tiny.pictures(tmp_path, 1)
    process = start(USE, folder, paths[0])
    assert process.communicate()[0].strip() == "[]" and process.returncode == 0


REWRITE = """
import sys
from space import tiny
tiny.register()
from m3bind.space.bundle import save_space
spaces = [tiny.make_space(seed=0, distilled=False), tiny.make_space(seed=4, distilled=False)]
print("ready", flush=True)
for number in range(100_000):
    save_space(spaces[number % 2], sys.argv[1])
"""


def test_a_space_opened_while_it_is_rewritten_is_old_or_new(tmp_path, start):
    texts = ["normal", "abnormal lung"]
    expected = {tiny.make_space(seed=s).encode_text(texts, "grey").tobytes(): s for s in (0, 4)}
    folder = save_space(tiny.make_space(distilled=False), tmp_path / "space")
    process, seen = start(REWRITE, folder), []
    try:
        process.stdout.readline()
        for _ in range(25):
            space = load(folder)
            seen.append(expected[space.encode_text(texts, "grey").tobytes()])
    finally:
        process.kill()
        process.wait()
    assert set(seen) == {0, 4}


def test_a_space_stays_usable_when_its_folder_is_replaced_or_removed(tmp_path):
    import shutil

    folder = save_space(tiny.make_space(), tmp_path / "space")
    space, paths = load(folder), tiny.pictures(tmp_path, 3)
    before = everything(space, paths)
    save_space(tiny.make_space(seed=9), folder)
    shutil.rmtree(folder)
    assert_same(before, everything(space, paths))


def test_importing_the_package_loads_no_torch(start):
    process = start("import sys, m3bind, m3bind.space; print('torch' in sys.modules)")
    assert process.communicate()[0].strip() == "False"
    assert isinstance(process, subprocess.Popen) and process.returncode == 0


def test_bridges_that_are_no_matrix_are_saved_and_opened(tmp_path):
    plain = tiny.make_space(distilled=False)
    torch.manual_seed(0)
    head, anchors = Head(6, 8, 10, blocks=2, stem=True), torch.nn.functional.normalize(torch.randn(8, 5), dim=1)
    head.offset_image.copy_(torch.randn(6))
    steps = [Affine(torch.randn(8, 8), torch.randn(8))]
    bridges = {"grey": freeze(Sided(head, steps, [])), "other": Relative(anchors)}
    space = Space({m: plain.model(m) for m in plain.modalities}, bridges)
    loaded = load(save_space(space, tmp_path / "space"))
    paths = tiny.pictures(tmp_path / "files", 3)
    for m in ("grey", "other"):
        np.testing.assert_allclose(loaded.encode_image(paths, m), space.encode_image(paths, m), atol=1e-6)
        np.testing.assert_allclose(loaded.encode_text(["a heart"], m), space.encode_text(["a heart"], m), atol=1e-6)
    with pytest.raises(SpaceError, match="sided bridge, which is not a matrix"):
        loaded.bridge("grey")
    assert json.loads((tmp_path / "space" / "space.json").read_text())["version"] == 2
    save_space(plain, tmp_path / "plain")  # readable by what knows linear bridges only
    assert json.loads((tmp_path / "plain" / "space.json").read_text())["version"] == 1


def test_measures_and_temperatures_are_stored_and_leave_embeddings_unchanged(tmp_path):
    space, paths = tiny.measured_space(tmp_path)
    loaded = m3bind.load(save_space(space, tmp_path / "space"))
    for name in space.modalities:
        assert_same(loaded.measures[name].state_dict().values(), space.measures[name].state_dict().values())
        np.testing.assert_allclose(
            loaded.encode_image(paths, name), tiny.make_space().encode_image(paths, name), atol=1e-6
        )
        rows, reasons = loaded.examine(paths[:20], name)
        assert rows.shape == (20, 8) and sum(map(bool, reasons)) <= 5
    assert json.loads((tmp_path / "space" / "space.json").read_text())["version"] == 3
    assert loaded.temperature("grey") == 2.0 and loaded.temperature("other") is None
    with pytest.raises(SpaceError, match="one bridge per modality"):
        Space(
            *(getattr(space._contents, name) for name in ("models", "bridges")), unlike={"ct": space.measures["grey"]}
        )


def test_classify_abstains_on_unlike_files_and_divides_by_the_temperature(tmp_path, caplog):
    space, paths = tiny.measured_space(tmp_path)
    Image.fromarray(np.linspace(0, 255, 1600).astype(np.uint8).reshape(40, 40)).save(tmp_path / "strange.png")
    labels = ["normal heart", "x"]
    usual = [path for path, reason in zip(paths, space.examine(paths, "grey")[1]) if not reason][:2]
    found = space.classify([*usual, tmp_path / "strange.png"], "grey", labels)
    assert (
        np.isnan(found[2]).all() and np.isfinite(found[:2]).all() and "file 3 of 3 is not classified: " in caplog.text
    )
    answered = space.classify([tmp_path / "strange.png"], "grey", labels, abstain=False)
    assert np.isfinite(answered).all()
    plain = Space(*(getattr(space._contents, name) for name in ("models", "bridges", "means", "student")))
    before = plain.classify(usual, "grey", labels)
    np.testing.assert_allclose(np.diff(np.log(found[:2])), np.diff(np.log(before)) / 2, atol=1e-4)
