rule find_near_duplicates:
    """Report clips of a split that sound like a stretch of a held-out clip; nothing depends on it."""
    input:
        split="results/shards/{dataset}/{split}/manifest.json",
        held_out=held_out_summaries,
        code=code_of("find_near_duplicates"),
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
        shards=subpath(input.split, parent=True),
        held_out=held_out_folders,
    shell:
        "python -m pipeline.stages.find_near_duplicates --shards {params.shards:q} --held-out {params.held_out:q}"
        " --report {output.report:q} 2> {log:q}"


rule pair_clips:
    """Fix which clips, captions and windows stand in every slot of every step of a run."""
    input:
        labeled=labeled_summaries,
        unlabeled=unlabeled_summaries,
        held_out=held_out_summaries,
        code=code_of("pair_clips"),
    output:
        pairs="results/pairs/{run}/seed{seed}.parquet",
        leaked="results/pairs/{run}/seed{seed}.leaked.parquet",
    log:
        "logs/pair_clips/{run}/seed{seed}.log",
    params:
        labeled=labeled_manifests,
        partners=partner_flags,
        held_out=held_out_manifests,
        leaks=config["leaks"],
        backbone=config["backbone"]["name"],
        epochs=run_epochs,
        batch_size=run_batch_size,
        fractions=fraction_flags,
        drawing=drawing_flags,
    shell:
        "python -m pipeline.stages.pair_clips --labeled {params.labeled:q} {params.partners:q}"
        " --held-out {params.held_out:q} --leaks {params.leaks}"
        " --backbone {params.backbone} --epochs {params.epochs} --batch-size {params.batch_size}"
        " --seed {wildcards.seed} {params.fractions} {params.drawing} --pairs {output.pairs:q}"
        " --leaked {output.leaked:q} 2> {log:q}"
