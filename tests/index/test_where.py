import pytest

from m3bind.errors import ConfigError, UnknownNameError
from m3bind.index import Where


def test_conditions_of_a_command_line():
    where = Where.parse(["modality=ct, xray", "date>=2020-01-01", "date<=2021", "label=normal", "patient=7", "id!=a,b"])
    assert where == Where(("ct", "xray"), "normal", "7", "2020-01-01", "2021", ("a", "b"))
    assert where.columns() == ["modality", "label", "patient", "date"]
    assert where and not Where.parse([]) and not Where()
    assert hash(Where(modality=["ct"])) == hash(Where(modality="ct"))


@pytest.mark.parametrize(
    ("texts", "error", "why"),
    [
        (["ct"], ConfigError, "NAME=VALUE"),
        (["modality="], ConfigError, "NAME=VALUE"),
        (["modality>=ct"], ConfigError, "takes ="),
        (["label=a", "label=b"], ConfigError, "twice"),
        (["colour=red"], UnknownNameError, "colour"),
        (["date=2020"], UnknownNameError, "date"),
    ],
)
def test_malformed_conditions(texts, error, why):
    with pytest.raises(error, match=why):
        Where.parse(texts)


def test_a_column_that_is_not_stored_is_refused():
    with pytest.raises(UnknownNameError, match="patient"):
        Where(patient="7").check(["id", "modality"])
