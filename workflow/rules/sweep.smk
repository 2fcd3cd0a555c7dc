"""The learning rate of every run, chosen on the validation splits: `snakemake --cores all results/sweep.csv`.

train_candidate, embed_candidate, evaluate_candidate  as train, embed, evaluate -> results/sweep/{learning_rate}/{run}/
choose_learning_rates                                 metrics of all candidates -> results/sweep.csv

A candidate that diverges says so in outcome.txt and in its metrics; it is never chosen.
"""


use rule train as train_candidate with:
    input:
        pretrained=study.pretrained(),
        pairs=f"results/pairs/{{run}}/seed{study.config.sweep.seed}.parquet",
        validation=ask(study.validated_while_trained),
    output:
        model="results/sweep/{learning_rate}/{run}/model.safetensors",
        description="results/sweep/{learning_rate}/{run}/model.json",
        tokenizer="results/sweep/{learning_rate}/{run}/tokenizer.json",
        log="results/sweep/{learning_rate}/{run}/training.parquet",
        curves="results/sweep/{learning_rate}/{run}/learning_curves.svg",
        account="results/sweep/{learning_rate}/{run}/training.json",
        outcome="results/sweep/{learning_rate}/{run}/outcome.txt",
    log:
        "logs/train_candidate/{learning_rate}/{run}.log",
    benchmark:
        "benchmarks/train_candidate/{learning_rate}/{run}.tsv"
    params:
        version=VERSIONS["train"],
        pretrained=subpath(input.pretrained, parent=True),
        folder=subpath(output.model, parent=True),
        settings=ask(study.candidate_flags),
        processes=process_count,
        device=device,
        seed=study.config.sweep.seed,
        outcome=lambda wildcards, output: [f"--outcome={output.outcome}"],


use rule embed as embed_candidate with:
    input:
        model="results/sweep/{learning_rate}/{run}/model.safetensors",
        outcome="results/sweep/{learning_rate}/{run}/outcome.txt",
        split=ask(study.target_summary, role="validation"),
    output:
        embeddings="results/sweep/{learning_rate}/{run}/{target}/embeddings.npz",
    log:
        "logs/embed_candidate/{learning_rate}/{run}/{target}.log",
    benchmark:
        "benchmarks/embed_candidate/{learning_rate}/{run}/{target}.tsv"
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
        embeddings="results/sweep/{learning_rate}/{run}/{target}/embeddings.npz",
        outcome="results/sweep/{learning_rate}/{run}/outcome.txt",
    output:
        metrics="results/sweep/{learning_rate}/{run}/{target}/metrics.json",
        ranks="results/sweep/{learning_rate}/{run}/{target}/ranks.parquet",
        contributions="results/sweep/{learning_rate}/{run}/{target}/contributions.parquet",
    log:
        "logs/evaluate_candidate/{learning_rate}/{run}/{target}.log",
    params:
        version=VERSIONS["evaluate"],
        split=ask(study.target_split, role="validation"),
        expected=[],
        protocols=[],
        seed=study.config.sweep.seed,
        outcome=lambda wildcards, input: [f"--outcome={input.outcome}"],


rule choose_learning_rates:
    """Choose every run's learning rate: the highest validation mAP@10, averaged over directions and targets."""
    input:
        metrics=ask(study.sweep_files, name="metrics.json"),
    output:
        csv="results/sweep.csv",
    log:
        "logs/choose_learning_rates/sweep.log",
    params:
        version=VERSIONS["choose_learning_rates"],
        protocol=study.sweep_protocol,
    shell:
        "python -m pipeline.stages.choose_learning_rates"
        " --metrics {input.metrics:q}"
        " --protocol={params.protocol}"
        " --csv={output.csv:q}"
        " 2> {log:q}"
