"""Search for the plan with the highest fitness."""

from __future__ import annotations

import ctypes
import json
import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from ._library import (
    Handle,
    Lent,
    aq_evolve_options,
    aq_fitness_fn,
    aq_generation_fn,
    encode_path,
    lib,
    text_of,
)
from ._run import Log, Progress, Run
from .config import Config, Settings
from .errors import ConfigError
from .plan import Plan
from .source import Source

if TYPE_CHECKING:
    from typing_extensions import Unpack


# AQ_NONE: no generations after the first, for which 0 cannot stand in C.
_NONE = (1 << 32) - 1


@dataclass(frozen=True)
class Generation:
    """State of a search after a generation."""

    #: From 0, the start.
    generation: int
    #: The best fitness so far.
    best: float
    #: Mean fitness of the parents of the next generation: the best fifth so far.
    mean: float
    #: Bytes of planes of the best one, over the tensors that the search decides on.
    bytes: int
    #: Candidates tried so far; those that came again are not tried again.
    evaluations: int


# Scores a candidate: higher is better.
Fitness = Callable[[Plan], float]
# Told after each generation; False ends the search with the best so far.
OnGeneration = Callable[[Generation], Optional[bool]]


class Evolution:
    """Result of a search: `plan` is the best of all."""

    def __init__(self, plan: Plan, json_text: str) -> None:
        found = json.loads(json_text)
        self.plan = plan
        #: Fitness of the plan.
        self.fitness: float = found["fitness"]
        #: Fitness of the plan that a budget of the same size makes; None if it was not scored.
        self.start: float | None = found["start"]
        #: State after each generation.
        self.history: tuple[Generation, ...] = tuple(Generation(**g) for g in found["generations"])
        #: Whether it was ended before all of them.
        self.stopped: bool = found["stopped"]
        #: Seed of everything drawn by chance.
        self.seed: int = found["seed"]
        #: Bytes of planes that no candidate exceeds, over the tensors that the search decides on.
        self.limit_bytes: int = found["limit_bytes"]
        #: Whether fitness adds up over tensors, so that a budget finds the best plan by itself.
        self.additive: bool = found["additive"]
        self._json = json_text

    def to_json(self) -> str:
        """Returns everything but the plan as JSON, as `arrowquant evolve --json` prints it."""
        return self._json

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON as Python objects."""
        return json.loads(self._json)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        count = len(self.history)
        return f"<arrowquant.Evolution: fitness {self.fitness} after {count} generations>"


class _Callbacks:
    """The caller's functions, as the library calls them."""

    def __init__(self, run: Run, fitness: Fitness | None, told: OnGeneration | None) -> None:
        for what, function in (("fitness", fitness), ("on_generation", told)):
            if function is not None and not callable(function):
                raise TypeError(f"{what} must be callable, not {type(function).__name__}")
        self._run = run
        self._fitness = fitness
        self._told = told

    def worth(self, _: Any, candidate: int) -> float:
        """On any thread, where the caller asked for it."""
        if self._run.raised or self._fitness is None:
            return -math.inf
        try:
            handle = Lent(candidate)
            plan = Plan._around(handle)
            try:
                worth = float(self._fitness(plan))
            finally:
                plan.close()
                handle.take_back()
        except BaseException as error:
            self._run.fail(error)
            return -math.inf
        if worth == -math.inf:
            self._run.stop()
        return worth

    def tell(self, _: Any, told: Any) -> bool:
        """Whether to continue."""
        if self._run.raised:
            return False
        if self._told is None:
            return True
        found = told[0]
        fields = (found.generation, found.best, found.mean, found.bytes, found.evaluations)
        try:
            answer = self._told(Generation(*fields))
            return answer is None or bool(answer)
        except BaseException as error:
            self._run.fail(error)
            return False


