"""LibRecommender's sequence model RNN4Rec, put where its own server reads it: into Redis and an index of faiss.

    .bench/venv-librecommender/bin/python -m benchmarks.peers_serving.librecommender_model \\
      --log log.csv --folder .bench/serving/librecommender --redis_port 6390
    REDIS_HOST=127.0.0.1:6390 .bench/venv-librecommender/bin/python -m sanic \\
      libserving.sanic_serving.embed_deploy:app --port 8003 --single-process

That server answers for users of the log alone: what the model makes of a history is computed at the export, and a
request reads it from Redis and searches the index. LibRecommender's server for histories that a request brings hands
them to TensorFlow Serving, which is no Python package and is not measured.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import libserving
import pandas as pd
from libreco.algorithms import RNN4Rec
from libreco.data import DatasetPure
from libserving.serialization import embed2redis, save_embed, save_faiss_index

# Events that are read: its default. What it serves is computed beforehand, so this is no part of an answer's time.
WIDTH, LENGTH = 128, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--log", required=True, help="CSV: user, item, time")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--redis_port", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    args = parser.parse_args()
    frame = pd.read_csv(args.log, dtype={"user": str, "item": str})
    frame["label"] = 1
    train, info = DatasetPure.build_trainset(frame[["user", "item", "label", "time"]])
    model = RNN4Rec(
        "ranking",
        info,
        loss_type="cross_entropy",
        embed_size=WIDTH,
        hidden_units=(WIDTH,),
        n_epochs=args.epochs,
        recent_num=LENGTH,
        lr=1e-3,
        batch_size=2048,
    )
    model.fit(train, neg_sampling=True, verbose=1, shuffle=True)
    save_embed(str(args.folder), model)
    # Its server looks for the index in the folder of its own package.
    save_faiss_index(str(args.folder), model)
    shutil.copy(args.folder / "faiss_index.bin", Path(libserving.__file__).parent / "faiss_index.bin")
    embed2redis(str(args.folder), host="127.0.0.1", port=args.redis_port)


if __name__ == "__main__":
    main()
