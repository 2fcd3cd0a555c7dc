# Two commands from a bare clone: `make table1` and `make test`. Both create .venv with the locked dependencies.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Some images set it. Each of the many processes would then compile torch, transformers and snakemake again: 9 s.
unexport PYTHONDONTWRITEBYTECODE
# One process more than there are cores, because tests also wait: for signals, other processes and a browser.
PYTEST = python -m pytest -q -n $(shell expr $$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) + 1) --maxprocesses=4 \
	--dist=loadfile --no-loadscope-reorder

.PHONY: demo table1 test test-all test-faults test-slurm sweep lint bench-data bench-train bench-evaluation bench-planning bench-scheduling gpu-check schema docs lock clean

demo: .venv/locked  ## A first look: a small study of three rows, in the folder demo/
	mkdir -p demo
	ln -sfn ../data demo/data
	snakemake --cores all all --directory demo --configfile experiments/demo.yaml --quiet rules
	@echo "open demo/results/report/index.html; the table is demo/results/table1.csv"

table1: .venv/locked  ## The small study, end to end: results/table1.csv and results/table1.tex
	snakemake --cores all results/table1.tex

test: .venv/locked  ## The tests that need no GPU and no more than 20 s each
	$(PYTEST)

test-faults: .venv/locked  ## A tiny study killed 100 times at random moments; KILLS=10 is short
	python -m bench.faults $(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED))

test-all: .venv/locked  ## The slow tests, too: compiled kernels and whole studies
	$(PYTEST) -m "not slurm"

test-slurm: .venv/locked  ## The workflow on a SLURM cluster of its own; needs root and Debian
	python -m pytest -q -rs -m slurm tests/slurm

sweep: .venv/locked  ## Settings, chosen on the validation splits: results/sweep.csv, results/sweep.yaml
	snakemake --cores all results/sweep.csv

lint: .venv/locked  ## Formatting, static checks and types
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check Snakefile workflow
	snakemake --lint
	hadolint Dockerfile
	python docs/tools/check_words.py README.md CHANGELOG.md CONTRIBUTING.md docs pipeline

bench-data: .venv/locked  ## Speed and memory of the data stages, next to what they are compared with; HOURS=24 of one recording
	python -m bench.data
	python -m bench.recordings $(if $(HOURS),--hours $(HOURS))

bench-train: .venv/locked  ## How fast the composed step of ms-clap is here, next to the straightforward way, and what each method costs
	python -m bench.train
	python -m bench.methods

bench-evaluation: .venv/locked  ## What metrics, embedding and search cost on one core; FULL=1 a million x 100,000
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m bench.evaluation $(if $(FULL),--full)

bench-planning: .venv/locked  ## Seconds that Snakemake takes to plan 1,000 shards and the paper's study
	python -m bench.planning

bench-scheduling: .venv/locked  ## What SLURM costs: the tiny study here and on a cluster made up here; needs root and Debian
	python -m bench.scheduling

schema: .venv/locked  ## JSON schema, and the generated pages of the documentation
	python -m pipeline.study > workflow/schemas/config.schema.json
	python -m pipeline.study --markdown > docs/configuration.md
	python -m docs.tools.command_line > docs/command-line.md

docs: .venv/locked  ## The documentation as a site that needs no network: build/site
	mkdocs build --strict

gpu-check: .venv/locked  ## Tests, training step and a short run on this GPU, in some minutes: benchmarks/gpu_check/report.md
	python -m bench.gpu_check

lock: .venv/locked  ## Resolve the dependencies again
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --upgrade --no-annotate \
		--override requirements/overrides.txt --custom-compile-command "make lock" -o requirements/lock.txt -q
	echo uv | uv pip compile - --universal --generate-hashes --upgrade --no-annotate \
		--custom-compile-command "make lock" -o requirements/installer.txt -q

.venv/locked: requirements/lock.txt requirements/installer.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "needs Python 3.11 or later, found " + sys.version)'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/installer.txt
	.venv/bin/uv pip sync --system-certs --python .venv/bin/python --require-hashes requirements/lock.txt
	@# Compiled once: else the many processes of a study do it at the same time, at their first import. librosa has numba compile 13 s.
	.venv/bin/python -c 'import librosa.util.utils' & \
		.venv/bin/python -m compileall -q -j 0 -x '/(tests|networkx|mypyc?|pip)/|transformers/models/' .venv/lib; wait
	.venv/bin/uv pip install --python .venv/bin/python --quiet --offline --no-deps --no-build-isolation --editable .
	touch $@

clean:  ## Everything that was made, the environment excepted
	rm -rf results logs benchmarks .snakemake demo
