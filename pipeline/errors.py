"""The one exception whose message is written for the person who runs the pipeline."""


class PipelineError(Exception):
    """What was asked, what was found, in which file and row, and what to do about it.

    Stages print it as one line and exit with status 1; anything else is a defect and keeps its traceback.
    """


def printable(text: str) -> str:
    """The text with escapes for line breaks, which file names may hold, and for codes that a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
