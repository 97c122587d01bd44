"""What a profile will take before it is run: SAEs, time, disk and memory, in words.

Counts come from the profile's parameters and from what the notebooks train. Times are counts times
rates: of short measurements on this machine at the profile's own shapes, or shares of a stated
number of operations per second. What is neither (figures, bootstraps, a kernel's start) is as in
the recorded runs of profiles default and full. Nothing is kept: a plan is made anew each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LlamaConfig

from saelib.config import ConfigError
from saelib.env import data_dir, root
from saelib.hardware import choose_device, choose_dtype
from saelib.run import costs
from saelib.run.asked import CAUSES, Counts, Group, counts_of
from saelib.run.jobs import COLLECT, Job, is_finished, jobs_of
from saelib.run.rates import measured, stated
from saelib.run.room import CARDS, Card, Disk, Memory, card_of, disk_of, memory_of, misfits
from saelib.run.text_size import TextSize, text_of
from saelib.run.work import Setting, Stage, stages_of
from saelib.text.models import MODELS, is_made, resolve_model

# Gated on the hub: planned by its published dimensions, which are `LlamaConfig`'s defaults.
LLAMA = "meta-llama/Llama-2-7b-hf"
STATED_CARD = 80e9  # bytes of the GPU whose rate is stated

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What the notebooks that are not finished will take; `work` is missing where none is left."""

    profile: str
    finished: Sequence[str]  # notebooks
    left: Sequence[str]
    work: PlannedWork | None = None


@dataclass(frozen=True)
class PlannedWork:
    """Counts, times and sizes of what is left to do."""

    model: str
    shape: costs.Shape
    text: TextSize
    counts: Mapping[str, Counts]  # by notebook
    stages: Sequence[Stage]
    rates: str  # how times are known
    disk: Disk
    memory: Memory
    cards: Sequence[Card]
    misfits: Sequence[str] = field(default_factory=list)

    @property
    def groups(self) -> list[Group]:
        """What all notebooks train and measure."""
        return [group for of_notebook in self.counts.values() for group in of_notebook.groups]

    def n_saes(self, notebook: str) -> int:
        """SAEs that a notebook still trains."""
        if notebook not in self.counts:
            return 0
        return sum(group.count for group in self.counts[notebook].groups if group.tokens)

    @property
    def tokens_trained(self) -> float | int:
        """Training tokens of all SAEs."""
        return sum(group.count * group.tokens for group in self.groups)

    @property
    def seconds(self) -> float | int:
        return sum(stage.work.seconds for stage in self.stages)

    @property
    def operations(self) -> float | int:
        return sum(stage.work.operations for stage in self.stages)

    def stage(self, notebook: str, name: str) -> Stage | None:
        """A notebook's stage of this name, if it has one."""
        of_both = [s for s in self.stages if (s.notebook, s.name) == (notebook, name)]
        return of_both[0] if of_both else None


def make_plan(
    profile: str,
    names: Sequence[str] = (),
    overrides: Parameters | None = None,
    rate: float | int | None = None,
    force: bool = False,
) -> Plan:
    """The plan of a profile's notebooks (`names`: of some) that are not finished.

    `rate` states operations per second, of a card of 80 GB, instead of measuring. Raises
    ConfigError for what `jobs_of` refuses, and for a model or text of which too little is known.
    """
    jobs = jobs_of(profile, names, overrides)
    left = [job for job in jobs if force or not is_finished(job)]
    finished = [job.name for job in jobs if job not in left]
    # model and text are 01's, whichever notebooks are asked for
    values = {job.name: job.values for job in (*jobs_of(profile), *jobs)}
    plan = Plan(profile, finished, [job.name for job in left])
    if not left or "source" not in values.get(COLLECT, {}):
        return plan
    return Plan(profile, finished, plan.left, _work(profile, left, values, rate))


