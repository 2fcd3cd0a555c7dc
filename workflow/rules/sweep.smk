"""The settings of every run, chosen on the validation splits: `snakemake --cores all results/sweep.csv`.

pair_candidate, train_candidate, embed_candidate, evaluate_candidate  as for runs -> results/sweep/{candidate}/{run}/
choose_settings                                       all candidates -> results/sweep.csv, results/sweep.yaml

pair_candidate makes pairs only for a candidate whose values change how they are drawn.

A candidate that diverges says so in outcome.txt and in its metrics; it is never chosen.
"""


use rule pair_clips as pair_candidate with:
    input:
        labeled=ask(study.candidate_summaries, use="labeled"),
        unlabeled=ask(study.candidate_summaries, use="unlabeled"),
        paraphrases=ask(study.paraphrases),
        held_out=study.held_out("identities.parquet"),
    output:
        pairs="results/sweep/{candidate}/{run}/seed{seed}.pairs.parquet",
        leaked="results/sweep/{candidate}/{run}/seed{seed}.leaked.parquet",
    log:
        "logs/pair_candidate/{candidate}/{run}/seed{seed}.log",
    params:
        version=VERSIONS["pair_clips"],
        settings=ask(study.candidate_pairing_flags),
        held_out=[f"--held-out={path}" for path in study.held_out("identities.parquet")],
        leaks=study.config.leaks,
        leak_unit=study.config.leak_unit,
        backbone=study.config.backbone.name,


use rule train as train_candidate with:
    input:
        pretrained=study.pretrained(),
        pairs=ask(study.candidate_pairs),
        teachers=ask(study.teachers),
        validation=ask(study.candidate_validation),
    output:
        model="results/sweep/{candidate}/{run}/seed{seed}/model.safetensors",
        description="results/sweep/{candidate}/{run}/seed{seed}/model.json",
        tokenizer="results/sweep/{candidate}/{run}/seed{seed}/tokenizer.json",
        log="results/sweep/{candidate}/{run}/seed{seed}/training.parquet",
        curves="results/sweep/{candidate}/{run}/seed{seed}/learning_curves.svg",
        account="results/sweep/{candidate}/{run}/seed{seed}/training.json",
        outcome="results/sweep/{candidate}/{run}/seed{seed}/outcome.txt",
    log:
        "logs/train_candidate/{candidate}/{run}/seed{seed}.log",
    benchmark:
        "benchmarks/train_candidate/{candidate}/{run}/seed{seed}.tsv"
    params:
        version=VERSIONS["train"],
        pretrained=subpath(input.pretrained, parent=True),
        folder=subpath(output.model, parent=True),
        settings=ask(study.candidate_flags),
        processes=process_count,
        device=device,
        seed=lambda wildcards: wildcards.seed,
        outcome=lambda wildcards, output: [f"--outcome={output.outcome}"],


use rule embed as embed_candidate with:
    input:
        model="results/sweep/{candidate}/{run}/seed{seed}/model.safetensors",
        outcome="results/sweep/{candidate}/{run}/seed{seed}/outcome.txt",
        split=ask(study.target_summary, role="validation"),
    output:
        embeddings="results/sweep/{candidate}/{run}/seed{seed}/{target}/embeddings.npz",
    log:
        "logs/embed_candidate/{candidate}/{run}/seed{seed}/{target}.log",
    benchmark:
        "benchmarks/embed_candidate/{candidate}/{run}/seed{seed}/{target}.tsv"
    params:
        version=VERSIONS["embed"],
        model=subpath(input.model, parent=True),
        shards=subpath(input.split, parent=True),
        windows=study.config.evaluation.windows,
        device=device,
        moments=[],
        outcome=lambda wildcards, input: [f"--outcome={input.outcome}"],


use rule evaluate as evaluate_candidate with:
    input:
        embeddings="results/sweep/{candidate}/{run}/seed{seed}/{target}/embeddings.npz",
        outcome="results/sweep/{candidate}/{run}/seed{seed}/outcome.txt",
    output:
        metrics="results/sweep/{candidate}/{run}/seed{seed}/{target}/metrics.json",
        ranks="results/sweep/{candidate}/{run}/seed{seed}/{target}/ranks.parquet",
        contributions="results/sweep/{candidate}/{run}/seed{seed}/{target}/contributions.parquet",
    log:
        "logs/evaluate_candidate/{candidate}/{run}/seed{seed}/{target}.log",
    params:
        version=VERSIONS["evaluate"],
        split=ask(study.target_split, role="validation"),
        expected=[],
        protocols=[],
        seed=lambda wildcards: wildcards.seed,
        outcome=lambda wildcards, input: [f"--outcome={input.outcome}"],


rule choose_settings:
    """Choose every run's settings: the highest validation mAP@10, averaged over directions, seeds and targets."""
    input:
        metrics=ask(study.sweep_files, name="metrics.json"),
        contributions=ask(study.sweep_files, name="contributions.parquet"),
    output:
        csv="results/sweep.csv",
        yaml="results/sweep.yaml",
    log:
        "logs/choose_settings/sweep.log",
    params:
        version=VERSIONS["choose_settings"],
        folders=ask(study.candidate_evaluations),
        protocol=study.sweep_protocol,
    shell:
        "python -m pipeline.stages.choose_settings"
        " --evaluations {params.folders:q}"
        " --protocol={params.protocol}"
        " --csv={output.csv:q}"
        " --yaml={output.yaml:q}"
        " 2> {log:q}"
