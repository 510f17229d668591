"""The systems that are compared, each used as its documentation says, with published or default settings (`what`).

A system has

    fit(task, clock)        trains on the training events; reports epochs and targets to the clock
    rows(positions)         (B, V) scores of the catalog for the events at `positions`, given what came before them
    recommend(position)     ten items through the library's public call for one user, seen items left out: it is timed,
                            and compared with what `rows` ranks first

numpy alone is imported here, libraries where they are used: each system runs in the environment that has its own.
Early stopping looks at the same validation targets and NDCG@10 for all, and its scoring is not counted as their time.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers_scoring import CUTOFF, NO_ITEM, TEST, Clock, OutOfTime, Task, top_items

ROOT = Path(__file__).resolve().parent.parent


def padded(histories: list[np.ndarray], length: int, left: bool) -> np.ndarray:
    """(B, length) int64: the newest `length` ids of each history, zeros before or after them."""
    array = np.zeros((len(histories), length), dtype=np.int64)
    for row, history in enumerate(histories):
        newest = history[-length:]
        if len(newest):
            array[row, slice(length - len(newest), None) if left else slice(0, len(newest))] = newest
    return array


# ----------------------------------------------------------------------------------------------------------------------
# RecTools
# ----------------------------------------------------------------------------------------------------------------------


def loss_at_real_positions() -> Any:
    """RecTools' training module with the same loss, its logits computed only where there is a target."""
    import torch
    from rectools.models.nn.transformers.lightning import TransformerLightningModule

    class LossAtRealPositions(TransformerLightningModule):
        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            real = batch["y"] != 0
            items = self.torch_model.item_model.get_all_embeddings()
            sessions = self.torch_model.encode_sessions(batch, items)[real]  # (N, H)
            target, candidates = batch["y"][real], None
            if self._requires_negatives:
                candidates = torch.cat([target[:, None], batch["negatives"][real]], dim=-1)[:, None]  # (N, 1, 1 + K)
                target = torch.zeros_like(target)
            logits = self.torch_model.similarity_module(sessions[:, None], items, candidates)[:, 0] / self.logits_t
            loss = torch.nn.functional.cross_entropy(logits, target, reduction="none") * batch["yw"][real]
            return loss.sum() / (loss > 0).sum()

    return LossAtRealPositions


