"""From raw audio datasets to a trained audio-text model and a table of results.

`snakemake --cores all results/table1.tex` runs the small study of config.yaml.
`--configfile mine.yaml` runs another study. A file without `datasets` is laid over the small study.
"""

import os
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")


if "datasets" not in config:

    configfile: "config.yaml"


# Used only with --sdm apptainer; the Dockerfile says how it is built from the lock.
container: "pipeline.sif"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/datasets.smk"
include: "workflow/rules/shards.smk"
include: "workflow/rules/pairs.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/pools.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/sweep.smk"
include: "workflow/rules/targets.smk"


rule all:
    """Tables, curves and the page."""
    default_target: True
    input:
        expand("results/{table}.{format}", table=study.config.tables, format=["csv", "md", "tex"]),
        expand("results/curves/{curve}.{format}", curve=study.config.curves, format=["csv", "svg"]),
        "results/report/index.html",


onstart:
    try:
        lock_for_this_process(Path(".snakemake/study.lock"), os.getcwd())
    except PipelineError as error:
        raise WorkflowError(str(error)) from None
    for line in study.opening_lines():
        print(line, file=sys.stderr)


onsuccess:
    print(*study.closing_lines(), sep="\n")
