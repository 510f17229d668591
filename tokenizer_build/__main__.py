"""`python -m tokenizer_build --help` says what it does; the code is in `next_behavior/commands/tokenize.py`."""

import sys

from next_behavior.commands.errors import run
from next_behavior.commands.tokenize import main

if __name__ == "__main__":
    sys.argv[0] = "python -m tokenizer_build"  # argparse says it in the usage line
    run("tokenizer_build", main)
