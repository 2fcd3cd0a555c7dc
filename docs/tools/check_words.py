"""Check the rules for English text that a machine can check.

In Markdown files: words to avoid, sentences of more than 30 words, lines of more than 140 characters (tables, links and
code excepted). In Python files: words to avoid, in comments, docstrings and messages. Prints one line per finding and
exits with 1 if there are any.

    python docs/tools/check_words.py README.md docs     # files and folders
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

LONGEST_SENTENCE = 30  # words
LONGEST_LINE = 140  # characters

PER = r"second|step|clip|row|job|line|pair|run|seed|sample|file|shard|tar|process|node|stage|file|day|minute|hour|batch"
COUNTED = r"a|one|each|\d+|rows?|lines?|jobs?|clips?|samples?|steps?|GFLOP|bytes|files?|process(?:es)?"

AVOID = {
    r"\banew\b": "again",
    r"\bbeside\b(?! the point)": "next to",
    r"\btold\b|\btells\b": "shown, says, expected",
    r"(?<!can be )\bheard\b": "audible, played",
    r"\bsaid\b": "stated, printed",
    r"\bsettles?\b|\bsettled\b": "decides, fixes",
    r"\bwhatever\b": "any",
    r"\b(of|on) its own\b|\bof their own\b": "own, separate",
    r"\bahead of\b": "before",
    r"\bcomes? back with\b": "returns",
    r"\bgoes on\b|\bgo on\b": "continues",
    r"\bmade-up\b|\bmade up\b": "simulated, synthetic",
    r"\bto be had\b|\bcan be had\b": "available",
    rf"\b({COUNTED}) an? ({PER})\b": "per",
    r"(?:^|(?<=[.!] ))(?-i:What) [^.?]*\.": "begin with the subject, not with a what-clause",
}
COMPILED = [(re.compile(pattern, re.IGNORECASE), advice) for pattern, advice in AVOID.items()]

Finding = tuple[int, str]


def words_to_avoid(text: str) -> Iterator[str]:
    for pattern, advice in COMPILED:
        for match in pattern.finditer(text):
            yield f'"{match[0][:60]}": {advice}'


def paragraphs(text: str) -> Iterator[Finding]:
    """The prose of a Markdown text, one item per paragraph, list item or table cell, with its line number."""
    start, collected = 0, ""
    fenced = False
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        bare = line.strip()
        fence = bare.startswith("```")
        fenced ^= fence
        if fenced or fence or not bare or bare.startswith(("#", "<!--", "|", "![")):
            if collected:
                yield start, collected
            collected = ""
            if bare.startswith("|") and not fenced:
                yield from ((number, cell.strip()) for cell in re.split(r"(?<!\\)\|", bare) if cell.strip())
            elif bare.startswith("#") and not fenced:
                yield number, bare.lstrip("# ")
            continue
        if collected and re.match(r"([-*]|\d+\.) ", bare):
            yield start, collected
            collected = ""
        if not collected:
            start = number
        collected = f"{collected} {bare}".strip()


def plain(text: str) -> str:
    """Text without code, links' addresses and HTML."""
    text = re.sub(r"`[^`]*`", "CODE", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"<[^>]*>|\{#[^}]*\}", "", text)


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?:;])[)*\"]*\s+(?=[A-Z\d*\"(`CODE])", text)


def check_markdown(text: str) -> Iterator[Finding]:
    if "\nGenerated from" in text:  # its sentences stand in pipeline/
        return
    in_code = False
    for number, line in enumerate(text.split("\n"), start=1):
        in_code ^= line.lstrip().startswith("```")
        if len(line) > LONGEST_LINE and not in_code and not line.lstrip().startswith("|"):
            yield number, f"{len(line)} characters, at most {LONGEST_LINE}"
    for number, paragraph in paragraphs(text):
        prose = plain(paragraph)
        yield from ((number, found) for found in words_to_avoid(prose))
        for sentence in sentences(prose):
            count = len(re.findall(r"[^\W_][\w'.,-]*", sentence))
            if count > LONGEST_SENTENCE:
                yield number, f"a sentence of {count} words, at most {LONGEST_SENTENCE}: {sentence[:60]}..."


def check_python(text: str) -> Iterator[Finding]:
    """Words to avoid in comments and string literals."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield from ((token.start[0], found) for found in words_to_avoid(plain(token.string.lstrip("# "))))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            prose = plain(" ".join(node.value.split()))
            yield from ((node.lineno, found) for found in words_to_avoid(prose))


def files_of(arguments: list[str]) -> Iterator[Path]:
    for argument in arguments:
        path = Path(argument)
        yield from sorted(p for p in path.rglob("*") if p.suffix in (".md", ".py")) if path.is_dir() else [path]


def main(arguments: list[str]) -> int:
    count = 0
    for path in files_of(arguments):
        check = check_python if path.suffix == ".py" else check_markdown
        for number, finding in check(path.read_text(encoding="utf-8")):
            print(f"{path}:{number}: {finding}")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
