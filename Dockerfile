# The locked environment as an image, for executors that run jobs in one; the project's code is not in it, but read
# from the shared folder that the jobs work in. Built and used:
#   docker build -t audio-composed-text .
#   apptainer build pipeline.sif docker-daemon:audio-composed-text:latest && snakemake --sdm apptainer ...
# Compiled, because jobs cannot write into the image: each process would compile the packages again.
# The Python that the project is tested with; the lock has hashes for its wheels.
FROM python:3.11-slim-bookworm

COPY requirements/installer.txt requirements/lock.txt /opt/requirements/
RUN python -m pip install --no-cache-dir --require-hashes --no-deps -r /opt/requirements/installer.txt \
    && uv pip sync --system --require-hashes --no-cache --compile-bytecode /opt/requirements/lock.txt

ENV LC_ALL=C.UTF-8
