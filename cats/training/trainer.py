"""Training: one loop for keypoints, warps and photos by category.

Every training set is endless and its item ``i`` is a function of a seed and ``i``, so a run is determined by its
configuration, and resuming means going on at the next index. A run writes into its folder: ``best.pt`` (the best
averaged weights by validation), ``resume.pt`` (everything needed to go on), ``log.csv``, ``config.json`` and
TensorBoard events.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import csv
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from cats import __version__
from cats.checkpoints import save_checkpoint, save_document
from cats.core.console import note, progress
from cats.core.errors import BackendError, CatsError, CheckpointError, InputError
from cats.core.files import write_text
from cats.model import CATs
from cats.training.configs import TrainConfig, differences
from cats.training.objectives import Batch, Objective
from cats.training.starts import start_as_consensus

Validation = Callable[[CATs], dict[str, float]]


class TrainingError(CatsError):
    """Training cannot go on; the last good checkpoint is intact."""

    exit_code = 1


@dataclass
class Progress:
    """What a resumed run needs besides weights and optimizer; ``start`` holds the metrics before the first update."""

    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    without_gain: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)


class Trainer:
    """A training run.

    Args:
        config: settings.
        dataset: endless, deterministic by index; items are dicts of arrays that ``objective`` understands.
        objective: the loss.
        validate: returns metrics of a model; the metric named ``score`` (higher is better) chooses the best weights.
        output: folder of the run, created if it is missing.
        steps: number of updates.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        workers: loader processes.
        description: of data and command, saved in the checkpoint.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Any,
        objective: Objective,
        validate: Validation,
        output: Path,
        *,
        steps: int,
        device: str = "cpu",
        workers: int = 1,
        description: dict[str, Any] | None = None,
    ):
        self.config, self.dataset, self.objective, self.validate = config, dataset, objective, validate
        self.output, self.steps, self.workers = Path(output), steps, workers
        self.description = description or {}
        self.rank, self.world = _join_process_group(device)
        self.device = torch.device(f"cuda:{_local_rank()}" if self.world > 1 and device == "cuda" else device)
        torch.manual_seed(config.seed)
        self.model = CATs(config.model, backbone_weights=_weights(config), zero_start=config.start == "zero")
        if config.start == "consensus":
            start_as_consensus(self.model)
        self.model.to(self.device)
        self.start = copy.deepcopy(self.model).eval() if config.interpolate != 1 else None
        if config.freeze != "none":
            self.model.feature_extraction.freeze(statistics=config.freeze == "all")
        self.averaged = copy.deepcopy(self.model).eval() if config.ema else None
        objective.parameters.to(self.device)
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.model, objective, config), lr=config.lr)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.state = Progress()
        self.step: nn.Module = _Step(self.model, objective)
        if self.world > 1:
            self.step = DistributedDataParallel(self.step, find_unused_parameters=True)

    @property
    def resume_file(self) -> Path:
        """Where the full state lies."""
        return self.output / "resume.pt"

    def run(self, *, resume: bool = False) -> Path:
        """Train to the end; returns the path of ``best.pt``.

        Raises:
            InputError: the folder holds a run and ``resume`` is off, or nothing to resume.
            TrainingError: the loss is not finite, named with its step.
        """
        self._open_folder(resume)
        try:
            self._train()
        except (KeyboardInterrupt, InputError):  # a full disk and an unreadable photo are InputErrors
            if self.state.step:
                self._say(f"stopped after step {self.state.step}; {self._kept()}")
            raise
        if self.rank == 0 and self._tensorboard() is not None:
            self._tensorboard().flush()
        self._say(f"best score {self.state.best_score:.2f} at step {self.state.best_step}: {self.output / 'best.pt'}")
        return self.output / "best.pt"

    def _kept(self) -> str:
        """What the folder holds of a run that stopped before its end, and how to go on."""
        if self.resume_file.is_file():
            return f"{self.output} holds the state of the last validation, go on from there with --resume"
        best = self.output / "best.pt"
        if best.is_file():
            return f"{best} holds the best weights, but no state to go on from was saved"
        return f"nothing was saved yet, that comes with the validation every {self.config.validate_every} steps"

    def _train(self) -> None:
        if self.state.step == 0 and self.rank == 0:
            # Also tells at once, not at the first validation, that its data cannot be read.
            self.state.start = self._metrics(self._saved_model())
            note(f"start: {_shown(self.state.start)}")
        bar = progress()
        bar.disable = self.rank != 0
        with bar:
            task = bar.add_task("training", total=self.steps, completed=self.state.step)
            for batches in self._batches():
                logs = self._update(batches)
                self.state.step += 1
                if self.rank == 0:
                    self._log(logs)
                bar.update(task, advance=1, description=f"training, loss {logs['loss']:.3f}")
                last = self.state.step >= self.steps
                if last or self.state.step % self.config.validate_every == 0:
                    self._validate_and_save()
                    if self.config.patience and self.state.without_gain >= self.config.patience:
                        self._say(
                            f"stopped early at step {self.state.step}: no gain in {self.config.patience} validations"
                        )
                        break

    def _batches(self) -> Iterator[list[Batch]]:
        """Lists of ``accumulate`` batches on the device, from the current step on."""
        config = self.config
        first, end = self.state.step * config.accumulate, self.steps * config.accumulate
        loader = DataLoader(
            self.dataset,
            batch_size=config.batch_size,
            sampler=_Share(first, end, config.batch_size, self.rank, self.world),
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=_leave_interrupts_to_the_main_process,
        )
        pending: list[Batch] = []
        try:
            for batch in loader:
                pending.append({key: value.to(self.device, non_blocking=True) for key, value in batch.items()})
                if len(pending) == config.accumulate:
                    yield pending
                    pending = []
        except CatsError as error:  # of a worker, whose traceback PyTorch puts before the message
            raise type(error)(str(error).rstrip().rpartition(f"{type(error).__name__}: ")[2]) from error

    def _update(self, batches: list[Batch]) -> dict[str, float]:
        config = self.config
        self.model.train()
        logs: dict[str, float] = {}
        for number, batch in enumerate(batches, start=1):
            with self._gradients_stay_here(number < len(batches)):
                with _autocast(self.device, config.amp):
                    loss, parts = self.step(batch)
                value = loss.item()
                self._check_finite("loss", value)
                self.scaler.scale(loss / len(batches)).backward()
            for key, part in {"loss": value, **parts}.items():
                logs[key] = logs.get(key, 0.0) + part / len(batches)
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, config.clip or math.inf).item()
        if not self.scaler.is_enabled():  # which leaves out updates that overflow
            self._check_finite("norm of the gradient", norm)
        logs["lr"] = self.optimizer.param_groups[0]["lr"]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        if self.averaged is not None:
            _average(self.averaged, self.model, min(config.ema, (self.state.step + 1) / (self.state.step + 10)))
        return logs

    def _gradients_stay_here(self, kept: bool) -> Any:
        """Whether this process keeps its gradients, as more of this update follow, or averages them with the others."""
        if kept and isinstance(self.step, DistributedDataParallel):
            return self.step.no_sync()
        return contextlib.nullcontext()

    def _check_finite(self, what: str, value: float) -> None:
        """Stop before a value that is not a number reaches the weights."""
        if math.isfinite(value):
            return
        best = self.output / "best.pt"
        kept = f"{best} holds the best weights before that" if best.is_file() else "nothing was saved yet"
        raise TrainingError(
            f"the {what} is {value} at step {self.state.step + 1}; {kept}. Lower lr, set clip=1, or use amp=bf16 "
            "instead of fp16"
        )

    def _metrics(self, model: CATs) -> dict[str, float]:
        """Validate a model and log what was found."""
        with torch.no_grad():
            metrics = self.validate(model)
        self._plot({f"validation/{key}": value for key, value in metrics.items()})
        return metrics

    def _validate_and_save(self) -> None:
        """Validate the (averaged) weights, keep the best, and write the resume file; only rank 0 works."""
        state = self.state
        if self.rank == 0:
            model = self._saved_model()
            state.metrics = self._metrics(model)
            score = state.metrics["score"]
            improved = score > state.best_score
            if improved:
                state.best_score, state.best_step, state.without_gain = score, state.step, 0
                training = {
                    "config": self.config.to_dict(),
                    "step": state.step,
                    "start": state.start,
                    "version": __version__,
                    **self.description,
                }
                save_checkpoint(self.output / "best.pt", model, metrics=state.metrics, training=training)
            else:
                state.without_gain += 1
            self._save_resume()
            note(f"step {state.step}: {_shown(state.metrics)}{' (best so far)' if improved else ''}")
        if self.world > 1:  # early stopping must be decided alike everywhere
            shared = [state.without_gain]
            dist.broadcast_object_list(shared, src=0)
            state.without_gain = shared[0]

    def _saved_model(self) -> CATs:
        """The weights that are judged and shipped: averaged, and interpolated with those of the start."""
        model = self.averaged if self.averaged is not None else self.model
        if self.start is not None:
            model = copy.deepcopy(model)
            _average(model, self.start, self.config.interpolate)
        return model.eval()

    def _rate(self, step: int) -> float:
        """Factor on the learning rates at an update."""
        config = self.config
        warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        done = min(1.0, step / self.steps)
        if config.schedule == "cosine":
            return warm * 0.5 * (1 + math.cos(math.pi * done))
        return warm * 0.5 ** sum(done >= milestone for milestone in config.milestones)

    def _open_folder(self, resume: bool) -> None:
        if resume:
            self._load_resume()
        elif self.resume_file.exists() or (self.output / "best.pt").exists():
            raise InputError(f"{self.output} already holds a run; go on with --resume or give another --output")
        if self.rank != 0:
            return
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot create {self.output}: {error.strerror}") from error
        write_text(self.output / "config.json", json.dumps(self.config.to_dict(), indent=2) + "\n")
        self._cut_log()

    def _save_resume(self) -> None:
        document = {
            "config": self.config.to_dict(),
            "steps": self.steps,
            "progress": dict(vars(self.state)),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged is not None else None,
            "objective": self.objective.parameters.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"last_epoch": self.scheduler.last_epoch},
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
        }
        save_document(self.resume_file, document)

    def _load_resume(self) -> None:
        if not self.resume_file.is_file():
            raise InputError(f"nothing to resume: {self.resume_file} does not exist")
        try:
            document = torch.load(self.resume_file, map_location=self.device, weights_only=True)
        except Exception as error:  # torch.load raises pickle, zip, EOF and runtime errors
            raise CheckpointError(f"cannot read {self.resume_file}: {error}") from error
        changed = differences(document["config"], self.config.to_dict())
        if changed or document["steps"] != self.steps:
            what = "; ".join(changed) or f"its data made {document['steps']} updates, not {self.steps}"
            raise InputError(
                f"{self.resume_file} belongs to another configuration: {what}. Resume with the same options"
            )
        self.model.load_state_dict(document["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(document["averaged"])
        self.objective.parameters.load_state_dict(document["objective"])
        self.optimizer.load_state_dict(document["optimizer"])
        self.scheduler.last_epoch = document["scheduler"]["last_epoch"]
        self.scaler.load_state_dict(document["scaler"])
        torch.set_rng_state(document["rng"].cpu())
        self.state = Progress(**document["progress"])

    def _cut_log(self) -> None:
        """Drop rows after the step that is resumed, so that the log is that of one uninterrupted run."""
        path = self.output / "log.csv"
        if not path.is_file():
            return
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines[1:] if int(line.split(",")[0]) <= self.state.step]
        write_text(path, "".join(lines[:1] + kept) if self.state.step else "")

    def _log(self, logs: dict[str, float]) -> None:
        path = self.output / "log.csv"
        new = not path.is_file() or path.stat().st_size == 0
        try:
            with open(path, "a", newline="") as handle:
                writer = csv.writer(handle)
                if new:
                    writer.writerow(["step", *logs])
                writer.writerow([self.state.step, *(repr(value) for value in logs.values())])
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        self._plot(logs)

    def _plot(self, values: dict[str, float]) -> None:
        """Add values of this step to the TensorBoard events."""
        board = self._tensorboard()
        if board is not None:
            try:
                for key, value in values.items():
                    board.add_scalar(key, value, self.state.step)
            except OSError as error:  # its thread could not write what came before
                raise InputError(f"cannot write TensorBoard events in {self.output}: {error.strerror}") from error

    def _tensorboard(self) -> Any:
        if not hasattr(self, "_board"):
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                note("tensorboard is not installed: logging to log.csv only")
                self._board = None
            else:
                self._board = SummaryWriter(str(self.output), purge_step=self.state.step + 1)
        return self._board

    def _say(self, text: str) -> None:
        if self.rank == 0:
            note(text)


class _Share:
    """Indices of the items that one of ``world`` processes trains on, batch by batch, without a list of them all."""

    def __init__(self, first: int, end: int, batch_size: int, rank: int, world: int):
        self.micro, self.batch_size, self.rank, self.world = range(first, end), batch_size, rank, world

    def __len__(self) -> int:
        return len(self.micro) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        for micro in self.micro:
            start = (micro * self.world + self.rank) * self.batch_size
            yield from range(start, start + self.batch_size)


def _leave_interrupts_to_the_main_process(worker: int) -> None:
    """A terminal sends Ctrl-C to all processes; the main one says what happened and ends the loader's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _unless_hung_up


def _unless_hung_up(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print what ended a thread, other than that the main process went away while a batch was handed over."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _shown(metrics: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.2f}" for key, value in metrics.items() if key != "score")


class _Step(nn.Module):
    """Model and objective as one module, so that DistributedDataParallel sees every parameter."""

    def __init__(self, model: CATs, objective: Objective):
        super().__init__()
        self.model, self.objective, self.extra = model, objective, objective.parameters

    def forward(self, batch: Batch) -> Any:
        return self.objective(self.model, batch)


def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Weighted mean in place: ``decay`` of the first, the rest of the second."""
    with torch.no_grad():
        for mean, value in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)


