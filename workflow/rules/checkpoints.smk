"""What Snakemake 9.27 does not get right beside a checkpoint: groups of jobs, and --until.

Which shards there are is known when a catalog is made, and Snakemake plans their jobs only then.
"""

from collections import defaultdict

from snakemake.common import group_into_chunks
from snakemake.dag import DAG
from snakemake.jobs import GroupJob


def update_groups(dag):
    """Assign every job that has a group's name (`groups`, `group-components` of a profile) to a group job.

    Snakemake forms the groups anew whenever a checkpoint ends, from cached ones that it has enlarged meanwhile: it stops
    with a KeyError then, or submits a job twice (its issues 1217 and 4202). Here a group that runs stays as it is, and
    the jobs that wait are shared out in the order of their outputs. Jobs of a group must not need one another.
    """
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


def in_until(dag, job):
    """Whether --until names a job's rule or one of its outputs.

    It looks for rules in the first plan, which holds no shard yet, and would find nothing to do for `--until
    shard_audio`. That ends with index_shards, which takes stock of a split's shards.
    """
    names = {"index_shards" if name == "shard_audio" else name for name in dag.untilrules}
    return job.rule.name in names or not dag.untilfiles.isdisjoint(job.output)


def set_until_jobs(dag):
    """Make the jobs of --until the ones that are wanted, and their outputs, too.

    After a checkpoint Snakemake wants such a job's outputs only where another job of the plan does; but what comes
    after --until is no longer in the plan, so that the catalogs were made and nothing more.
    """
    if dag.untilrules or dag.untilfiles:
        dag.targetjobs = set(dag.until_jobs())
        dag.targetfiles = {*dag.targetfiles, *(path for job in dag.targetjobs for path in job.output)}


DAG.update_groups = update_groups
DAG.set_until_jobs = set_until_jobs
DAG.in_until = in_until