def _work(
    profile: str, left: Sequence[Job], values: Mapping[str, Parameters], rate: float | int | None
) -> PlannedWork:
    """Counts, times and sizes of the notebooks that are left."""
    first = values[COLLECT]
    with chdir(root() / "notebooks"):  # where relative paths of models and texts begin
        config, label = model_of(first["model"])
        text = text_of(first, values.get(CAUSES, {}).get("depth_contexts", 0))
    setting = _setting(first, config, text, rate)
    counts = counts_of(profile, values, setting.shape.n_layers, setting.shape.d_model)
    counts = {job.name: counts[job.name] for job in left if job.name in counts}
    groups = {notebook: of_notebook.groups for notebook, of_notebook in counts.items()}
    trained = [group for each in groups.values() for group in each if group.tokens]
    stages = [
        stage
        for job in left
        for stage in stages_of(setting, job.name, values[job.name], groups.get(job.name, ()))
    ]
    stored = sum(stage.work.seconds for stage in stages if stage.name != "streaming") / 3600
    disk = disk_of(setting, data_dir(profile), trained)
    memory = memory_of(setting, trained)
    return PlannedWork(
        model=label,
        shape=setting.shape,
        text=setting.text,
        counts=counts,
        stages=stages,
        rates=setting.rates.origin,
        disk=disk,
        memory=memory,
        cards=[card_of(setting, trained, size, stored) for size in CARDS],
        misfits=misfits(disk, memory),
    )


def _setting(first: Parameters, config: Any, text: TextSize, rate: float | int | None) -> Setting:
    """Model, text, rates and machine."""
    device = choose_device(first["device"])
    dtype = choose_dtype(first["dtype"], device)
    shape = costs.shape_of(config)
    ctx_len = first["ctx_len"]
    if first["stream_tokens"]:
        text = text.streamed(first["stream_held_out"] * ctx_len)
    if rate is None:
        rates = measured(config, ctx_len, device, dtype)
        card = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 0
    else:
        rates = stated(shape, ctx_len, rate)
        card = STATED_CARD
    stored_as = first["store_dtype"]
    if stored_as == "auto":
        stored_as = str(dtype).removeprefix("torch.")
    sites = sites_of(first, shape.n_layers)
    return Setting(first, sites, shape, text, rates, float(card), dtype.itemsize, stored_as)


def sites_of(p: Parameters, n_layers: int) -> list[int]:
    """The numbers of the sites that a notebook names."""
    from saelib.activations.lm import resolve_site

    return sorted({resolve_site(site, n_layers) for site in p["sites"]})


def model_of(name: str) -> tuple[Any, str]:
    """Configuration of a model, and its name; ConfigError where it can be read nowhere."""
    if name == LLAMA:
        return LlamaConfig(), f"{name} by its published dimensions"
    if name in MODELS and not is_made(name):
        raise ConfigError(
            f"model = {name!r}: not here yet, so there is nothing to plan with; run `python -m "
            f"saelib assets {name}` first ({MODELS[name].cost})"
        )
    folder = Path(resolve_model(name)).expanduser()
    try:
        return AutoConfig.from_pretrained(folder if folder.is_dir() else name), name
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"model = {name!r}: no dimensions to plan with ({reason}); "
            f"expected a local folder or {LLAMA}"
        ) from None


# --- in words ----------------------------------------------------------------------------------


