"""Turn a trained folder into a Hub repository that others can load, trust and try.

    python publish.py --model out/shop --repo_id ana/shop --dry_run --output staged   # look at it first
    python publish.py --model out/shop --repo_id ana/shop

`python publish.py --help` lists the options; the command is `next_behavior/commands/publish.py`.
"""

from next_behavior.commands.errors import run
from next_behavior.commands.publish import main

if __name__ == "__main__":
    run("publish.py", main)
