import pytest

from m3bind.errors import ConfigError
from m3bind.space.prompts import fill_template


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{}", "a {0.b} }{"),
        ("an X-ray of {}", "an X-ray of a {0.b} }{"),
        ("{0}, {0}", "a {0.b} }{, a {0.b} }{"),
        ("{{{}}}", "{a {0.b} }{}"),
    ],
)
def test_only_the_label_is_put_in(template, text):
    assert fill_template(template, "a {0.b} }{") == text


@pytest.mark.parametrize(
    "template", ["{:>1500000000}", "{0.__class__}", "{0[0]}", "{!r}", "{1}", "{label}", "{", "}", "no place", "{{}}"]
)
def test_nothing_else_of_formatting_is_known(template):
    with pytest.raises(ConfigError, match="cannot fill a prompt template"):
        fill_template(template, "pneumonia")
