"""`evaluate_behavior.py --help` says what it does; the code is in `next_behavior/evaluation/evaluator.py`."""

import sys

from next_behavior.evaluation.evaluator import main

if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"evaluate_behavior.py: {error}")
