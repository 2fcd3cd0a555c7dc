"""Commands of Python in processes that begin as forks of this one, with torch and the models already imported.

A new interpreter spends 5 to 7 s of CPU time on these imports, and a training on two processes starts three of them. A
fork has the same parent, signals, standard streams, environment and arguments, and imports the project's own modules
itself. What a command imports, and how it starts at all, is not tested with a fork. `torch.compile` hangs in one.
"""

from __future__ import annotations

import atexit
import faulthandler
import functools
import gc
import importlib
import inspect
import itertools
import json
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import snakemake.cli  # noqa: F401  imported here for the forks, as is what follows
import torch
import torch._dynamo  # which every optimizer imports
import torch.distributed.run
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

import pipeline.models.mini
import pipeline.training.trainer

ROOT = Path(__file__).parents[1]
OWN = ("pipeline", "bench", "docs", "tests")
"""Packages that a command imports itself, so that it begins without their state."""
INSTALLED = [path for path in sys.path if "site-packages" in path or not Path(path).absolute().is_relative_to(ROOT)]


class Forked(subprocess.Popen[str]):
    """`subprocess.Popen`; a command of this Python becomes a fork of this process, and its own commands likewise."""

    def __init__(self, args: str | Sequence[Any], *, env: Mapping[str, str] | None = None, **options: Any) -> None:
        is_python = not isinstance(args, str) and args[0] == sys.executable
        if is_python and not torch.cuda.is_initialized():  # CUDA does not survive a fork
            import_the_rest()
            words = [str(word) for word in args[1:]]
            variables = dict(os.environ if env is None else env)
            kept = options.get("pass_fds", ())
            options["preexec_fn"] = functools.partial(become, words, variables, kept, options.get("preexec_fn"))
        super().__init__(args, env=env, **options)


@functools.cache
def import_the_rest() -> None:
    """Import what is imported at its first use, which would be that of every fork: 1 s for a model, 1 s for curves."""
    for name in ("matplotlib.figure", "matplotlib.backends.backend_svg", "torch.utils.tensorboard"):
        importlib.import_module(name)
    with torch.random.fork_rng():
        pipeline.models.mini.build(pipeline.models.mini.byte_tokenizer())


def run_python(*words: Any, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """What `python WORDS` printed and its exit status, as `subprocess.run` returns them."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    with Forked([sys.executable, *words], **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def become(
    words: list[str],
    variables: dict[str, str],
    kept: Collection[int] = (),
    prepare: Callable[[], object] | None = None,
) -> None:
    """Run `python WORDS` in this fork and end it: what Popen would start does not follow.

    kept: open files besides the standard streams.
    """
    status = 1
    try:
        if prepare is not None:
            prepare()
        begin(variables, kept)
        run(words)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def begin(variables: dict[str, str], kept: Collection[int]) -> None:
    """Leave behind what a new interpreter does not have: files, signal handlers, logging, the project's modules."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(variables)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, closefd=False)
    logging.disable(logging.NOTSET)
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    for logger in logging.root.manager.loggerDict.values():
        for handler in [*getattr(logger, "handlers", [])]:
            if type(handler).__module__.startswith("_pytest."):  # it captures the messages of loggers for a report
                logger.removeHandler(handler)
            elif isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.stderr)  # until now a file of pytest
    faulthandler.disable()  # likewise
    gc.freeze()  # or the first collection looks at all objects of the process before the fork, and so copies them
    close_all_but(kept)  # also Popen's own pipe: this process has started
    for name in [name for name in sys.modules if name.split(".")[0] in OWN]:
        del sys.modules[name]
    inspect.stack = stack
    subprocess.Popen = subprocess_handler.Popen = Forked


def stack(context: int = 1) -> list[inspect.FrameInfo]:
    """The callers without their source, for which `inspect.stack` looks at every module: torchrun asks often for it."""
    found, frame = [], inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        found.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
        frame = frame.f_back
    return found[1:]


def close_all_but(files: Collection[int]) -> None:
    """Close all open files but these and the standard streams."""
    places = [2, *sorted(files), os.sysconf("SC_OPEN_MAX")]
    for before, after in itertools.pairwise(places):
        os.closerange(before + 1, after)


def run(words: list[str]) -> None:
    """Run a module, script or code as the main one, with the search path that it would have."""
    words = words[1:] if words[0] == "-u" else words
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    is_script = words[0] not in ("-m", "-c")
    sys.path[:] = [str(Path(words[0]).parent.absolute()) if is_script else os.getcwd(), *paths, *INSTALLED]
    if is_script:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    elif words[0] == "-m":
        sys.argv = words[1:]
        if not hasattr(sys.modules.get(words[1]), "__path__"):  # of a package its module __main__ is run
            sys.modules.pop(words[1], None)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *words[2:]]
        sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), vars(sys.modules["__main__"]))


# --- `python` of a shell: the commands of Snakemake's jobs -----------------------------------------------------------

ASK = """#!{python} -IS
import json, os, socket, sys
os.umask(mask := os.umask(0))
request = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), mask]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    status = int(server.recv(8) or b"1")
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@functools.cache
def folder_with_python() -> Path:
    """A folder for the beginning of PATH, whose `python` lets a fork of this process do its work and waits for it."""
    import_the_rest()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")  # the kernel chooses an address that is no file
    listener.listen(64)
    server = os.fork()
    if server == 0:
        serve(listener)
    folder = tempfile.TemporaryDirectory(prefix="python-")
    atexit.register(folder.cleanup)
    atexit.register(os.killpg, server, signal.SIGKILL)
    program = Path(folder.name) / "python"
    program.write_text(ASK.format(python=sys.executable, address=listener.getsockname()))
    program.chmod(0o755)
    listener.close()
    return Path(folder.name)


def serve(listener: socket.socket) -> None:
    """Answer clients until the process that started this one is gone."""
    os.setsid()
    close_all_but([listener.fileno()])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
    parent = os.getppid()
    listener.settimeout(1)
    while os.getppid() == parent:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            answer(connection)
        connection.close()
    os._exit(0)


def answer(connection: socket.socket) -> None:
    """Run what a client asks for in a fork, and send back its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.setblocking(True)
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    request = b""
    while len(request) < int.from_bytes(size, "big"):
        request += connection.recv(1 << 20)
    words, variables, folder, mask = json.loads(request)
    worker = os.fork()
    if worker == 0:
        for place, file in enumerate(files):
            os.dup2(file, place)
        os.chdir(folder)
        os.umask(mask)
        variables.pop("PIPELINE_PARENT", None)  # Snakemake is not the parent of a fork
        become(words, variables)
    _, status = os.waitpid(worker, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)
