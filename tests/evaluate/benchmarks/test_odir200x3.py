import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evaluate.benchmarks.prepared import assert_incomplete, kinds, make, prepared
from evaluate.benchmarks.trees._small import write_table
from evaluate.benchmarks.trees.flair_assembly import ATTACK
from evaluate.benchmarks.trees.odir5k import HEADER
from m3bind.evaluate.benchmarks import BenchmarkItem, get, odir200x3
from m3bind.evaluate.benchmarks._lists import Listed

KEYWORDS = (
    "normal fundus",
    "abnormal pigment",
    "pathological myopia",
    "cataract",
    "myopic retinopathy\uff0ccataract",
    "drusen",
)


def test_images_listed_twice_are_included_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make("odir200x3", tmp_path)
    with caplog.at_level(logging.WARNING):
        done, manifest = prepared("odir200x3", tmp_path)
    assert "2 of 38 rows repeat a file" in caplog.text
    assert len(manifest.records) == 38 and len({record.path for record in manifest.records}) == 36
    assert done.counts["test/pathologic myopia"] == 14 and done.counts["test/normal"] == 12
    again = [record for record in manifest.records if record.id.endswith("#2")]
    first = {record.id: record for record in manifest.records}
    assert [record.label for record in again] == ["pathologic myopia"] * 2
    assert all(record.patient == first[record.id.removesuffix("#2")].patient for record in again)


def test_cells_of_the_list_are_never_run(tmp_path: Path) -> None:
    root = make("odir200x3", tmp_path)
    table = root / odir200x3.LIST
    table.write_text(table.read_text().replace("['normal']", f'"{ATTACK}"', 1).replace("['normal']", "['glaucoma']", 1))
    done, _ = prepared("odir200x3", tmp_path)
    assert kinds(done) == {"with a bad list": 1, "of no class": 1} and not Path("pwned").exists()


def flairs_rule(root: Path, most: int) -> list[tuple[str, str]]:
    """FLAIR's selection, said with pandas: (image, class)."""
    frame = pd.read_csv(root / "full_df.csv")
    others = frame[list("DGCAHMO")].sum(axis=1)
    normal = (frame["N"] == 1) & (others == 0)
    normal &= normal.cumsum() <= most
    alone = (others == 1) & ((frame["C"] == 1) | (frame["M"] == 1))
    found: dict[str, list[tuple[str, str]]] = {"myop": [], "cataract": [], "normal": []}
    order: list[tuple[str, str]] = []
    names = {"myop": "pathologic myopia", "cataract": "cataract", "normal": "normal"}
    for _, row in frame[normal | alone].iterrows():
        for eye in ("Right", "Left"):
            path = f"preprocessed_images/{row['ID']}_{eye.lower()}.jpg"
            for part, name in names.items():
                if part in row[f"{eye}-Diagnostic Keywords"] and (root / path).exists() and len(found[part]) < most:
                    found[part].append((path, name))
                    order.append((path, name))
    return order


@pytest.mark.parametrize("seed", range(5))
def test_without_the_list_the_published_rule_is_followed(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    (tmp_path / "preprocessed_images").mkdir()
    rows = []
    for side in ("right", "left"):
        generator = np.random.default_rng(seed + 100)  # a patient's cells are the same in both rows
        for number in range(60):
            letters = (generator.random(8) < [0.5, 0.1, 0.1, 0.3, 0.05, 0.05, 0.3, 0.05]).astype(int)
            words = [KEYWORDS[k] for k in generator.integers(0, len(KEYWORDS), 2)]
            name = f"{number}_{side}.jpg"
            if rng.random() < 0.9:
                (tmp_path / "preprocessed_images" / name).write_bytes(b"x")
            rows.append((number, 50, "Male", "", "", *words, *letters, "", "['N']", "[]", name))
    write_table(tmp_path / "full_df.csv", HEADER, rows)
    monkeypatch.setattr(odir200x3, "PER_CLASS", 20)
    drawn = [row for row in odir200x3.drawn(tmp_path) if isinstance(row, Listed)]
    expected = flairs_rule(tmp_path, 20)
    assert [(row.image, row.categories[0]) for row in drawn] == expected and len(set(expected)) < len(expected)
    items = [item for item in get("odir200x3").items(tmp_path, tmp_path) if isinstance(item, BenchmarkItem)]
    assert len({item.id or item.path for item in items}) == len(items) == len(expected)


def test_absent_and_incomplete(tmp_path: Path) -> None:
    make("odir200x3", tmp_path)
    assert_incomplete("odir200x3", tmp_path, ["full_df.csv", "preprocessed_images"])
