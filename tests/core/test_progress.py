import io
import time

import pytest

from m3bind.core.progress import Progress, duration, progress, rate_text, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_durations_and_rates_read_well():
    assert [duration(s) for s in (0.2, 59, 185, 7385)] == ["0 s", "59 s", "3:05 min", "2:03:05 h"]
    assert [rate_text(r) for r in (0, 240.4, 3.21, 0.25)] == ["", "240/s", "3.2/s", "4.0 s each"]


def test_plain_lines_without_a_terminal():
    out = io.StringIO()
    with Progress("read", 4, every=0.0, stream=out) as bar:
        bar.advance(1, note="loss 0.31")
        bar.advance(3)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("read: 1/4 (25 %)") and lines[0].endswith("left, loss 0.31")
    assert lines[-1].startswith("read: done 4/4 (100 %) in 0 s")


def test_quick_jobs_print_one_line_and_stopped_ones_say_so():
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress("read", 4, stream=out) as bar:
        bar.advance(2)
        raise KeyboardInterrupt
    assert out.getvalue().startswith("read: stopped 2/4 (50 %)") and out.getvalue().count("\n") == 1


def test_rate_and_time_left_leave_out_what_an_earlier_run_did(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Progress("fit", 1000, done=900, stream=io.StringIO()) as bar:
        for _ in range(20):
            clock[0] += 1.0
            bar.advance(2)
    assert bar.line() == "fit: 940/1000 (94 %), 2.0/s, 30 s left"


def test_rate_follows_the_last_half_minute(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Progress("fit", 10_000, stream=io.StringIO()) as bar:
        for step in range(100):
            clock[0] += 1.0
            bar.advance(1 if step < 50 else 5)
    assert ", 5.0/s, " in bar.line()


def test_bars_on_a_terminal_may_be_nested_and_show_notes_literally():
    out = Terminal()
    with Progress("outer [a]", 2, stream=out) as outer:
        with Progress("inner", 3, stream=out) as inner:
            inner.advance(3)
        outer.advance(2, note="loss [0.3]")
    assert "outer [a]" in out.getvalue() and "loss [0.3]" in out.getvalue() and "inner" in out.getvalue()
    assert Progress._live is None and Progress._users == 0


def test_track_yields_everything_and_environment_silences(capsys, monkeypatch):
    assert list(track([1, 2, 3], label="walk")) == [1, 2, 3]
    assert "walk: done 3/3 (100 %)" in capsys.readouterr().err
    monkeypatch.setenv("M3BIND_PROGRESS", "off")
    with progress("quiet", 2) as bar:
        bar.advance(2)
    assert capsys.readouterr().err == ""


def test_memory_of_a_gpu_is_asked_for_when_a_line_is_drawn():
    out, asked = io.StringIO(), []
    with Progress("encode", 100, every=0.0, stream=out, memory=lambda: asked.append(1) or (3.14e9, 80e9)) as bar:
        bar.advance(1, note="2 bad")
    with Progress("encode", 100, every=60.0, stream=out, memory=lambda: asked.append(1)) as bar:
        for _ in range(100):
            bar.advance(1)
    lines = out.getvalue().splitlines()
    assert lines[0].endswith("2 bad, 3.1 of 80 GB") and "GB" not in lines[-1] and len(asked) == 3
