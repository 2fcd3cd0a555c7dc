"""Embeddings and figures of a run on a target's test split.

embed     a model and a split -> results/evaluations/{run}/seed{seed}/{target}/embeddings.npz
evaluate  embeddings          -> .../metrics.json, ranks.parquet, contributions.parquet
"""


rule embed:
    """Embed the audio and captions of a target's test split with a run's model."""
    input:
        model=ask(study.model),
        split=ask(study.target_summary, role="test"),
        catalog=ask(study.moment_files),
    output:
        embeddings="results/evaluations/{run}/seed{seed}/{target}/embeddings.npz",
    log:
        "logs/embed/{run}/seed{seed}/{target}.log",
    benchmark:
        "benchmarks/embed/{run}/seed{seed}/{target}.tsv"
    threads: 1
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=60,
    params:
        version=VERSIONS["embed"],
        model=subpath(input.model, parent=True),
        shards=subpath(input.split, parent=True),
        windows=study.config.evaluation.windows,
        device=device,
        moments=ask(study.moment_flags),
        outcome=[],
    shell:
        "python -m pipeline.stages.embed"
        " --model={params.model:q}"
        " --shards={params.shards:q}"
        " --windows={params.windows}"
        " --threads={threads}"
        " --device={params.device}"
        " {params.moments:q}"
        " {params.outcome:q}"
        " --embeddings={output.embeddings:q}"
        " 2> {log:q}"


rule evaluate:
    """Rank every query of a target and compute the figures under each protocol."""
    input:
        embeddings="results/evaluations/{run}/seed{seed}/{target}/embeddings.npz",
        relevance=ask(study.relevance_files),
    output:
        metrics="results/evaluations/{run}/seed{seed}/{target}/metrics.json",
        ranks="results/evaluations/{run}/seed{seed}/{target}/ranks.parquet",
        contributions="results/evaluations/{run}/seed{seed}/{target}/contributions.parquet",
    log:
        "logs/evaluate/{run}/seed{seed}/{target}.log",
    params:
        version=VERSIONS["evaluate"],
        split=ask(study.target_split, role="test"),
        expected=ask(study.expected_clips_flags),
        seed=lambda wildcards: wildcards.seed,
        protocols=ask(study.protocol_flags),
        outcome=[],
    shell:
        "python -m pipeline.stages.evaluate"
        " --embeddings={input.embeddings:q}"
        " --run={wildcards.run}"
        " --seed={params.seed}"
        " --target={wildcards.target}"
        " --split={params.split}"
        " {params.expected}"
        " {params.protocols:q}"
        " {params.outcome:q}"
        " --metrics={output.metrics:q}"
        " --ranks={output.ranks:q}"
        " --contributions={output.contributions:q}"
        " 2> {log:q}"
