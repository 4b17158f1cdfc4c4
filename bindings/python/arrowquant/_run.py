"""Options and callbacks of a run: threads, progress, log."""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, Union

from ._library import aq_log_fn, aq_progress_fn, aq_run_options, call
from .errors import ArgumentError, Cancelled

# Called with bytes done and bytes in total; False cancels.
Progress = Callable[[int, int], Optional[bool]]
# Called with a level of the logging module and a line of text; False cancels.
Log = Callable[[int, str], Optional[bool]]

# Between INFO and WARNING: a notice, such as that a run continues with the parts that exist.
NOTICE = 25
_LEVELS = {1: logging.INFO, 2: logging.WARNING, 3: NOTICE}


class Run:
    """A call that works for a while. Exceptions in callbacks end it and leave it."""

    def __init__(
        self,
        progress: Union[bool, Progress, None],
        log: Log | None,
        threads: int,
        *,
        resume: bool = False,
        part: tuple[int, int] | None = None,
        part_bytes: int | None = None,
        restart: bool = False,
    ) -> None:
        if not 0 <= threads < 1 << 32:
            raise ArgumentError(f"threads: {threads} is no number of threads")
        self._bar: Bar | None = None
        if progress is True:
            self._bar = progress = make_bar()
        for what, function in (("progress", progress), ("log", log)):
            if function not in (None, False) and not callable(function):
                raise TypeError(f"{what} must be callable, not {type(function).__name__}")
        self._raised: BaseException | None = None
        self._stopped = False
        self.options = aq_run_options()
        self.options.threads = threads
        self.options.resume = resume
        self.options.restart = restart
        if part is not None:
            if not all(0 < number < 1 << 32 for number in part):
                raise ArgumentError(f"part: {part} is not (K, N) with K from 1 to N")
            self.options.part, self.options.parts = part
        if part_bytes is not None:
            if not 0 < part_bytes < 1 << 64:
                raise ArgumentError(f"part_bytes: {part_bytes} is no number of bytes")
            self.options.part_bytes = part_bytes
        # There without a callback, too: here Python notices Ctrl-C.
        self.options.progress = aq_progress_fn(
            lambda _, told: self._tell(progress or None, told[0].done, told[0].total)
        )
        if log is not None:
            self.options.log = aq_log_fn(
                lambda _, level, text: self._tell(
                    log, _LEVELS.get(level, logging.INFO), text.decode("utf-8", "replace")
                )
            )

    @property
    def raised(self) -> bool:
        """Whether a callback has raised an exception, so that the call must end."""
        return self._raised is not None

    def fail(self, error: BaseException) -> None:
        """Ends the call with an exception of a callback's; the first is raised."""
        if self._raised is None:
            self._raised = error

    def stop(self) -> None:
        """Notes that the caller ends the call."""
        self._stopped = True

    def _tell(self, function: Any, *args: Any) -> bool:
        """Whether to continue."""
        if self.raised:
            return False
        try:
            answer = None if function is None else function(*args)
            go_on = answer is None or bool(answer)
        except BaseException as error:
            self.fail(error)
            return False
        if not go_on:
            self.stop()
        return go_on

    def call(self, function: Any, *args: Any) -> None:
        """Calls a function of the library to which `options` were given."""
        failure: BaseException | None = None
        try:
            with self._ctrl_c():
                call(function, *args)
        except Cancelled as error:
            # Nobody asked for it: Ctrl-C came on the way into the callback.
            failure = error if self._stopped else KeyboardInterrupt()
        except Exception as error:
            failure = error
        finally:
            if self._bar is not None:
                self._bar.close()
        raised, self._raised = self._raised, None
        # The callbacks hold on to this object, and it to them.
        self.options = aq_run_options()
        try:
            if raised is not None:
                raise raised
            if failure is not None:
                raise failure
        finally:
            # No cycle through the traceback.
            del raised, failure

    @contextmanager
    def _ctrl_c(self) -> Iterator[None]:
        """Notices Ctrl-C on the way into a callback, where it can be raised to nobody: ctypes tells the
        hook, and what it then returns to the library is left to chance."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Signals are the main thread's.
            return
        before = sys.unraisablehook

        def hook(unraisable: Any) -> None:
            if issubclass(unraisable.exc_type, KeyboardInterrupt):
                self._raised = unraisable.exc_value or KeyboardInterrupt()
            else:
                before(unraisable)

        sys.unraisablehook = hook
        try:
            yield
        finally:
            sys.unraisablehook = before


class Bar:
    """One line on standard error."""

    def __init__(self) -> None:
        self._shown = ""

    def __call__(self, done: int, total: int) -> None:
        share = done / total if total else 1.0
        line = f"{'#' * int(30 * share):30} {100 * share:3.0f}% of {total / 1e6:.1f} MB"
        if line != self._shown:
            sys.stderr.write("\r" + line)
            sys.stderr.flush()
            self._shown = line

    def close(self) -> None:
        """Ends the line."""
        if self._shown:
            sys.stderr.write("\n")


class TqdmBar(Bar):
    """A bar of tqdm."""

    def __init__(self, tqdm: Any) -> None:
        self._tqdm = tqdm
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = self._tqdm(total=total, unit="B", unit_scale=True, file=sys.stderr)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Ends the line."""
        if self._bar is not None:
            self._bar.close()


def make_bar() -> Bar:
    """tqdm's bar where it is installed."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return Bar()
    return TqdmBar(tqdm)
