"""`evaluate_behavior.py --help` says what it does; the code is in `next_behavior/commands/evaluate.py`."""

from next_behavior.commands.errors import run
from next_behavior.commands.evaluate import main

if __name__ == "__main__":
    run("evaluate_behavior.py", main)
