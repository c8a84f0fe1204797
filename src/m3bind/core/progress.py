"""Progress of a long job: a bar on a terminal, plain lines every few seconds elsewhere; `rich` counts and draws.

* `progress("pretrain xray", total=300)`: context manager; `bar.advance(1, note="loss 0.31")` counts.
* `track(items, label="read")`: the same around an iterable.
* `duration`, `rate_text`, `memory_text`: times, rates and the memory of a GPU as text.

Both show the rate and the time left, measured over the last half minute (up to 1,000 counts), without the work of an
earlier run (`done=`), and with `memory=` the memory of a GPU. Everything goes to standard error.
`M3BIND_PROGRESS=off` silences it, `plain` forces plain lines.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import Task

T = TypeVar("T")
Memory = Callable[[], tuple[float, float] | None]  # peak bytes used, bytes of the device
WINDOW = 30.0  # seconds over which the rate is measured


def duration(seconds: float) -> str:
    """Seconds as text: "4 s", "3:05 min", "2:03:05 h"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d} h"


def rate_text(rate: float) -> str:
    """Items per second as "240/s", "3.2/s", or "4.1 s each" below one per second; empty when unknown."""
    if rate <= 0:
        return ""
    if rate >= 10:
        return f"{rate:.0f}/s"
    return f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


def memory_text(memory: tuple[float, float] | None) -> str:
    """(peak bytes, bytes of the device) as "3.1 of 80 GB"; empty for None."""
    if memory is None:
        return ""
    peak, size = (value / 1e9 for value in memory)
    return f"{peak:.1f} of {size:.0f} GB"


class Progress:
    """Counts and shows the items of one job. Use as a context manager; created by `progress`."""

    _live: ClassVar["Bars | None"] = None  # one display shared by nested jobs
    _users: ClassVar[int] = 0

    def __init__(
        self,
        label: str,
        total: int | None = None,
        *,
        done: int = 0,
        every: float = 5.0,
        memory: Memory | None = None,
        stream: TextIO | None = None,
        shown: bool = True,
    ) -> None:
        """`done` of `total` items were finished earlier; without a terminal a line is printed each `every` seconds.

        `memory` is called when a line is drawn.
        """
        self.label, self.total, self.done = label, total, done
        self._first, self._every, self._stream = done, every, stream
        self._memory: Memory = memory or (lambda: None)
        self._shown, self._mode = shown, "off"

    def __enter__(self) -> "Progress":
        out = self._stream or sys.stderr
        mode = os.environ.get("M3BIND_PROGRESS", "") if self._shown else "off"
        self._mode = mode if mode in ("off", "plain") else "bar" if out.isatty() else "plain"
        if self._mode == "off":
            return self
        self._start = self._printed = time.monotonic()
        self._bars = _bars(out) if self._mode == "plain" else Progress._live or _bars(out, live=True)
        if self._mode == "bar":
            Progress._live = self._bars
            Progress._users += 1
        self._id = self._bars.add_task(self.label, total=self.total, completed=self.done, note="", memory=self._memory)
        self._bars.advance(self._id, 0)  # the rate is measured from now
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._mode == "bar":
            Progress._users -= 1
            if Progress._users == 0:
                self._bars.stop()
                Progress._live = None
            else:
                self._bars.refresh()
                self._bars.remove_task(self._id)  # the bar of a nested job disappears
        elif self._mode == "plain":
            took = time.monotonic() - self._start
            average = (self.done - self._first) / took if took > 0 else 0.0
            ending, task = "stopped" if kind else "done", self._task()
            pieces = [f"{self.label}: {ending} {_count(task)} in {duration(took)}", rate_text(average)]
            self._print([*pieces, *_notes(task)])

    def advance(self, n: int = 1, note: str | None = None) -> None:
        """Count `n` more items; `note` (e.g. "loss 0.31") replaces the one shown at the end of the line."""
        self.done += n
        if self._mode == "off":
            return
        if note is not None:
            self._bars.update(self._id, note=note)
        self._bars.advance(self._id, n)
        if self._mode == "plain" and time.monotonic() - self._printed >= self._every:
            self._printed = time.monotonic()
            self._print([self.line()])

    def line(self) -> str:
        """The present state as one plain line."""
        return f"{self.label}: {_state(self._task())}"

    def _task(self) -> "Task":
        return next(task for task in self._bars.tasks if task.id == self._id)

    def _print(self, pieces: list[str]) -> None:
        print(", ".join(filter(None, pieces)), file=self._stream or sys.stderr, flush=True)


def _bars(out: TextIO, live: bool = False) -> "Bars":
    """The counters of `rich`; `live` draws them on the terminal `out`."""
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, TextColumn
    from rich.progress import Progress as Bars
    from rich.table import Column
    from rich.text import Text

    class StateColumn(ProgressColumn):
        def render(self, task: "Task") -> Text:
            return Text(_state(task))

    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        StateColumn(table_column=Column(no_wrap=True)),
        console=Console(file=out),
        refresh_per_second=5,
        speed_estimate_period=WINDOW,
        get_time=time.monotonic,
        disable=not live,
    )
    bars.start()
    return bars


def _state(task: "Task") -> str:
    """ "812/4000 (20 %), 240/s, 13 s left, loss 0.31": what is known of count, rate, time left and note."""
    rate = task.speed or 0.0
    left = f"{duration(max(0, task.remaining or 0) / rate)} left" if rate > 0 and task.total is not None else ""
    return ", ".join(filter(None, [_count(task), rate_text(rate), left, *_notes(task)]))


def _notes(task: "Task") -> list[str]:
    return [task.fields["note"], memory_text(task.fields["memory"]())]


def _count(task: "Task") -> str:
    done = int(task.completed)
    return f"{done}/{task.total:.0f} ({100 * done // int(task.total)} %)" if task.total else f"{done}"


def progress(
    label: str,
    total: int | None = None,
    *,
    done: int = 0,
    every: float = 5.0,
    memory: Memory | None = None,
    shown: bool = True,
) -> Progress:
    """A `Progress` for a job of `total` items (None: unknown), of which an earlier run finished `done`.

    `memory`, e.g. `partial(device.memory, gpu)`, is shown after the note if it returns something. `shown`: False counts
    without showing, for work that another process shows.

    >>> with progress("pretrain xray", total=300) as bar:  # doctest: +SKIP
    ...     bar.advance(1, note="loss 0.31")
    """
    return Progress(label, total, done=done, every=every, memory=memory, shown=shown)


def track(items: Iterable[T], total: int | None = None, label: str = "working") -> Iterator[T]:
    """Yield the items of an iterable and show the progress; `total` defaults to its length, if it has one."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(label, total) as bar:
        for item in items:
            yield item
            bar.advance()
