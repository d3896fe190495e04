import datetime

import pytest

from lte_model.command_line import CommandParser
from lte_model.errors import LTEError


@pytest.fixture
def parser():
    parser = CommandParser("Does it.\n\nAt length.")
    parser.add_command("make", "makes it", "the day of making")
    parser.add_command("list", "lists it")
    return parser


@pytest.mark.parametrize(
    "words", ["--settings a.toml make --date 2024-05-01", "make --date 2024-05-01 --settings a.toml"]
)
def test_the_settings_stand_before_a_command_or_behind_it(parser, words):
    found = parser.parse_args(words.split())
    assert (found.command, found.settings, found.date) == ("make", "a.toml", datetime.date(2024, 5, 1))


def test_a_command_has_a_date_where_it_says_what_it_is(parser, capsys):
    assert vars(parser.parse_args(["list"])) == {"command": "list", "settings": None}
    for words in (["list", "--date", "2024-05-01"], ["make"], []):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
    assert "the following arguments are required: --date" in capsys.readouterr().err
    with pytest.raises(LTEError, match="2999-01-01 is in the future"):
        parser.parse_args(["make", "--date", "2999-01-01"])


def test_the_first_line_of_the_docstring_is_shown(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert "Does it." in shown and "At length" not in shown and "makes it" in shown