class RecToolsTransformer:
    """RecTools' `SASRecModel`.

    Args:
        real_positions: compute the loss only where there is a target. RecTools computes the logits of padding too and
            multiplies their loss by zero; the loss is the same, so one training tells the accuracy of both.
        max_steps: measure throughput, memory and latency on so many batches, and no accuracy.
        settings: of `SASRecModel`.
    """

    libraries = ("rectools", "torch", "pytorch-lightning")
    MAX_EPOCHS = 200

    def __init__(self, real_positions: bool, max_steps: int | None, **settings: Any) -> None:
        self.real_positions, self.max_steps, self.settings = real_positions, max_steps, settings
        self.what = ", ".join(f"{name} {value}" for name, value in settings.items()) + (
            "; loss at real positions only" if real_positions else "; as shipped"
        )

    def fit(self, task: Task, clock: Clock) -> None:
        import pytorch_lightning as lightning
        import torch
        from rectools.models import SASRecModel

        system = self

        class Watch(lightning.Callback):
            best: dict[str, torch.Tensor] | None = None

            def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
                return self  # RecTools trains with a copy of the trainer that it was given

            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
                clock.batch(int((batch["y"] != 0).sum()))
                steps = system.max_steps
                if clock.is_over() or (steps is not None and trainer.global_step >= steps):
                    trainer.should_stop = True

            def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
                if system.max_steps is not None:
                    return
                module.eval()
                if clock.validate(system.rows):
                    self.best = copy.deepcopy(module.torch_model.state_dict())
                module.train()
                trainer.should_stop = clock.is_finished()

        watch = Watch()

        def trainer() -> lightning.Trainer:
            return lightning.Trainer(
                accelerator="cpu",
                devices=1,
                max_epochs=self.MAX_EPOCHS,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[watch],
            )

        self.task = task
        layers = dict(self.settings)
        if layers.pop("layers", None) == "LiGR":
            from rectools.models.nn.transformers.ligr import LiGRLayers

            layers |= {"transformer_layers_type": LiGRLayers, "use_key_padding_mask": True}
        if self.real_positions:
            layers["lightning_module_type"] = loss_at_real_positions()
        users, items = task.training()
        self.model = SASRecModel(**layers, get_trainer_func=trainer, recommend_torch_device="cpu")
        self.model.fit(self._dataset(users, items))
        if watch.best is not None:
            self.model.torch_model.load_state_dict(watch.best)
        self.model.torch_model.eval()

    @staticmethod
    def _dataset(users: np.ndarray, items: np.ndarray) -> Any:
        import pandas as pd
        from rectools.dataset import Dataset

        order = pd.to_datetime(np.arange(len(users)), unit="s")
        frame = pd.DataFrame({"user_id": users, "item_id": items, "weight": 1.0, "datetime": order})
        return Dataset.construct(frame)

    def rows(self, positions: np.ndarray) -> np.ndarray:
        import torch

        known = self.model.data_preparator.get_known_item_ids().astype(np.int64)  # catalog ids by RecTools' ids
        first = self.model.data_preparator.n_item_extra_tokens
        ids = np.zeros(self.task.num_items, dtype=np.int64)
        ids[known] = np.arange(len(known)) + first
        histories = [ids[self.task.history(position)] for position in positions.tolist()]
        sessions = padded([ids_[ids_ > 0] for ids_ in histories], self.settings["session_max_len"], left=True)
        network = self.model.torch_model
        with torch.no_grad():
            items = network.item_model.get_all_embeddings()
            users = network.encode_sessions({"x": torch.from_numpy(sessions)}, items)[:, -1]
            users = network.similarity_module.session_tower_forward(users)
            found = users @ network.similarity_module.item_tower_forward(items).T
        scores = np.full((len(positions), self.task.num_items), -np.inf, dtype=np.float32)
        scores[:, known] = found.numpy()[:, first:]
        return scores

    def recommend(self, position: int) -> list[int]:
        history = self.task.history(position)
        dataset = self._dataset(np.zeros(len(history), dtype=np.int64), history)
        answer = self.model.recommend(users=[0], dataset=dataset, k=CUTOFF, filter_viewed=True)
        return [int(item) for item in answer["item_id"]]


# ----------------------------------------------------------------------------------------------------------------------
# RecBole
# ----------------------------------------------------------------------------------------------------------------------


