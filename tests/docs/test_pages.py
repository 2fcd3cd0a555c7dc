"""Generated pages are fresh, links lead somewhere, words follow the rules, the site needs no network."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.data.catalogs import REASONS
from tests.forks import run_python

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "docs" / "tools"
MARKDOWN = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tool(name: str):
    """A script of docs/tools as a module."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(path: Path) -> set[str]:
    """The anchors that the headings of a page get, on the site and on repository hosts."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_command_line_page_is_fresh():
    made = run_python("-m", "docs.tools.command_line", cwd=ROOT)
    assert made.returncode == 0, made.stderr
    assert (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8") == made.stdout, "run `make schema`"


def test_command_line_page_lists_every_stage_and_command():
    from pipeline.commands import COMMANDS
    from pipeline.stages import VERSIONS

    shown = re.findall(r"^### (\w+)$", (ROOT / "docs" / "command-line.md").read_text(), flags=re.MULTILINE)
    assert shown == [*COMMANDS, *VERSIONS, "launch"]


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_links_lead_to_files_and_anchors(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = path.parent / name if name else path
        assert found.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{path.name}: {target}"


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_headings_have_no_attributes(path):
    """Repository hosts would show them as text."""
    assert re.findall(r"^#+ .*\{ *[#.:].*\}", path.read_text(encoding="utf-8"), flags=re.MULTILINE) == []


def test_documentation_follows_the_rules_for_words():
    done = subprocess.run([sys.executable, TOOLS / "check_words.py", *MARKDOWN], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Rows a clip are counted.", '"Rows a clip"'),
        ("What the paper leaves open is a key.", "what-clause"),
        ("The files lie beside it.", '"beside"'),
        ("word " * 31 + "end.", "a sentence of 32 words"),
        ("x" * 141, "141 characters"),
        ("| `a` | it is made anew |", '"anew"'),
    ],
)
def test_check_of_words_finds(text, found):
    assert any(found in finding for _, finding in tool("check_words").check_markdown(text))


@pytest.mark.parametrize(
    "text",
    ["| " + "x" * 200 + " |", "Use `the word anew` as code.", "```sh\nmade anew\n```", "What is it? It is a test."],
)
def test_check_of_words_passes(text):
    assert list(tool("check_words").check_markdown(text)) == []


def test_check_of_words_reads_comments_and_strings_of_python():
    code = 'def f():\n    """Made anew."""\n    # what is told\n    anew = "no space"\n'
    assert [line for line, _ in tool("check_words").check_python(code)] == [3, 2]


def test_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 130 and len(README.split()) <= 1300
    assert any(line.startswith("make table1") for line in lines[:20])


def test_every_reason_is_explained():
    page = (ROOT / "docs" / "your-data.md").read_text(encoding="utf-8")
    assert [reason for reason in REASONS if f"`{reason}`" not in page] == []


def literals() -> str:
    """The text of every string literal of the package, its formatted values left out."""
    found = []
    for path in sorted(ROOT.glob("pipeline/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_of_the_troubleshooting_page_exist():
    page, texts = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), literals()
    tables = re.findall(r"^\| message contains .*\n\|.*\n((?:\|.*\n)+)", page, flags=re.MULTILINE)
    cells = [line.split("|")[1] for table in tables for line in table.splitlines()]
    parts = [
        part.strip() for cell in cells for quoted in re.findall(r"`([^`]+)`", cell) for part in quoted.split("...")
    ]
    of_the_system = {"No space left", "Disk quota", "Read-only"}
    assert [part for part in parts if part and part not in texts and part not in of_the_system] == []
    assert len(parts) > 80


def test_every_equation_of_the_method_page_is_in_the_code():
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    for path in set(re.findall(r"`(pipeline/[\w/]+\.py)`", page)):
        assert (ROOT / path).is_file(), path
    for name in ("encode_audio", "encode_text", "info_nce", "AudioToText", "CompositionLoss"):
        assert name in page and any(name in path.read_text() for path in ROOT.glob("pipeline/**/*.py"))


def test_site_builds_without_broken_links_and_loads_nothing_from_the_network(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    pages = sorted(tmp_path.glob("*.html"))
    assert len(pages) == 17
    for page in pages:
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]+src=\"?(?:https?:)?//[^>]*>", html)
        loaded += re.findall(r"<link[^>]+rel=\"?(?:stylesheet|preconnect|preload|icon)[^>]+//[^>]*>", html)
        assert loaded == [], page.name
    assert "<math" in (tmp_path / "method.html").read_text(encoding="utf-8")
