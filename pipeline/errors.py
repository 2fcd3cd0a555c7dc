"""The one exception whose message is written for the person who runs the pipeline."""


class PipelineError(Exception):
    """What was asked, what was found, in which file and row, and what to do about it.

    Stages print it as one line and exit with status 1; anything else is a defect and keeps its traceback.
    """