def duration(seconds: float | int) -> str:
    """A time as a person says it: "40 s", "9 min", "3.2 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def gigabytes(size: float | int) -> str:
    """Bytes as GB with one decimal."""
    return "under 0.1 GB" if 0 < size < 5e7 else f"{size / 1e9:,.1f} GB"


def count(number: float | int, noun: str) -> str:
    """ "1 SAE", "164 SAEs"; an expected number is rounded."""
    whole = round(number)
    return f"{whole:,} {noun}{'' if whole == 1 else 's'}"


def large(number: float | int) -> str:
    """A number in words from a million on: "16.8 million", "53 trillion"."""
    for power, word in ((18, "quintillion"), (15, "quadrillion"), (12, "trillion")):
        if number >= 10**power:
            return f"{number / 10**power:,.3g} {word}"
    if number >= 1e9:
        return f"{number / 1e9:.3g} billion"
    return f"{number / 1e6:.3g} million" if number >= 1e6 else f"{number:,.0f}"


def finished_line(plan: Plan) -> str:
    """What is there: "finished: 01_collect, 02_train_sae; nothing is left to do"."""
    there = ", ".join(plan.finished)
    if plan.left:
        return f"finished: {there}" if there else ""
    return f"finished: {there}; nothing is left to do in data/{plan.profile}"


def lines(plan: Plan) -> list[str]:
    """A plan in words, a subject a line."""
    work = plan.work
    head = [line for line in (finished_line(plan),) if line]
    if work is None:
        return head
    return [
        *head,
        f"model: {work.model}, {work.shape.n_layers} blocks of width {work.shape.d_model}",
        text_line(work),
        *notebook_lines(plan, work),
        total_line(work),
        disk_line(work.disk),
        f"disk for one site: {gigabytes(work.disk.site)} as stored, "
        f"{gigabytes(work.disk.site_int8)} in 8 bits; "
        f"with live training rows the store takes {gigabytes(work.disk.store_streaming)}",
        memory_line(work.memory),
        *(card_line(card) for card in work.cards),
        *(f"will not fit: {sentence}" for sentence in work.misfits),
    ]


def text_line(work: PlannedWork) -> str:
    """Tokens of the text by split."""
    text = work.text
    return (
        f"text: {text.total:,.0f} tokens ({text.train:,.0f} to train on, {text.val:,.0f} for "
        f"validation, {text.test:,.0f} to test), {text.known}"
    )


def notebook_lines(plan: Plan, work: PlannedWork) -> Iterator[str]:
    """What each notebook does, and how long: "02_train_sae: training 17 SAEs: 2 min; …"."""
    for notebook in plan.left:
        pieces = []
        for stage in [stage for stage in work.stages if stage.notebook == notebook]:
            what = stage.name
            if what == "training":
                what = f"training {count(work.n_saes(notebook), 'SAE')}{there(work, notebook)}"
            pieces.append(f"{what}: {duration(stage.work.seconds)}")
        yield f"{notebook}: {'; '.join(pieces)}"


def there(work: PlannedWork, notebook: str) -> str:
    """How many of a notebook's SAEs lie there already, where some do: " (17 are there)"."""
    number = work.counts[notebook].there
    return f" ({number:,} {'is' if number == 1 else 'are'} there)" if number else ""


def total_line(work: PlannedWork) -> str:
    """All of it."""
    saes = sum(work.n_saes(notebook) for notebook in work.counts)
    trained = f"{count(saes, 'SAE')} on {large(work.tokens_trained)} training tokens, "
    operations = f"{large(work.operations)} operations"
    return f"in all: {trained if saes else ''}{operations}, {duration(work.seconds)} {work.rates}"


def disk_line(disk: Disk) -> str:
    """What is written, and what is free."""
    parts = {"store": disk.store, "SAEs": disk.saes, "all depths": disk.depths}
    written = ", ".join(f"{name} {gigabytes(size)}" for name, size in parts.items() if size)
    of_what = f" ({written})" if written else ""
    return f"disk: {gigabytes(disk.total)} to write{of_what}, {gigabytes(disk.free)} free"


def memory_line(memory: Memory) -> str:
    """What is held at once, and what there is."""
    live = f", live rows {gigabytes(memory.buffers)}" if memory.buffers else ""
    return (
        f"memory: {gigabytes(memory.device)} of {gigabytes(memory.device_has)} on the device "
        f"(model {gigabytes(memory.model)}{live}), {gigabytes(memory.host)} of "
        f"{gigabytes(memory.host_has)} on the host"
    )


def card_line(card: Card) -> str:
    """What a GPU of some size does."""
    name = f"a GPU of {card.gigabytes} GB"
    if not card.at_once:
        return f"{name}: holds no SAE beside the model"
    passes = f"{card.passes:,.0f} passes over the training text"
    return (
        f"{name}: {count(card.at_once, 'SAE')} at once; "
        f"{duration(3600 * card.hours_stored)} from a store, "
        f"{duration(3600 * card.hours_streaming)} with live rows in {passes}"
    )


def brief(plan: Plan) -> Iterator[str]:
    """The few lines that `run` prints first.

    Raises ConfigError after them where the disk is too small for what is left to do.
    """
    work = plan.work
    if work is None:
        return
    yield f"plan: {text_line(work)}"
    for line in notebook_lines(plan, work):
        yield f"plan: {line}"
    yield f"plan: {total_line(work)}"
    yield f"plan: {disk_line(work.disk)}"
    for sentence in work.misfits:
        yield f"plan: will not fit: {sentence}"
    if not work.disk.fits:
        raise ConfigError(f"this profile does not fit on the disk: {work.misfits[0]}")
