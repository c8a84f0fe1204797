"""Selection among several sets of signals in one file (DICOM multiplex groups, aECG sequence sets).

* `SignalSet`: one set. * `combined`: the signals of the recording.

One set may contain all leads; otherwise sets that add leads are merged, each at its time: limb and chest leads (6 + 6),
groups of three leads in sequence (3 x 4), a rhythm strip in addition. Averaged beats are not part of the recording.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from m3bind.modalities.formats.recording import Signal
from m3bind.modalities.formats.signals_leads import LEADS, parse_lead
from m3bind.modalities.formats.signals_twelve import LIMB, MAX_MISSING

BEAT = 2.0  # s; a set that is shorter, and below 0.6 of the longest, is an averaged beat


@dataclass
class SignalSet:
    """One set by its header; `read` decodes it."""

    names: Sequence[str]
    seconds: float
    start: float  # s
    derived: bool  # computed by the device, as averaged beats are
    what: str  # description: "12 channels of 5000 samples, original"
    read: Callable[[], list[Signal]]

    def leads(self) -> set[str]:
        """The standard leads among its names."""
        return {lead for name in self.names if (lead := parse_lead(name)[0])}


def combined(sets: Sequence[SignalSet], word: str) -> tuple[list[Signal], list[str], list[str]]:
    """The signals of the recording, with steps and warnings; `word` is the format's term for a set."""
    pools = _pools(sets)
    found = [_picked(sets, pool) for pool in pools]
    enough = [_reach(sets, picked) >= len(LEADS) - MAX_MISSING for picked in found]
    best = enough.index(True) if any(enough) else max(range(len(pools)), key=lambda k: _reach(sets, found[k]))
    picked, warnings = found[best], []
    if best == 1 or sets[picked[0]].derived:
        warnings.append(f"only derived or averaged waveforms ({word} {picked[0] + 1}) hold the leads")
    if len({sets[k].start for k in picked}) > 1:  # in sequence: a longer strip is preferred
        picked = sorted(pools[best], key=lambda k: -sets[k].seconds)
    elif len(picked) == 1 and best == 0:
        others = [k for k in pools[0] if k not in picked and sets[k].leads() >= sets[picked[0]].leads()]
        if others:
            warnings.append(f"{len(others)} more {word}{'s' if len(others) > 1 else ''} of the same leads, not read")
    signals = _first_of_each(sets, picked)
    if len(sets) == 1:
        return signals, [], warnings
    if len(picked) == 1:
        return signals, [f"{word} {picked[0] + 1} of {len(sets)} taken: {sets[picked[0]].what}"], warnings
    numbers = ", ".join(str(k + 1) for k in sorted(picked))
    return signals, [f"{word}s {numbers} of {len(sets)} merged: {len(signals)} signals"], warnings


def _pools(sets: Sequence[SignalSet]) -> tuple[list[int], list[int]]:
    """Indices of recorded sets, and of derived or averaged ones."""
    longest = max(each.seconds for each in sets)
    recorded = [k for k, each in enumerate(sets) if not each.derived and not each.seconds < min(BEAT, 0.6 * longest)]
    return recorded, [k for k in range(len(sets)) if k not in recorded]


def _picked(sets: Sequence[SignalSet], pool: list[int]) -> list[int]:
    """The sets of a pool that add leads, starting with the set of most leads, then most channels, then the longest."""
    picked: list[int] = []
    have: set[str] = set()
    for k in sorted(pool, key=lambda k: (-len(sets[k].leads()), -len(sets[k].names), -sets[k].seconds)):
        if sets[k].leads() - have or not picked:
            picked.append(k)
            have |= sets[k].leads()
    return picked


def _reach(sets: Sequence[SignalSet], picked: list[int]) -> int:
    """The number of leads of sets, including limb leads that follow from two others; -1 without sets."""
    have = {lead for k in picked for lead in sets[k].leads()}
    limb = len(have & set(LIMB))
    return len(have - set(LIMB)) + (len(LIMB) if limb > 1 else limb) if picked else -1


def _first_of_each(sets: Sequence[SignalSet], picked: list[int]) -> list[Signal]:
    """The signals of sets; of a lead in several sets, only the signal of the first set."""
    signals: list[Signal] = []
    have: set[str] = set()
    for k in picked:
        signals += [signal for signal in sets[k].read() if parse_lead(signal.name)[0] not in have - {""}]
        have |= sets[k].leads()
    return signals
