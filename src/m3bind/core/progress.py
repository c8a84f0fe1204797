"""How far a long job is, for people: a bar on a terminal, plain lines every few seconds anywhere else.

* `progress("pretrain xray", total=300)`: context manager; `bar.advance(1, note="loss 0.31")` counts.
* `track(items, label="read")`: the same around an iterable.

Both show the rate and the time left, measured over the last half minute and never over work that an earlier run had
done (`done=`). Everything goes to standard error. `M3BIND_PROGRESS=off` silences it, `plain` forces plain lines.
"""

import collections
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, ClassVar, TextIO, TypeVar

T = TypeVar("T")
WINDOW = 30.0  # seconds over which the rate is measured


def duration(seconds: float) -> str:
    """Seconds as people write them: "4 s", "3:05 min", "2:03:05 h"."""
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


class Progress:
    """Counts the items of one job and shows them. Use as a context manager; made by `progress`."""

    _live: ClassVar[Any] = None  # one rich display shared by nested jobs
    _users: ClassVar[int] = 0

    def __init__(
        self,
        label: str,
        total: int | None = None,
        *,
        done: int = 0,
        every: float = 5.0,
        stream: TextIO | None = None,
    ) -> None:
        """`done` of `total` items were finished earlier; without a terminal a line is printed each `every` seconds."""
        self.label, self.total, self.done, self.note = label, total, done, ""
        self._first, self._every, self._stream = done, every, stream
        self._start = self._printed = time.monotonic()
        self._marks: collections.deque[tuple[float, int]] = collections.deque([(self._start, done)])
        self._task: Any = None
        self._mode = "off"

    def __enter__(self) -> "Progress":
        out = self._stream or sys.stderr
        wish = os.environ.get("M3BIND_PROGRESS", "")
        self._mode = wish if wish in ("off", "plain") else "bar" if out.isatty() else "plain"
        self._start = self._printed = time.monotonic()
        self._marks = collections.deque([(self._start, self.done)])
        if self._mode == "bar":
            self._open_bar(out)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._mode == "bar":
            self._draw()
            Progress._users -= 1
            if Progress._users == 0:
                Progress._live.stop()
                Progress._live = None
            else:
                Progress._live.remove_task(self._task)  # a nested job leaves no line behind
        elif self._mode == "plain":
            took = time.monotonic() - self._start
            average = (self.done - self._first) / took if took > 0 else 0.0
            ending = "stopped" if kind else "done"
            pieces = [f"{self.label}: {ending} {self._count()} in {duration(took)}", rate_text(average), self.note]
            self._print(", ".join(piece for piece in pieces if piece))

    def advance(self, n: int = 1, note: str | None = None) -> None:
        """Count `n` more items; `note` (e.g. "loss 0.31") replaces the one shown at the end of the line."""
        self.done += n
        if note is not None:
            self.note = note
        if self._mode == "off":
            return
        now = time.monotonic()
        if now - self._marks[-1][0] >= 0.2:
            self._marks.append((now, self.done))
            while len(self._marks) > 2 and now - self._marks[1][0] > WINDOW:
                self._marks.popleft()
        if self._mode == "bar":
            self._draw()
        elif now - self._printed >= self._every:
            self._printed = now
            self._print(self.line())

    def rate(self) -> float:
        """Items per second over the last half minute; 0.0 as long as it is unknown."""
        when, count = self._marks[0]
        passed = time.monotonic() - when
        return (self.done - count) / passed if passed > 0 else 0.0

    def left(self) -> float | None:
        """Seconds until the end at the present rate, or None when the total or the rate is unknown."""
        rate = self.rate()
        return None if self.total is None or rate <= 0 else max(0, self.total - self.done) / rate

    def line(self) -> str:
        """The present state as one plain line."""
        left = self.left()
        pieces = [
            f"{self.label}: {self._count()}",
            rate_text(self.rate()),
            f"{duration(left)} left" if left is not None else "",
            self.note,
        ]
        return ", ".join(piece for piece in pieces if piece)

    def _count(self) -> str:
        if not self.total:
            return f"{self.done}"
        return f"{self.done}/{self.total} ({100 * self.done // self.total} %)"

    def _print(self, text: str) -> None:
        print(text, file=self._stream or sys.stderr, flush=True)

    def _open_bar(self, out: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        if Progress._live is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[state]}", markup=False),
            )
            Progress._live = Bars(*columns, console=Console(file=out), refresh_per_second=5)
            Progress._live.start()
        Progress._users += 1
        self._task = Progress._live.add_task(self.label, total=self.total, completed=self.done, state="")

    def _draw(self) -> None:
        state = self.line().removeprefix(f"{self.label}: ")
        Progress._live.update(self._task, completed=self.done, state=state)


def progress(label: str, total: int | None = None, *, done: int = 0, every: float = 5.0) -> Progress:
    """A `Progress` for a job of `total` items (None: unknown), `done` of which an earlier run finished.

    >>> with progress("pretrain xray", total=300) as bar:  # doctest: +SKIP
    ...     bar.advance(1, note="loss 0.31")
    """
    return Progress(label, total, done=done, every=every)


def track(items: Iterable[T], total: int | None = None, label: str = "working") -> Iterator[T]:
    """Yield the items of an iterable and show how far it is; `total` is taken from `len` where there is one."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(label, total) as bar:
        for item in items:
            yield item
            bar.advance()
