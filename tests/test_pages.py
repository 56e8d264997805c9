"""README.md and docs/: their code runs and their links lead somewhere.

Blocks with prompts are doctests, which pytest collects itself; those without, for pasting, run here.
"""

import ast
import importlib
import inspect
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
# One fenced block: what is asked for in a comment before it, its language, its text.
BLOCK = re.compile(r"(?:<!-- needs (\w+) -->\n)?^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"python", "bash", "matlab", "text"}
WIDEST = 100  # columns of code: they show without scrolling on a screen of 1400 pixels
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """`(what it needs, language, text)` of each block."""
    return [match.groups() for match in BLOCK.finditer(page.read_text())]


def to_paste(page: Path) -> list[tuple[str, str]]:
    return [(needs, text) for needs, language, text in blocks(page) if language == "python" and ">>>" not in text]


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("page", [page for page in PAGES if to_paste(page)], ids=lambda page: page.name)
def test_code_without_prompts_runs(page, capsys):
    """All blocks of a page in turn, as someone who pastes them would run them."""
    here: dict = {"__name__": "pasted"}
    try:
        for needs, text in to_paste(page):
            if needs:
                pytest.importorskip(needs, reason=f"{needs} is not installed")
            if needs == "jax2onnx" and not hasattr(jax._src.core, "ClosedJaxpr"):
                pytest.skip(f"jax2onnx asks for jax._src.core.ClosedJaxpr, which jax {jax.__version__} has not")
            exec(compile(text, str(page), "exec"), here)
    finally:
        importlib.import_module("gconv").uninstall()


@pages
def test_blocks_say_their_language(page):
    for _, language, text in blocks(page):
        assert language in LANGUAGES or language.startswith("{"), f"{language!r}: {text[:80]}"
        if not language.startswith("{"):
            assert max(map(len, text.splitlines())) <= WIDEST, text
        if language == "python" and ">>>" in text:
            assert text.startswith(">>>"), f"a doctest starts with its prompt: {text[:80]}"
    rest = BLOCK.sub("", page.read_text())
    assert "```" not in rest, "a fence that does not close"
    assert not re.search(r"^\n {4}\S", rest, re.MULTILINE), "an indented block, which has no language and is not run"


# What a docstring shows as code: a line with a prompt, or an indented block after `::`.
SHOWN = re.compile(r"^ *(?:>>>|\.\.\.) .*$|(?<=::\n\n)(?: {4}.*\n|\n)+", re.MULTILINE)


def test_code_of_the_reference_fits():
    """Examples and definitions in docstrings, which the reference shows."""
    found = 0
    for path in (ROOT / "gconv").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                for code in SHOWN.findall(text + "\n"):
                    lines = inspect.cleandoc(code).splitlines()
                    found += len(lines)
                    assert max(map(len, lines)) <= WIDEST, f"{path.relative_to(ROOT)}: {code}"
    assert found > 200


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_to_files(page):
    for target in LINK.findall(BLOCK.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.relative_to(ROOT)}: {target}"
        assert found.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(found), f"{page.relative_to(ROOT)}: {target}"


def test_the_readme_is_a_first_screen():
    text = README.read_text()
    assert len(text) <= 9_000 and len(text.splitlines()) <= 200
    assert max(map(len, text.splitlines())) <= WIDEST
    pasted = [text for _, text in to_paste(README)]
    assert pasted, "something to paste"
    top = text[: text.index(pasted[0])]
    assert "![" in top and "pip install" in top, "a picture and the line that installs come before the first code"
    (picture, *_) = (ROOT / target for target in LINK.findall(top) if target.endswith(".png"))
    assert picture.stat().st_size <= 120_000
