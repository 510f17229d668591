"""`publish.py --help` says what it does; the code is in `next_behavior/publishing/publish.py`."""

import sys

from next_behavior.publishing.publish import SendError, main

if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, SendError) as error:
        sys.exit(f"publish.py: {error}")
