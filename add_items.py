"""Give a trained model new items, and retire old ones, without training.

    python add_items.py --model out/shop --items new.csv --output_dir out/shop-today
    python add_items.py --model out/shop --items catalog.csv --retire sold_out.txt --output_dir out/shop   # in place

`python add_items.py --help` lists the options; the command is `next_behavior/commands/add_items.py`.
"""

from next_behavior.commands.add_items import main
from next_behavior.commands.errors import run

if __name__ == "__main__":
    run("add_items.py", main)
