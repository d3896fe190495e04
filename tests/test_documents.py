"""Documents are correct: links have targets, commands exist with their options, and lengths keep to their limits."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repository import REPOSITORY

FRONT_PAGE_LINES = 120
ROOM_LINES = 10
FILE_LINES = 350
LEAST_FILES = 3
MOST_MODULES = 11

REASON = "Longer than 350 lines, because"
"""The start of the sentence in a module's docstring that gives the reason for its length."""

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)(?:\s[^)]*)?\)|(?:src|href)=\"([^\"]+)\"")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
COMMAND = re.compile(r"python -m ([\w.]+)((?: [a-z_]+)*)([^\n`;|&#]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")

ASK_FOR_HELP = """
import contextlib, io, json, runpy, sys
for words in json.load(sys.stdin):
    sys.argv, said, code = [words[0], *words[1:], "--help"], io.StringIO(), "no exit"
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except Exception as error:
        code = repr(error)
    print(json.dumps([words, code or 0, said.getvalue()]))
"""
"""`python -m module words --help` for each list of words, in one process: torch is imported once."""


def _in_git(pattern: str) -> list[Path]:
    """Existing files that git tracks or doesn't ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
    return [REPOSITORY / name for name in sorted(set(listed)) if (REPOSITORY / name).is_file()]


def _name(file: Path) -> str:
    return str(file.relative_to(REPOSITORY))


DOCUMENTS = _in_git("*.md")
ROOMS = [file.parent for top in ("lte_model", "jobs", "infra") for file in _in_git(f"{top}/*/__init__.py")]


def _links(text: str) -> Iterator[str]:
    """The targets of links and images outside code."""
    prose = re.sub(r"^ {4}.*$", "", CODE.sub("", text), flags=re.MULTILINE)
    yield from (markdown or html for markdown, html in LINK.findall(prose))


def _anchors(file: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings; a repeated title gets a number."""
    anchors: set[str] = set()
    for title in re.findall(
        r"^#+ +(.+?) *#*$", re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL), re.MULTILINE
    ):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        anchors.add(slug if slug not in anchors else f"{slug}-{sum(one.startswith(slug) for one in anchors)}")
    return anchors | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", file.read_text()))


def _code(text: str) -> list[str]:
    """The text of a document's code spans and blocks, fenced or indented, without trailing comments."""
    indented = re.findall(r"^ {4,}(\S.*)$", text, re.MULTILINE)
    lines = [line for code in CODE.findall(text) for line in code.strip("`").splitlines()]
    return [re.split(r"\s{3,}|\s# ", line.strip())[0] for line in indented + lines]


def _commands() -> dict[tuple[str, ...], set[tuple[str, str]]]:
    """{(module, subcommand): {(option, document)}} over all documents."""
    found: dict[tuple[str, ...], set[tuple[str, str]]] = {}
    for document in DOCUMENTS:
        for line in _code(document.read_text(encoding="utf-8")):
            for module, words, rest in COMMAND.findall(line):
                options = OPTION.findall(rest) or [""]
                found.setdefault((module, *words.split()), set()).update(
                    (option, _name(document)) for option in options
                )
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_link_leads_somewhere(document):
    wrong = []
    for link in _links(document.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        file = target / "README.md" if target.is_dir() else target
        if not target.exists() or (anchor and anchor not in _anchors(file)):
            wrong.append(link)
    assert wrong == []


def test_every_command_of_a_document_is_taken():
    """The command's module answers `--help`, and has the options that the document uses."""
    commands = _commands()
    assert len(commands) > 5
    done = subprocess.run(
        [sys.executable, "-c", ASK_FOR_HELP],
        cwd=REPOSITORY,
        input=json.dumps(list(commands)),
        capture_output=True,
        text=True,
        check=True,
    )
    wrong = []
    for words, code, said in map(json.loads, done.stdout.splitlines()):
        has = set(OPTION.findall(said))
        for option, document in sorted(commands[tuple(words)]):
            if code != 0 or (option and option not in has):
                wrong.append(f"{document}: python -m {' '.join(words)} {option}: {code}, has {sorted(has)}")
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_target_of_make_is_there(document):
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    code = _code(document.read_text(encoding="utf-8"))
    named = {
        target
        for line in code
        for words in re.findall(r"(?:^|[;&] |=\S* )make((?: [a-z][a-z-]*(?![\w=]))+)", line)
        for target in words.split()
    }
    assert named <= targets


def test_make_help_lists_every_target():
    makefile = (REPOSITORY / "Makefile").read_text()
    assert set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) == set(
        re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE)
    )


def test_the_front_page_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= FRONT_PAGE_LINES


@pytest.mark.parametrize("room", ROOMS, ids=_name)
def test_a_room_says_in_few_lines_what_lives_there(room):
    assert 0 < len((room / "README.md").read_text().splitlines()) <= ROOM_LINES


@pytest.mark.parametrize("room", ROOMS, ids=_name)
def test_a_room_holds_a_handful_of_files(room):
    """A room has at least three files (including templates) and at most eleven modules."""
    files = [file for file in _in_git(f"{_name(room)}/*") if file.parent == room and file.name != "__init__.py"]
    assert len([file.name for file in files if file.suffix != ".md"]) >= LEAST_FILES
    assert len([file.name for file in files if file.suffix == ".py"]) <= MOST_MODULES


def test_a_long_file_says_why():
    wrong = []
    for file in _in_git("*.py"):
        text = file.read_text(encoding="utf-8")
        head = ast.get_docstring(ast.parse(text)) or ""
        if len(text.splitlines()) > FILE_LINES and REASON not in " ".join(head.split()):
            wrong.append(f"{_name(file)}: {len(text.splitlines())} lines")
    assert wrong == []
