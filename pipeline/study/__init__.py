"""A study: its configuration as typed models, and the answers that the rules of the workflow need.

`Study.of_config` reads and checks a configuration. Nothing here needs Snakemake. `python -m pipeline.study` prints the
JSON schema of a configuration, and with `--markdown` its documentation page.
"""

from pipeline.study.answers import MINI_NOTE, Study
from pipeline.study.configuration import (
    GENERATED_ROOTS,
    Adapter,
    BackboneName,
    Configuration,
    Dataset,
    Evaluation,
    RunSettings,
    ShardSettings,
)
from pipeline.study.schema import markdown, schema

__all__ = [
    "GENERATED_ROOTS",
    "MINI_NOTE",
    "Adapter",
    "BackboneName",
    "Configuration",
    "Dataset",
    "Evaluation",
    "RunSettings",
    "ShardSettings",
    "Study",
    "markdown",
    "schema",
]
