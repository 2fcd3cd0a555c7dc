"""The study, and how the rules ask it: everything they ask is a method of `pipeline.study.Study`."""

import inspect

from snakemake.exceptions import WorkflowError

from pipeline.errors import PipelineError
from pipeline.models.backbones import PUBLISHED
from pipeline.results.table.names import METHODS
from pipeline.stages.processes import PARENT, lock_for_this_process
from pipeline.stages import VERSIONS
from pipeline.study import Study

try:
    study = Study.of_config(config)
except PipelineError as error:
    raise WorkflowError(str(error)) from None
config.update(study.config.model_dump())  # with defaults, for the captions of Snakemake's report


# exec: a signal to a job reaches its stage, and no shell dies before a checkpoint is written.
# PPID is Snakemake: a stage does not outlive it (pipeline/stages/processes.py).
shell.prefix(f"set -euo pipefail; export {PARENT}=$PPID; exec ")


def one_of(names):
    """A regular expression of these names; of none, one that nothing matches."""
    return "|".join(names) or "(?!)"


wildcard_constraints:
    dataset=one_of(study.config.datasets),
    split="[A-Za-z0-9_-]+",
    part=r"\d+-of-\d+",
    run="[a-z0-9_]+",
    seed=r"\d+",
    target=one_of(study.config.datasets),
    table=one_of(study.config.tables),
    method=one_of(METHODS),
    curve=one_of(study.config.curves),
    candidate=r"[^/]+=[^/]*",


def ask(method, **fixed):
    """An input function or parameter that calls a method of the study.

    Parameters of the method that are not `fixed` are wildcards of the same name.
    """
    names = [name for name in inspect.signature(method).parameters if name not in fixed]

    def answer(wildcards):
        try:
            return method(**fixed, **{name: wildcards[name] for name in names})
        except PipelineError as error:
            raise WorkflowError(str(error)) from None

    return answer


def as_is(value):
    """A parameter that is this value: Snakemake takes braces in a plain text for wildcards."""
    return lambda wildcards: value


def process_count(wildcards, resources):
    """Training processes: one per GPU; without GPUs, one per node."""
    return resources.gpu or resources.nodes


def device(wildcards, resources):
    """Where a job computes: on GPUs if it asked for any."""
    return "cuda" if resources.gpu else "cpu"
