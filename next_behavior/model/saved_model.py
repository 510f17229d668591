"""The folder of a model: read with its cheap checks, and written whole, with its code and its manifest.

The expensive check, SHA-256 of the weights, is the pipeline's and the commands' (`integrity.check_loaded`): it reads a
gigabyte in one to two seconds.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import cached_file

from .answer_tables import LOADING
from .associative_memory import AssociativeMemory
from .configuration_behavior import CODE_FILES, BehaviorConfig
from .integrity import (
    WEIGHTS,
    WEIGHTS_INDEX,
    WEIGHTS_MANIFEST,
    check_manifest,
    check_memory,
    check_tables,
    weight_files,
    with_variant,
    write_manifest,
)

# The dtypes that weights are computed in; packed and quantized ones have no nan.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# What a download depends on. `AutoModel` passes the commit that it loads.
DOWNLOAD_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "proxies", "subfolder")


class SavedModel(PreTrainedModel):
    """How `BertForNextBehavior` is saved and loaded.

    Attributes:
        manifest: of the weights that this model was loaded from; None without one.
    """

    config: BehaviorConfig
    associate_path: AssociativeMemory
    manifest: Path | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """As in transformers; weights that are not finite and a memory out of order are errors.

        Raises:
            ValueError: the weights are damaged.
        """
        source = pretrained_model_name_or_path
        name = with_variant(WEIGHTS_MANIFEST, kwargs.get("variant"))
        is_local = source is not None and os.path.isdir(source)
        manifest = Path(source, kwargs.get("subfolder") or "", name) if source is not None and is_local else None
        loading = LOADING.set(True)
        try:
            loaded: Any = super().from_pretrained(source, *args, **kwargs)
        except Exception:
            check_manifest(manifest)  # a damaged file is the better reason
            raise
        finally:
            LOADING.reset(loading)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if source is not None and not is_local:
            options = {option: kwargs[option] for option in DOWNLOAD_OPTIONS if option in kwargs}
            resolved = downloaded(str(source), name, **options)
            manifest = None if resolved is None else Path(resolved)
        model.manifest = manifest
        model.check_values(str(source))
        model.train(model.training)  # the tables that answers read are made of what is checked
        return loaded

    def check_values(self, where: str) -> None:
        """Raises a ValueError for weights that are not finite, or a memory whose tables do not fit together."""
        named = [*self.named_parameters(), *self.named_buffers()]
        tables = {name: table.detach() for name, table in named if table.dtype in FLOATS and not table.is_meta}
        check_tables(tables, where)
        memory = dict(self.associate_path.named_buffers(recurse=False))
        if not any(table.is_meta for table in memory.values()):
            check_memory(memory.pop("pair_keys"), memory, where)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`; also keeps the pipeline's code beside the model's, so that a folder
        saved again (by `Trainer` too) still answers `pipeline("next-behavior")`, and writes the manifest anew."""
        folder, variant = Path(save_directory), kwargs.get("variant")
        # Adapters of transformers' own are saved without the weights.
        writes = (args[0] if args else kwargs.get("is_main_process", True)) and not self._hf_peft_config_loaded
        if writes:
            for name in (WEIGHTS_MANIFEST, WEIGHTS_INDEX):
                (folder / with_variant(name, variant)).unlink(missing_ok=True)
        super().save_pretrained(save_directory, *args, **kwargs)
        if writes:
            self._complete(folder, variant)

    def _upload_modified_files(self, working_dir: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """`save_pretrained(push_to_hub=True)` and `push_to_hub` come here before the folder is complete."""
        if not self._hf_peft_config_loaded:
            self._complete(Path(working_dir), variant=None)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _complete(self, folder: Path, variant: str | None) -> None:
        """Adds the code and the manifest to weights that were just saved."""
        for name in CODE_FILES:
            target, source = folder / name, self._code_file(name)
            if source is not None and not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)
        files = weight_files(folder, variant)
        if len(files) > 1:
            # Loading would take an earlier save's single file for the weights.
            (folder / with_variant(WEIGHTS, variant)).unlink(missing_ok=True)
        write_manifest(folder / with_variant(WEIGHTS_MANIFEST, variant), files)

    def _code_file(self, name: str) -> Path | None:
        """Where `name` lies: beside this file (a checkout, an installation), else where the model came from."""
        beside = Path(__file__).with_name(name)
        if beside.exists():
            return beside
        found = downloaded(self.config._name_or_path, name) if self.config._name_or_path else None
        return None if found is None else Path(found)


def downloaded(source: str, name: str, **options: Any) -> str | None:
    """A file of a folder or of a Hub repository; None if it has none, or it cannot be asked now."""
    return cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **options,
    )
