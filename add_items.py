"""`add_items.py --help` says what it does; the code is in `next_behavior/commands/add_items.py`."""

import sys

from next_behavior.commands.add_items import main

if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"add_items.py: {error}")
