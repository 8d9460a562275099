"""Training: one loop for keypoints, warps and photos by category.

Every training set is endless and its item ``i`` is a function of a seed and ``i``, so a run is determined by its
configuration, and resuming means going on at the next index. What a run writes: :mod:`cats.training.run_folder`.

One *step* is one update of the weights, from ``accumulate`` batches; ``RunState.step`` counts those that are done.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rich.progress
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cats import __version__
from cats.architectures import build_model
from cats.core.console import describe_duration, note, progress
from cats.core.errors import BackendError, CatsError, InputError
from cats.model import CATs
from cats.training.configs import TrainConfig, differences
from cats.training.objectives import Batch, LossModule, Objective, TrainingSet
from cats.training.optimization import (
    autocast,
    averaged_model,
    interpolate_weights,
    learning_rate_factor,
    parameter_groups,
)
from cats.training.processes import (
    Interrupts,
    explain_dead_loaders,
    join_process_group,
    load_batches,
    local_rank,
    without_loader_signals,
)
from cats.training.run_folder import RunFolder
from cats.training.starts import start_as_consensus

Bar = rich.progress.Progress
Validation = Callable[[CATs, Bar], dict[str, float]]
"""Metrics of a model, with a ``score`` (higher is better); shows its progress on the bar that it is given."""

_TIMED_STEPS = 10  # after which the whole duration is estimated


class TrainingError(CatsError):
    """Training cannot go on; the last good checkpoint is intact."""

    exit_code = 1


@dataclass
class RunState:
    """What a resumed run needs besides weights and optimizer.

    Attributes:
        step: updates done.
        validated: step of the last validation.
        best_score, best_step: of the weights in ``best.pt``.
        without_gain: validations since then.
        metrics, initial_metrics: of the last validation, and of the one before the first update.
    """

    step: int = 0
    validated: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    without_gain: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    initial_metrics: dict[str, float] = field(default_factory=dict)


class Trainer:
    """A training run.

    Args:
        config: settings.
        dataset: with items that ``objective`` understands.
        objective: the loss.
        validate: judges weights; the metric named ``score`` chooses the best ones.
        output: folder of the run, created if it is missing.
        steps: number of updates.
        model: to start from, with ``config.start`` = ``checkpoint``; is not changed.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        workers: loader processes.
        description: of data and command, saved in the checkpoint.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: TrainingSet,
        objective: Objective,
        validate: Validation,
        output: Path,
        *,
        steps: int,
        model: CATs | None = None,
        device: str = "cpu",
        workers: int = 1,
        description: dict[str, Any] | None = None,
    ):
        self.config, self.dataset, self.objective, self.validate = config, dataset, objective, validate
        self.folder, self.steps, self.workers = RunFolder(output), steps, workers
        self.description = description or {}
        self.rank, self.world = join_process_group(device)
        self.device = torch.device(f"cuda:{local_rank()}" if self.world > 1 and device == "cuda" else device)
        torch.manual_seed(config.seed)
        self.model = _initial_model(config, model).to(self.device)
        self.initial = copy.deepcopy(self.model).eval() if config.interpolate != 1 else None
        if config.freeze != "none":
            self.model.feature_extraction.freeze(statistics=config.freeze == "all")
        self.averaged = averaged_model(self.model, config.ema) if config.ema else None
        objective.parameters.to(self.device)
        self.compute_loss: nn.Module = LossModule(self.model, objective)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.compute_loss, config), lr=config.lr)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(config, steps, step)
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.state = RunState()
        self._interrupts = Interrupts()
        self._updating = False  # while it is, weights and state do not belong together
        if self.world > 1:
            self.compute_loss = DistributedDataParallel(self.compute_loss, find_unused_parameters=True)

    def run(self, *, resume: bool = False) -> Path:
        """Train to the end; returns the path of ``best.pt``.

        Ctrl-C ends the update in progress and saves everything; ``last.pt`` then holds the weights.

        Raises:
            InputError: the folder holds a run and ``resume`` is off, or nothing to resume.
            BackendError: the system ended a loader process.
            TrainingError: the loss is not finite, named with its step.
        """
        if resume:
            self._restore()
        elif self.rank == 0:
            self.folder.create()
        if self.rank == 0:
            self.folder.save_config(self.config.to_dict())
            self.folder.cut_log(self.state.step)
        try:
            # Under torchrun every process gets the Ctrl-C, and one that ends its update would wait for the others.
            with explain_dead_loaders(), self._interrupts if self.world == 1 else contextlib.nullcontext():
                self._train()
        except (KeyboardInterrupt, InputError, BackendError) as error:  # a full disk is an InputError
            if isinstance(error, BackendError) and self.state.step and not self._updating and self.world == 1:
                with without_loader_signals():
                    self._save_stopped()
            if self.state.step:
                self._say(f"stopped after step {self.state.step}; {self._kept()}")
            raise
        self.folder.flush()
        state = self.state
        self._say(f"best score {state.best_score:.2f} at step {state.best_step}: {self.folder.best}")
        return self.folder.best

    def _kept(self) -> str:
        """What the folder holds of a run that stopped before its end, and how to go on."""
        folder = self.folder
        if folder.resume.is_file():
            weights = f"; the weights are in {folder.last}" if folder.last.is_file() else ""
            return f"{folder.path} holds the state of the last save, go on from there with --resume{weights}"
        if folder.best.is_file():
            return f"{folder.best} holds the best weights, but no state to go on from was saved"
        return f"nothing was saved yet, that comes with the validation every {self.config.validate_every} steps"

    def _train(self) -> None:
        state, config, bar = self.state, self.config, progress()
        bar.disable = bar.disable or self.rank != 0
        with bar:
            if state.step == 0 and self.rank == 0:
                # Also tells at once, not at the first validation, that its data cannot be read.
                state.initial_metrics = self._metrics(bar)
                note(f"start: {_shown(state.initial_metrics)}")
            elif state.validated < state.step and state.step % config.validate_every == 0:
                self._validate_and_save(bar)  # which an interrupt prevented
            begun, first = time.monotonic(), state.step
            task = bar.add_task("training", total=self.steps, completed=first)
            batches = load_batches(
                self.dataset, config, first=first, end=self.steps,
                rank=self.rank, world=self.world, workers=self.workers, device=self.device,
            )  # fmt: skip
            for accumulated in batches:
                self._updating = True
                logs = self._update(accumulated)
                state.step += 1
                self._updating = False
                if self.rank == 0:
                    self.folder.log(state.step, logs)
                bar.update(task, advance=1, description=f"training, loss {logs['loss']:.3f}")
                elapsed = time.monotonic() - begun
                if state.step - first == _TIMED_STEPS:
                    self._say_duration(elapsed / _TIMED_STEPS, self.steps - state.step)
                if state.step >= self.steps or state.step % config.validate_every == 0:
                    self._validate_and_save(bar)
                    if config.patience and state.without_gain >= config.patience:
                        self._say(f"stopped early at step {state.step}: no gain in {config.patience} validations")
                        break
                if self._interrupts.seen:
                    self._save_stopped()
                    raise KeyboardInterrupt
            if state.step > first:
                self._say(f"{state.step - first} updates in {describe_duration(time.monotonic() - begun)}")

    def _update(self, batches: list[Batch]) -> dict[str, float]:
        config = self.config
        self.model.train()
        logs: dict[str, float] = {}
        for number, batch in enumerate(batches, start=1):
            with self._gradients_stay_here(number < len(batches)):
                with autocast(self.device, config.amp):
                    loss, parts = self.compute_loss(batch)
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
        logs["lr"] = next(group["lr"] for group in self.optimizer.param_groups if group["initial_lr"] == config.lr)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        return logs

    def _gradients_stay_here(self, kept: bool) -> Any:
        """Whether this process keeps its gradients, as more of this update follow, or averages them with the others."""
        if kept and isinstance(self.compute_loss, DistributedDataParallel):
            return self.compute_loss.no_sync()
        return contextlib.nullcontext()

    def _check_finite(self, what: str, value: float) -> None:
        """Stop before a value that is not a number reaches the weights."""
        if math.isfinite(value):
            return
        best = self.folder.best
        kept = f"{best} holds the best weights before that" if best.is_file() else "nothing was saved yet"
        raise TrainingError(
            f"the {what} is {value} at step {self.state.step + 1}; {kept}. Lower lr, set clip=1, or use amp=bf16 "
            "instead of fp16"
        )

    def _metrics(self, bar: Bar) -> dict[str, float]:
        """Validate the weights that would be saved, and log what was found."""
        self._interrupts.at_once = True  # a validation changes nothing and is repeated by the resumed run
        try:
            with torch.no_grad():
                metrics = self.validate(self._saved_model(), bar)
        except KeyboardInterrupt:
            if self.state.step:
                self._save_stopped()
            raise
        finally:
            self._interrupts.at_once = False
        self.folder.plot(self.state.step, {f"validation/{key}": value for key, value in metrics.items()})
        return metrics

    def _validate_and_save(self, bar: Bar) -> None:
        """Validate the (averaged) weights, keep the best, and save the state; only rank 0 works."""
        state = self.state
        if self.rank == 0:
            state.metrics = self._metrics(bar)
            score = state.metrics["score"]
            improved = score > state.best_score
            if improved:
                state.best_score, state.best_step, state.without_gain = score, state.step, 0
            else:
                state.without_gain += 1
            state.validated = state.step
            if improved:
                self.folder.save_best(self._saved_model(), state.metrics, self._description(), self._document())
            else:
                self.folder.save_resume(self._document())
            note(f"step {state.step}: {_shown(state.metrics)}{' (best so far)' if improved else ''}")
        if self.world > 1:  # early stopping must be decided alike everywhere
            shared = [state.without_gain]
            dist.broadcast_object_list(shared, src=0)
            state.without_gain = shared[0]

    def _saved_model(self) -> CATs:
        """The weights that are judged and shipped: averaged, and interpolated with those of the start."""
        model = self.averaged.module if self.averaged is not None else self.model
        if self.initial is not None:
            model = copy.deepcopy(model)
            interpolate_weights(self.initial, model, self.config.interpolate)
        return model.eval()

    def _description(self) -> dict[str, Any]:
        """How the weights came about, for the checkpoint."""
        return {
            "config": self.config.to_dict(),
            "step": self.state.step,
            "initial_metrics": self.state.initial_metrics,
            "version": __version__,
            **self.description,
        }

    def _save_stopped(self) -> None:
        """Keep the state and the weights of a run that ends between two validations."""
        self.folder.save_resume(self._document())
        self.folder.save_last(self._saved_model(), self._description())

    def _document(self) -> dict[str, Any]:
        """The full state, to go on from."""
        return {
            "config": self.config.to_dict(),
            "steps": self.steps,
            "state": dict(vars(self.state)),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged is not None else None,
            "objective": self.objective.parameters.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def _restore(self) -> None:
        """Go on where the folder's run stopped; a longer run goes on with the learning rates of the longer one.

        Raises:
            InputError: nothing to resume, or a run of other settings.
        """
        document = self.folder.load_resume()
        changed = differences(document["config"], self.config.to_dict())
        lengthened = self.steps > document["steps"]
        if lengthened:
            changed = [text for text in changed if not text.startswith(("steps was", "epochs was"))]
        if changed or self.steps < document["steps"]:
            what = "; ".join(changed) or f"its data made {document['steps']} updates, not {self.steps}"
            raise InputError(
                f"{self.folder.resume} belongs to another configuration: {what}. Resume with the same options"
            )
        self.model.load_state_dict(document["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(document["averaged"])
        self.objective.parameters.load_state_dict(document["objective"])
        self.optimizer.load_state_dict(document["optimizer"])
        self.scaler.load_state_dict(document["scaler"])
        torch.set_rng_state(document["rng"].cpu())
        self.state = RunState(**document["state"])
        self.scheduler.last_epoch = self.state.step
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate_factor(self.config, self.steps, self.state.step)
        if lengthened:
            self._say(f"the run of {document['steps']} updates goes on from {self.state.step} to {self.steps}")
        if self.rank == 0:
            self.folder.drop_last()

    def _say_duration(self, seconds: float, left: int) -> None:
        """Announce how long the rest takes, where that is more than a minute."""
        if seconds * left > 60:
            self._say(
                f"an update takes {seconds:.2g} s: about {describe_duration(seconds * left)} more, without validations"
            )

    def _say(self, text: str) -> None:
        if self.rank == 0:
            note(text)


def _initial_model(config: TrainConfig, given: CATs | None) -> CATs:
    """The model before the first update."""
    if given is not None:
        return copy.deepcopy(given)
    weights = None if config.backbone_weights == "none" else config.backbone_weights
    model = build_model(config.model, backbone_weights=weights, zero_start=config.start == "zero")
    if config.start == "consensus":
        start_as_consensus(model)
    return model


def _shown(metrics: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.2f}" for key, value in metrics.items() if key != "score")