class RecBoleSequential:
    """RecBole's SASRec, BERT4Rec or GRU4Rec by its default configuration; each prefix of a history is one row."""

    libraries = ("recbole", "torch")
    LENGTH = 50

    def __init__(self, model: str, seed: int, folder: Path, **settings: Any) -> None:
        self.name, self.seed, self.folder, self.settings = model, seed, folder, settings
        self.what = f"{model}.yaml of RecBole, histories of {self.LENGTH} events"
        self.what += "".join(f", {name} {value}" for name, value in settings.items())

    def fit(self, task: Task, clock: Clock) -> None:
        from recbole.config import Config
        from recbole.data import create_dataset
        from recbole.data.utils import get_dataloader
        from recbole.utils import get_model, get_trainer, init_seed

        self.task = task
        scratch = self.folder / f"recbole-{self.name}"
        (scratch / "log").mkdir(parents=True, exist_ok=True)
        users, items = task.training()
        lines = [f"{user}\t{item}\t{order}" for order, (user, item) in enumerate(zip(users, items, strict=True))]
        header = "user_id:token\titem_id:token\ttimestamp:float"
        (scratch / "log" / "log.inter").write_text("\n".join([header, *lines]) + "\n")
        os.chdir(scratch)  # RecBole writes its logs and checkpoints where it stands
        sys.argv = sys.argv[:1]  # and reads the command line
        config = Config(
            model=self.name,
            dataset="log",
            config_dict={
                "data_path": str(scratch),
                "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
                "MAX_ITEM_LIST_LENGTH": self.LENGTH,
                "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
                "train_neg_sample_args": None,
                "use_gpu": False,
                "seed": self.seed,
                "show_progress": False,
                "state": "ERROR",
                **self.settings,
            },
        )
        init_seed(self.seed, True)
        dataset = create_dataset(config)
        # `data_preparation` would hold out two events of each user; these are the training events already.
        dataset._change_feat_format()
        loader = get_dataloader(config, "train")(config, dataset, None, shuffle=True)
        self.model = get_model(self.name)(config, dataset)
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, self.model)
        tokens = dataset.field2token_id["item_id"]
        self.ids = np.array([tokens.get(str(item), 0) for item in range(task.num_items)])

        def loss(interaction: Any) -> Any:
            if clock.is_over():
                raise OutOfTime
            # The end of the batch before is the start of this one.
            clock.batch(targets[-1])
            masked = "MASK_INDEX" in interaction.interaction
            targets.append(int((interaction["MASK_INDEX"] > 0).sum()) if masked else len(interaction))
            return self.model.calculate_loss(interaction)

        best = None
        for epoch in itertools.count():
            targets = [0]
            with contextlib.suppress(OutOfTime):
                trainer._train_epoch(loader, epoch, loss_func=loss)
            self.model.eval()
            if clock.validate(self.rows):
                best = copy.deepcopy(self.model.state_dict())
            if clock.is_finished():
                break
        self.model.load_state_dict(best)
        self.model.eval()

    def _scores(self, histories: list[np.ndarray]) -> np.ndarray:
        import torch
        from recbole.data.interaction import Interaction

        ids = [self.ids[history] for history in histories]
        ids = [row[row > 0] for row in ids]
        lengths = np.clip([len(row) for row in ids], 1, self.LENGTH)
        fields = {"item_id_list": padded(ids, self.LENGTH, left=False), "item_length": lengths}
        with torch.no_grad():
            found = self.model.full_sort_predict(Interaction({k: torch.from_numpy(v) for k, v in fields.items()}))
        return found.reshape(len(histories), -1).numpy()

    def rows(self, positions: np.ndarray) -> np.ndarray:
        found = self._scores([self.task.history(position) for position in positions.tolist()])
        return np.where(self.ids > 0, found[:, self.ids], -np.inf).astype(np.float32)

    def recommend(self, position: int) -> list[int]:
        history = self.task.history(position)
        scores = np.where(self.ids > 0, self._scores([history])[0, self.ids], -np.inf)
        scores[history] = -np.inf
        return top_items(scores).tolist()


# ----------------------------------------------------------------------------------------------------------------------
# implicit, LightFM, Surprise
# ----------------------------------------------------------------------------------------------------------------------


def interaction_matrix(rows: list[np.ndarray], num_items: int) -> Any:
    """(B, V) sparse float32: how often each row names each item."""
    from scipy.sparse import csr_matrix

    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    indices = np.concatenate(rows) if len(rows) else np.zeros(0, dtype=np.int64)
    matrix = csr_matrix((np.ones(len(indices), dtype=np.float32), indices, indptr), shape=(len(rows), num_items))
    matrix.sum_duplicates()
    return matrix


