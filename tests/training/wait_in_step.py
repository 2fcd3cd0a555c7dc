"""The stage `train`, which waits in a step until it is asked to stop: `-m tests.training.wait_in_step 4 OPTIONS`."""

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
        listening = signal.getsignal(signal.SIGTERM)
        asked = []

        def note(*of_signal):
            asked.append(of_signal)
            listening(*of_signal)

        signal.signal(signal.SIGTERM, note)
        while not asked:
            time.sleep(0.01)
    return take_step(trainer, batch)


Trainer.take_step = waiting
run_training(train.main)
