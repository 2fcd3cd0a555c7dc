"""The stage `train`, whose last process gets a signal in a step: `kill_in_step.py SIGKILL 3 OPTIONS`."""

import os
import signal
import sys

from pipeline.stages import train
from pipeline.training.command import run_training
from pipeline.training.trainer import Trainer

take_step = Trainer.take_step
is_last = int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1
number, step = signal.Signals[sys.argv.pop(1)], int(sys.argv.pop(1))


def struck(trainer, batch):
    if trainer.step == step and is_last:
        os.kill(os.getpid(), number)
    return take_step(trainer, batch)


Trainer.take_step = struck
run_training(train.main)