def _parameter_groups(model: CATs, objective: Objective, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW groups: the backbone has its own rate, vectors are not decayed."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in [*model.named_parameters(), *objective.parameters.named_parameters()]:
        if parameter.requires_grad:
            key = (name.startswith("feature_extraction."), parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.lr_backbone if backbone else config.lr,
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (backbone, decayed), parameters in groups.items()
    ]


def _weights(config: TrainConfig) -> str | None:
    return None if config.backbone_weights == "none" else config.backbone_weights


def _autocast(device: torch.device, amp: str) -> Any:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _join_process_group(device: str) -> tuple[int, int]:
    """Rank and world size; joins the group that torchrun announces in the environment.

    Raises:
        InputError: a GPU by its index, where every process has its own.
        BackendError: fewer GPUs than processes.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys():
        return 0, 1
    cuda = device.startswith("cuda")
    if cuda:
        if device != "cuda":
            raise InputError(f"--device {device}: under torchrun every process takes its own GPU, give --device cuda")
        if _local_rank() >= torch.cuda.device_count():
            raise BackendError(
                f"process {_local_rank() + 1} of this machine has no GPU, PyTorch sees {torch.cuda.device_count()}; "
                "give torchrun --nproc-per-node at most that"
            )
        torch.cuda.set_device(_local_rank())  # collectives of Python objects go through the current GPU
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
        atexit.register(_leave_process_group)
    return dist.get_rank(), dist.get_world_size()


def _leave_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