class ImplicitSystem:
    """A model of `implicit`, the constants chosen among a few on the validation targets; `recommend` refolds the user
    in from the history."""

    libraries = ("implicit",)

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.what = ""

    def candidates(self) -> Iterator[tuple[str, Any]]:
        raise NotImplementedError

    def fit(self, task: Task, clock: Clock) -> None:
        self.task = task
        users, items = task.training()
        borders = np.searchsorted(users, np.arange(task.num_users + 1))
        matrix = interaction_matrix([items[a:b] for a, b in itertools.pairwise(borders)], task.num_items)
        best = None
        for name, model in self.candidates():
            before = time.process_time()
            model.fit(matrix, show_progress=False)
            seconds = time.process_time() - before
            self.model = model
            if clock.validate(self.rows):
                best, self.what, clock.training_seconds = model, name, seconds
            if clock.is_over():
                break
        self.model = best
        self.what += f" (best of {clock.epoch} settings on validation)"

    def _histories(self, positions: np.ndarray) -> Any:
        return interaction_matrix([self.task.history(p) for p in positions.tolist()], self.task.num_items)

    def rows(self, positions: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def recommend(self, position: int) -> list[int]:
        history = self._histories(np.array([position]))
        ids, _ = self.model.recommend(0, history, N=CUTOFF, recalculate_user=True, filter_already_liked_items=True)
        return [int(item) for item in ids]


class ImplicitALS(ImplicitSystem):
    def candidates(self) -> Iterator[tuple[str, Any]]:
        from implicit.als import AlternatingLeastSquares

        for factors, regularization, alpha in [
            (100, 0.01, 1.0),  # the defaults
            (128, 0.01, 10.0),
            (128, 1.0, 10.0),
            (128, 10.0, 40.0),
            (256, 1.0, 10.0),
            (256, 10.0, 10.0),
        ]:
            model = AlternatingLeastSquares(
                factors, regularization, alpha, iterations=15, num_threads=1, random_state=self.seed
            )
            yield f"factors {factors}, regularization {regularization}, alpha {alpha}, 15 iterations", model

    def rows(self, positions: np.ndarray) -> np.ndarray:
        factors = self.model.recalculate_user(np.arange(len(positions)), self._histories(positions))
        return np.asarray(factors @ self.model.item_factors.T, dtype=np.float32)


class ImplicitItemKNN(ImplicitSystem):
    def candidates(self) -> Iterator[tuple[str, Any]]:
        from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender

        for kind, neighbours in itertools.product(
            [CosineRecommender, TFIDFRecommender, BM25Recommender], [20, 100, 500]
        ):
            yield f"{kind.__name__}, K {neighbours}", kind(K=neighbours, num_threads=1)

    def rows(self, positions: np.ndarray) -> np.ndarray:
        return (self._histories(positions) @ self.model.similarity).toarray().astype(np.float32)


class UserFactors:
    """What LightFM and Surprise's SVD have in common: a vector and a bias for each user of the training events and for
    each item. Later events do not change them; a user without training events has neither."""

    def _set_factors(self, users: np.ndarray, items: np.ndarray, item_biases: np.ndarray) -> None:
        self.users, self.items, self.item_biases = users, items, item_biases

    def rows(self, positions: np.ndarray) -> np.ndarray:
        users = self.users[self.task.users(positions)]
        return np.asarray(users @ self.items.T + self.item_biases, dtype=np.float32)

    task: Task


class LightFMSystem(UserFactors):
    libraries = ("lightfm",)
    # An epoch takes a fifth of a second and changes little.
    MAX_EPOCHS, EPOCHS_AT_ONCE = 300, 5

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.what = "WARP loss, 64 components, otherwise defaults; user vectors of the training events"

    def fit(self, task: Task, clock: Clock) -> None:
        from lightfm import LightFM
        from scipy.sparse import coo_matrix

        self.task = task
        users, items = task.training()
        known = items < task.num_items
        shape = (task.num_users, task.num_items)
        matrix = coo_matrix((np.ones(known.sum(), dtype=np.float32), (users[known], items[known])), shape=shape)
        self.trained = np.isin(np.arange(task.num_users), users)
        self.model = LightFM(no_components=64, loss="warp", random_state=self.seed)
        best = None
        for _ in range(self.MAX_EPOCHS // self.EPOCHS_AT_ONCE):
            before = time.process_time()
            self.model.fit_partial(matrix, epochs=self.EPOCHS_AT_ONCE, num_threads=1)
            clock.add(int(known.sum()) * self.EPOCHS_AT_ONCE, time.process_time() - before)
            self._read()
            if clock.validate(self.rows):
                best = copy.deepcopy(self.model)
            if clock.is_finished():
                break
        self.model = best
        self._read()

    def _read(self) -> None:
        _, users = self.model.get_user_representations()
        biases, items = self.model.get_item_representations()
        self._set_factors(np.where(self.trained[:, None], users, 0), items, biases)

    def recommend(self, position: int) -> list[int]:
        user = int(self.task.users(np.array([position]))[0])
        scores = self.model.predict(user, np.arange(self.task.num_items))
        scores[self.task.history(position)] = -np.inf
        return top_items(scores).tolist()


class SurpriseSVD(UserFactors):
    """Surprise predicts ratings, and the log has none: 1 for each event, 0 for random pairs. The constants are chosen
    among a few on the validation targets."""

    libraries = ("scikit-surprise",)
    # Zeros for each one, factors, epochs, learning rate and regularization; first the library's defaults.
    CANDIDATES = ((1, 100, 20, 0.005, 0.02), (4, 100, 20, 0.005, 0.02), (4, 32, 60, 0.02, 0.05), (1, 32, 60, 0.02, 0.1))

    model: Any

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.what = ""

    def fit(self, task: Task, clock: Clock) -> None:
        self.task = task
        best = None
        for candidate in self.CANDIDATES:
            before = time.process_time()
            events = self._fit(*candidate)
            seconds = time.process_time() - before
            clock.add(events, seconds)
            if clock.validate(self.rows):
                best, clock.training_seconds = (self.model, self.users, self.items, self.item_biases), seconds
                zeros, factors, epochs, rate, regularization = candidate
                self.what = f"SVD on 1 for each event and 0 for {zeros} random pair(s) each, {factors} factors, "
                self.what += f"{epochs} epochs, learning rate {rate}, regularization {regularization}"
            if clock.is_over():
                break
        assert best is not None
        self.model, *factors_of_best = best
        self._set_factors(*factors_of_best)
        self.what += f" (best of {clock.epoch} settings on validation)"

    def _fit(self, zeros: int, factors: int, epochs: int, rate: float, regularization: float) -> int:
        """Trains, and returns how many ratings of real events were learned from."""
        import pandas as pd
        from surprise import SVD, Dataset, Reader

        users, items = self.task.training()
        known = items < self.task.num_items
        users, items = users[known], items[known]
        drawn = np.random.default_rng(self.seed).integers(0, self.task.num_items, zeros * len(users))
        frame = pd.DataFrame(
            {
                "user": np.concatenate([users, np.repeat(users, zeros)]),
                "item": np.concatenate([items, drawn]),
                "rating": np.concatenate([np.ones(len(users)), np.zeros(len(drawn))]),
            }
        )
        data = Dataset.load_from_df(frame, Reader(rating_scale=(0, 1))).build_full_trainset()
        self.model = SVD(factors, epochs, lr_all=rate, reg_all=regularization, random_state=self.seed)
        self.model.fit(data)
        of_users = np.zeros((self.task.num_users, factors))
        of_users[[data.to_raw_uid(user) for user in range(data.n_users)]] = self.model.pu
        of_items, biases = np.zeros((self.task.num_items, factors)), np.zeros(self.task.num_items)
        raw = [data.to_raw_iid(item) for item in range(data.n_items)]
        of_items[raw], biases[raw] = self.model.qi, self.model.bi
        self._set_factors(of_users, of_items, biases)
        return len(users) * epochs

    def recommend(self, position: int) -> list[int]:
        user = int(self.task.users(np.array([position]))[0])
        # Its only call is one (user, item) pair at a time. Clipping to the rating scale would tie the best items.
        scores = np.array([self.model.predict(user, item, clip=False).est for item in range(self.task.num_items)])
        scores[self.task.history(position)] = -np.inf
        return top_items(scores).tolist()


# ----------------------------------------------------------------------------------------------------------------------
# This project
# ----------------------------------------------------------------------------------------------------------------------


def our_sequences(folder: Path, tokenizer: Any) -> Any:
    """The prepared events as token ids of a `BehaviorTokenizer`."""
    import polars as pl

    from next_behavior.data.sequences import Sequences, tokenize_log

    dataset = tokenize_log(pl.read_parquet(folder / "events.parquet"), tokenizer)
    return Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)


def ranker_rows(ranker: Any, sequences: Any, max_length: int, columns: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """`rows` of anything with `scores(EvaluationBatch)`; `columns` are the catalog's token ids."""
    from next_behavior.data.batches import evaluation_batches

    scores = np.empty((len(positions), len(columns)), dtype=np.float32)
    place = {position: row for row, position in enumerate(positions.tolist())}
    for batch in evaluation_batches(sequences, TEST, max_length, len(positions), positions=positions):
        rows = [place[position] for position in batch.position.tolist()]
        scores[rows] = np.asarray(ranker.scores(batch))[:, columns]
    return scores


class OurBaseline:
    """A counting baseline of this project, by the name of its class."""

    libraries = ("numpy", "scipy")
    MAX_LENGTH = 200
    FIRST_ITEM = 5

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.what = f"{kind} of next_behavior/evaluation"

    def fit(self, task: Task, clock: Clock) -> None:
        import polars as pl

        from next_behavior.data.sequences import Sequences, encode_events
        from next_behavior.evaluation.item_baselines import ItemTransition, Popularity
        from next_behavior.evaluation.item_neighbors import ItemNeighbors

        classes: tuple[Any, ...] = (Popularity, ItemTransition, ItemNeighbors)
        self.task = task
        events = pl.read_parquet(self.folder / "events.parquet")
        dataset = encode_events(
            events,
            item_vocabulary=task.item_ids.tolist(),
            first_item_id=self.FIRST_ITEM,
            action_vocabulary=events["action"].unique().sort().to_list(),
            time_edges=[],
        )
        size = self.FIRST_ITEM + task.num_items
        self.sequences = Sequences.from_dataset(dataset, vocab_size=size, first_item_id=self.FIRST_ITEM)
        before = time.process_time()
        self.model = {kind.__name__: kind for kind in classes}[self.kind]().fit(self.sequences)
        clock.training_seconds = time.process_time() - before
        clock.validate(self.rows)

    def rows(self, positions: np.ndarray) -> np.ndarray:
        columns = np.arange(self.task.num_items) + self.FIRST_ITEM
        return ranker_rows(self.model, self.sequences, self.MAX_LENGTH, columns, positions)

    def recommend(self, position: int) -> list[int]:
        scores = self.rows(np.array([position]))[0]
        scores[self.task.history(position)] = -np.inf
        return top_items(scores).tolist()


class OurModel:
    """`train_accelerate.py` as a user runs it, and the model through `pipeline("next-behavior")`.

    Args:
        flags: of `train_accelerate.py`; none are its defaults.
        throughput_only: measure no accuracy.
    """

    libraries = ("torch", "transformers", "accelerate")

    def __init__(self, name: str, seed: int, folder: Path, flags: str, throughput_only: bool) -> None:
        self.seed, self.folder, self.flags, self.throughput_only = seed, folder, flags, throughput_only
        self.output = folder / "models" / f"{name}-seed{seed}"
        self.what = f"train_accelerate.py {flags}" if flags else "train_accelerate.py with its defaults"

    def fit(self, task: Task, clock: Clock) -> None:
        self.task = task
        run = json.loads((self.folder / "task.json").read_text())
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir(parents=True)
        command = [sys.executable, str(ROOT / "train_accelerate.py"), "--events", run["data"], "--split", run["split"]]
        command += ["--output_dir", str(self.output), "--seed", str(self.seed), "--tracker", "tensorboard"]
        used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
        with open(self.output / "training.log", "w") as log:
            process = subprocess.Popen([*command, *self.flags.split()], stdout=log, stderr=log, cwd=ROOT)
            snapshots, seconds = self._watch(process, began)
        if process.returncode:
            raise RuntimeError(f"train_accelerate.py failed:\n{(self.output / 'training.log').read_text()[-2000:]}")
        all_used = resource.getrusage(resource.RUSAGE_CHILDREN)
        clock.training_seconds = all_used.ru_utime + all_used.ru_stime - used.ru_utime - used.ru_stime
        clock.add(*self._throughput(seconds))
        self._load(self.output)
        for written, folder in snapshots:
            self._load(folder)
            clock.validate(self.rows)
            clock.curve[-1]["seconds"] = round(float(seconds(written)), 2)
        self._load(self.output)

    def _watch(
        self, process: subprocess.Popen[bytes], began: float
    ) -> tuple[list[tuple[float, Path]], Callable[[float], float]]:
        """Copies of each best checkpoint with the time it was written at, and a function from times to the seconds that
        the training had computed by then."""
        source, found, last = self.output / "checkpoints" / "best", list[tuple[float, Path]](), 0.0
        times, seconds = [began], [0.0]
        while True:
            running = process.poll() is None
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, shutil.Error):
                written = (source / "model.safetensors").stat().st_mtime
                if written != last and not self.throughput_only:
                    target = self.output / "snapshots" / str(len(found))
                    shutil.copytree(source, target, dirs_exist_ok=True)
                    found.append((written, target))
                    last = written
            if not running:
                return found, lambda time_: float(np.interp(time_, times, seconds))
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                seconds.append(sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"))
                times.append(time.time())
            time.sleep(0.1)

    def _throughput(self, seconds_at: Callable[[float], float]) -> tuple[int, float]:
        """Targets and seconds between the losses that the training logs every 20 steps, validations left out."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        path = next(self.output.rglob("events.out.tfevents.*"))
        log = EventAccumulator(str(path.parent), size_guidance={"scalars": 0}).Reload()
        losses = log.Scalars("loss")
        epochs = [int(entry.value) for entry in log.Scalars("epoch")]
        validated = np.array([entry.step for entry in log.Scalars("validation_ndcg@10")])
        text = (self.output / "training.log").read_text()
        steps = int(text.split(" steps of ")[0].split()[-1].replace(",", ""))
        each = self.task.next_item_targets() / steps
        targets, seconds = 0.0, 0.0
        for (one, two), (first, second) in zip(itertools.pairwise(losses), itertools.pairwise(epochs), strict=True):
            pause = first != second or ((validated >= one.step) & (validated < two.step)).any()
            if not pause and two.step - one.step == 20:
                targets += 20 * each
                seconds += seconds_at(two.wall_time) - seconds_at(one.wall_time)
        return int(targets), seconds

    def _load(self, folder: Path) -> None:
        import torch
        from transformers import AutoTokenizer

        from next_behavior.evaluation.rankers import ModelRanker
        from next_behavior.model.modeling_behavior import BertForNextBehavior

        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.output, trust_remote_code=True)
        self.ranker = ModelRanker(BertForNextBehavior.from_pretrained(folder, dtype=torch.float32))
        if not hasattr(self, "sequences"):
            self.sequences = our_sequences(self.folder, self.tokenizer)
            place = {item: self.tokenizer.first_item_id + i for i, item in enumerate(self.tokenizer.item_vocabulary)}
            self.columns = np.array([place[item] for item in self.task.item_ids.tolist()])

    def rows(self, positions: np.ndarray) -> np.ndarray:
        return ranker_rows(self.ranker, self.sequences, self.tokenizer.model_max_length, self.columns, positions)

    def recommend(self, position: int) -> list[int]:
        import transformers

        if not hasattr(self, "predict"):
            make_pipeline: Any = transformers.pipeline
            self.predict = make_pipeline("next-behavior", model=str(self.output), trust_remote_code=True)
            self.ids = {item: index for index, item in enumerate(self.task.item_ids.tolist())}
            self.log = self._log()
        begin = self.task.offsets[self.task.users(np.array([position]))[0]]
        answers = self.predict({"events": self.log[begin:position]}, top_k=CUTOFF, of="item", exclude_seen=True)
        return [self.ids.get(answer["item"], NO_ITEM) for answer in answers]

    def _log(self) -> list[dict[str, Any]]:
        import polars as pl

        frame = pl.read_parquet(self.folder / "events.parquet")
        columns = {"item": frame["item_id"], "action": frame["action"]}
        if not frame["timestamp"].null_count():
            columns["timestamp"] = frame["timestamp"].dt.epoch("us") / 1e6
        return pl.DataFrame(columns).to_dicts()
