"""The stage `train`, which waits in a step until it is asked to stop: `-m tests.training.wait_in_step 3 OPTIONS`."""

import signal
import sys
import time

from pipeline.stages import train
from pipeline.training.command import run_training
from pipeline.training.trainer import Trainer

take_step = Trainer.take_step
step = int(sys.argv.pop(1))


def waiting(trainer, batch):
    if trainer.step == step:
        request = signal.getsignal(signal.SIGTERM).__self__  # pipeline.training.stopping.StopRequest
        while not request.is_made:
            time.sleep(0.01)
    return take_step(trainer, batch)


Trainer.take_step = waiting
run_training(train.main)
