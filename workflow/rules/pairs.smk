"""Who is mixed with whom, and a report of near-duplicates.

pair_clips            manifests, identities of held-out clips -> results/pairs/{run}/seed{seed}.parquet, .leaked.parquet
find_near_duplicates  a split and the held-out splits         -> results/reports/near_duplicates/{dataset}/{split}.json
"""


rule pair_clips:
    """Fix which clips, captions and windows stand in every slot of every step of a run."""
    input:
        labeled=ask(study.training_summaries, use="labeled"),
        unlabeled=ask(study.training_summaries, use="unlabeled"),
        paraphrases=ask(study.paraphrases),
        # Only what clips are recognised by: a corrected caption of a test split changes no pair.
        held_out=study.held_out("identities.parquet"),
    output:
        pairs="results/pairs/{run}/seed{seed}.parquet",
        leaked="results/pairs/{run}/seed{seed}.leaked.parquet",
    log:
        "logs/pair_clips/{run}/seed{seed}.log",
    params:
        version=VERSIONS["pair_clips"],
        settings=ask(study.pairing_flags),
        held_out=[f"--held-out={path}" for path in study.held_out("identities.parquet")],
        leaks=study.config.leaks,
        leak_unit=study.config.leak_unit,
        backbone=study.config.backbone.name,
    shell:
        "python -m pipeline.stages.pair_clips"
        " {params.settings:q}"
        " {params.held_out:q}"
        " --leaks={params.leaks}"
        " --leak-unit={params.leak_unit}"
        " --backbone={params.backbone}"
        " --seed={wildcards.seed}"
        " --pairs={output.pairs:q}"
        " --leaked={output.leaked:q}"
        " 2> {log:q}"


rule find_near_duplicates:
    """Report clips of a split that sound like a stretch of a held-out clip; nothing depends on it."""
    input:
        split="results/shards/{dataset}/{split}/manifest.json",
        held_out=study.held_out("manifest.json"),
    output:
        report="results/reports/near_duplicates/{dataset}/{split}.json",
    log:
        "logs/find_near_duplicates/{dataset}/{split}.log",
    benchmark:
        "benchmarks/find_near_duplicates/{dataset}/{split}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=240,
    params:
        version=VERSIONS["find_near_duplicates"],
        shards=subpath(input.split, parent=True),
        held_out=[f"results/shards/{split}" for split in study.held_out_splits()],
    shell:
        "python -m pipeline.stages.find_near_duplicates"
        " --shards={params.shards:q}"
        " --held-out {params.held_out:q}"
        " --report={output.report:q}"
        " 2> {log:q}"
