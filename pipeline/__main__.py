"""`python -m pipeline` is the command `composed-text`."""

from pipeline.commands import main, run

__all__ = ["main"]

if __name__ == "__main__":
    run()
