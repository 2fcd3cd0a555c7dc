"""Jobs that a profile submits in groups (`groups`, `group-components`), beside a checkpoint.

Snakemake 9.27 forms the groups anew whenever a checkpoint ends, from cached ones that it has enlarged meanwhile: it
stops with a KeyError then, or submits a job twice (its issues 1217 and 4202). Here a group that runs stays as it is,
and the jobs that wait are shared out in the order of their outputs. Jobs of a group must not need one another.
"""

from collections import defaultdict

from snakemake.common import group_into_chunks
from snakemake.dag import DAG
from snakemake.jobs import GroupJob


def update_groups(dag):
    """Assign every job that has a group's name to a group job."""
    groups = {job: group for group in dag._running if group.is_group() for job in group}
    waiting = defaultdict(list)
    for job in dag.needrun_jobs():
        if job.group is not None and job not in groups:
            waiting[job.group].append(job)
    for name, jobs in waiting.items():
        size = dag.workflow.group_settings.group_components.get(name, 1)
        for members in group_into_chunks(size, sorted(jobs, key=lambda job: str(job.output[0]))):
            group = GroupJob(name, frozenset(members), dag.workflow.global_resources)
            group.finalize()
            groups |= dict.fromkeys(members, group)
    dag._group = groups


DAG.update_groups = update_groups
