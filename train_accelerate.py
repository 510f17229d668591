"""`train_accelerate.py --help` says what it does; the code is in `next_behavior/training/loop.py`."""

import sys

from next_behavior.training.loop import main

if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train_accelerate.py: {error}")
