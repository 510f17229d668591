"""The model and the baselines on held-out events: a table, and JSON.

    python evaluate_behavior.py --model out/shop --events events.parquet
    python evaluate_behavior.py --model out/shop --events events.parquet --json evaluation.json

`python evaluate_behavior.py --help` lists the options; the command is `next_behavior/commands/evaluate.py`.
"""

from next_behavior.commands.errors import run
from next_behavior.commands.evaluate import main

if __name__ == "__main__":
    run("evaluate_behavior.py", main)