def evolve(
    input: Any,
    fitness: Union[Fitness, None] = None,
    *,
    population: int = 50,
    generations: int = 10,
    parallel: bool = False,
    checkpoint: Union[str, os.PathLike[str], None] = None,
    resume: bool = False,
    on_generation: Union[OnGeneration, None] = None,
    config: Union[Config, Mapping[str, Any], None] = None,
    progress: Union[bool, Progress, None] = None,
    log: Union[Log, None] = None,
    threads: int = 0,
    **settings: Unpack[Settings],
) -> Evolution:
    """Searches for the plan that is worth most, among those that take no more than the budget of the
    settings (`max_size`, `avg_bits`), or than their own plan where they set none.

    `fitness` is called with a `Plan` and says what it is worth, the more the better: run it, decode
    what it wrote and try the model. The plan is one until the function returns, and can be read,
    written down and run, but not changed. One that is worth nothing gets a very low number, such as
    -1e300; `-math.inf` ends the search with the best so far; NaN is an error. An exception ends the
    search and is raised here. Without a `fitness` it is less the errors of tensors, of which the
    budget's plan is the best already.

    The first generation has the budget's plan and those that treat all tensors alike; `generations`
    of `population` candidates each follow. Candidates spend what they may: tensors get more bits as
    long as these fit. `on_generation` is told of each, and may return False to
    end with the best so far. With the same `seed` and a fitness that is the same for the same plan,
    so is the search, on any number of threads.

    `parallel=True` lets `threads` threads call `fitness` at once; `on_generation`, `progress` and
    `log` may then be called on another thread than this. `checkpoint` is a file that the search is
    written to after each generation; `resume=True` continues from it, if it exists.

    What tensors lose is measured first, which `progress` and `log` are told of. They, `input`,
    `config`, `threads` and the settings are as for `quantize`."""
    for what, number, least in (("population", population, 2), ("generations", generations, 0)):
        if not least <= number < _NONE:
            raise ConfigError(f"{what}: {number} is not a number from {least} on")
    wanted = Config.of(config, settings)
    run = Run(progress, log, threads)
    callbacks = _Callbacks(run, fitness, on_generation)
    options = aq_evolve_options()
    options.population, options.generations = population, generations or _NONE
    options.parallel, options.resume = parallel, resume
    if checkpoint is not None:
        options.checkpoint = encode_path(checkpoint, "checkpoint")
    if fitness is not None:
        options.fitness = aq_fitness_fn(callbacks.worth)
    # There without one, too: here Python notices Ctrl-C.
    options.generation = aq_generation_fn(callbacks.tell)
    plan, evolution = ctypes.c_void_p(), ctypes.c_void_p()
    with Source.of(input)._open().shared() as tensors, wanted._open().shared() as handle:

        def search() -> None:
            out = ctypes.byref(plan), ctypes.byref(evolution)
            given = ctypes.byref(options), ctypes.byref(run.options)
            run.call(lib.aq_evolve, tensors, handle, *given, *out)

        try:
            if parallel and threading.current_thread() is threading.main_thread():
                _beside(run, search)
            else:
                search()
        finally:
            # What is there though it was ended is freed.
            found = Handle(plan.value, lib.aq_plan_free)
            history = Handle(evolution.value, lib.aq_evolution_free)
    return Evolution(Plan._around(found), text_of(lib.aq_evolution_to_json, history) or "")


def _beside(run: Run, work: Callable[[], None]) -> None:
    """Calls `work` on a thread of its own, while this one waits for Ctrl-C, which it alone is told of:
    where others work it would be in the library until a generation ends."""
    failures: list[BaseException] = []

    def call() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=call, name="arrowquant-evolve")
    thread.start()
    interrupt: BaseException | None = None
    while thread.is_alive():
        try:
            thread.join(0.05)
        except BaseException as error:
            interrupt = error
            run.fail(error)
    try:
        if interrupt is not None:
            raise interrupt
        for failure in failures:
            raise failure
    finally:
        # No cycle through the traceback.
        del interrupt
        failures.clear()
