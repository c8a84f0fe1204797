"""--root: manifests whose files lie elsewhere."""

import pytest

from m3bind.cli import app
from m3bind.cli.encode import _sources
from m3bind.data.records import BadRow
from m3bind.errors import ConfigError


@pytest.fixture
def elsewhere(tmp_path, make_picture):
    """A manifest with an absolute path, and the folder of the picture."""
    (tmp_path / "files").mkdir()
    picture = make_picture(tmp_path / "files" / "a.png", "xray", 0)
    table = tmp_path / "tables" / "m.csv"
    table.parent.mkdir()
    make_picture(table.parent / "b.png", "xray", 1)
    table.write_text(
        f"id,modality,path,label,split\na,xray,{picture},normal,test\nb,xray,{table.parent / 'b.png'},normal,test\n"
    )
    return table, picture


def run(*arguments):
    return app([*map(str, arguments)], standalone_mode=False)


def test_check_reads_files_below_root_alone(elsewhere, capsys):
    table, picture = elsewhere
    assert run("check", table) == 1
    assert "give a common folder (--root" in capsys.readouterr().out
    assert not run("check", table, "--root", picture.parents[1])


def test_encode_takes_files_below_root(elsewhere):
    table, picture = elsewhere
    _, refused = _sources([table], ("xray",), None)
    assert isinstance(refused, BadRow) and "--root" in refused.reason
    assert picture in [record.path for record in _sources([table], ("xray",), picture.parents[1])]


@pytest.mark.parametrize(
    "command",
    [
        lambda table, picture: run("check", picture, "--root", picture.parent),
        lambda table, picture: _sources([picture], ("xray",), picture.parent),
        lambda table, picture: run("export", "space", "--to", "onnx", "--out", "o", "--root", picture.parent),
        lambda table, picture: run("evaluate", "run", "--root", picture.parent),
    ],
)
def test_root_without_a_manifest_is_refused(elsewhere, command):
    with pytest.raises(ConfigError, match=r"(?s)--root.*no effect|no effect.*--root"):
        command(*elsewhere)
