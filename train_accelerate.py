"""Train a `BertForNextBehavior` from an event log, ready for `AutoModel.from_pretrained`.

    python train_accelerate.py --events events.parquet --output_dir out/shop
    python train_accelerate.py --events events.csv.gz --items items.csv --output_dir out/shop --max_minutes 30
    python train_accelerate.py --events beauty.parquet --output_dir out/beauty --split leave_one_out
    python train_accelerate.py --events events.parquet --output_dir out/shop --resume
    accelerate launch train_accelerate.py --events events.parquet --output_dir out/shop

What the settings leave open is chosen from the log: history length, width, depth, batches. After training, the
probabilities are calibrated on validation events, and the model is evaluated on test events beside the baselines. The
table lies in the output folder as `evaluation.md` and `evaluation.json`.

`--help` lists the settings; `next_behavior/training/settings.py` declares them.
"""

from next_behavior.commands.errors import run
from next_behavior.commands.train import main

if __name__ == "__main__":
    run("train_accelerate.py", main)
