"""Deterministic inputs for the golden fixtures (numpy only).

Every array draws from rng(set, name) = Generator(PCG64(crc32(f"golden/{set}/{name}"))),
set is "a" (any other word gives a fresh stream).

  image(set, name, shape)   float32 batch, shape (B, C, H, W) or (B, C, D, H, W), ALREADY preprocessed
                            range: low = rng normal (B, C, 8 per spatial axis), upsampled by index
                            floor(i*8/n) per axis, plus 0.5 * rng normal(shape); then per (B, C) gain and
                            offset (_restyle).  scale/offset/clip come last: x*scale + offset, clip.
  signal(set, name, shape)  same with 50 low-frequency points on the last axis (1-D signals).
  u8(set, kind, h, w)       uint8 RGB (h, w, 3): "gradient" | "checker" | "noise"   (integer rules below)
  ct_volume(set)            int16 (x, y, z) like a NIfTI array + spacing dict (z, xy) + slope/intercept
  ecg(set, n)               float64 (n, 12) in mV like wfdb.rdsamp()[0]
"""

import zlib

import numpy as np


def rng(set_, name):
    return np.random.Generator(np.random.PCG64(zlib.crc32(f"golden/{set_}/{name}".encode())))


def _low(z, sizes):
    for ax, n in enumerate(sizes, start=z.ndim - len(sizes)):
        z = np.take(z, np.arange(n) * z.shape[ax] // n, axis=ax)
    return z


def _restyle(g, x):
    """Per sample and channel gain 0.4 + 0.6|z| and offset 0.7 z', so that averages differ too."""
    s = x.shape[:2] + (1,) * (x.ndim - 2)
    gain = np.float32(0.4) + np.float32(0.6) * np.abs(g.standard_normal(s, dtype=np.float32))
    return x * gain + np.float32(0.7) * g.standard_normal(s, dtype=np.float32)


def image(set_, name, shape, scale=1.0, offset=0.0, clip=None):
    g = rng(set_, name)
    low = g.standard_normal(shape[:2] + (8,) * (len(shape) - 2), dtype=np.float32)
    x = _low(low, shape[2:]) + np.float32(0.5) * g.standard_normal(shape, dtype=np.float32)
    x = _restyle(g, x)
    x = x * np.float32(scale) + np.float32(offset)
    return np.clip(x, *map(np.float32, clip)) if clip else x


def signal(set_, name, shape, scale=1.0, offset=0.0, clip=None):
    g = rng(set_, name)
    low = g.standard_normal((*shape[:-1], 50), dtype=np.float32)
    x = _low(low, shape[-1:]) + np.float32(0.5) * g.standard_normal(shape, dtype=np.float32)
    x = _restyle(g, x)
    x = x * np.float32(scale) + np.float32(offset)
    return np.clip(x, *map(np.float32, clip)) if clip else x


def u8(set_, kind, h, w):
    y, x = np.mgrid[0:h, 0:w]
    if kind == "gradient":  # three different integer ramps
        return np.stack([y * 255 // (h - 1), x * 255 // (w - 1), (x + 2 * y) % 256], -1).astype(np.uint8)
    if kind == "checker":  # 16-pixel cells, grey levels by cell and channel
        c = (y // 16) * 7 + (x // 16) * 3
        return np.stack([(c * 37) % 256, (c * 91 + 13) % 256, ((y // 16 + x // 16) % 2) * 200 + 20], -1).astype(
            np.uint8
        )
    if kind == "noise":
        return rng(set_, f"u8noise/{h}x{w}").integers(0, 256, (h, w, 3), dtype=np.uint8)
    raise ValueError(kind)


SIZES = {"a": [("gradient", 300, 420), ("checker", 513, 257), ("noise", 300, 420)]}
CT = {"a": {"shape": (60, 50, 40), "z": 2.5, "xy": 0.9, "slope": 1.0, "intercept": -1024.0}}


def u8_set(set_):
    """[(name, rgb uint8)] of the set; grey version = channel 1 (index) of the same array."""
    return [(f"{k}_{h}x{w}", u8(set_, k, h, w)) for k, h, w in SIZES[set_]]


def ct_volume(set_):
    c = CT[set_]
    X, Y, Z = c["shape"]
    v = _low(rng(set_, "ctlow").integers(-400, 1400, (6, 6, 6)), (X, Y, Z)) + 1000
    v = v + rng(set_, "ctnoise").integers(-200, 200, (X, Y, Z))
    return v.astype(np.int16), c


def ecg(set_, n=5000):
    g = rng(set_, "ecg")
    low = g.integers(-900, 900, (12, 100))
    x = _low(low, (n,)) + g.integers(-150, 150, (12, n))
    return (x / 1000.0).T.copy()


# ----- token ids ---------------------------------------------------------------------------------
# Plain id lists WITHOUT padding; special ids included.  pair = two texts for one padded batch.
def _wrap(ids, first, last):
    return [first, *ids, last]


_BODY = {
    "a": (
        [1103, 2229, 1110, 14892, 6245, 1193],
        [185, 24290, 14854, 1166, 5155, 12478, 1733, 2004, 8815, 11607, 1107],
        [
            1602,
            8590,
            1104,
            1103,
            1286,
            2211,
            15027,
            9465,
            112,
            3850,
            1200,
            7210,
            17021,
            4267,
            1116,
            20400,
            11019,
            1403,
            1103,
            19211,
            1110,
            2999,
            118,
            6556,
            1114,
            1185,
            8813,
            5837,
            14915,
            1137,
            185,
            8057,
            23365,
            119,
        ],
    ),
}
# BERT-cased/BioClinicalBERT, RoBERTa-wwm-ext-Chinese: [CLS] 101 [SEP] 102 [PAD] 0
# BiomedBERT / CXR-BERT / MedCPT family:               [CLS] 2   [SEP] 3   [PAD] 0
# CLIP BPE:                                            SOT 49406 EOT 49407 pad 0
SPECIAL = {"bert": (101, 102), "biomed": (2, 3), "clip": (49406, 49407)}
SHIFT = {"bert": 0, "biomed": 1500, "clip": 20000}  # body ids differ per vocabulary, all < 21128 for "zh"


def tokens(set_, vocab):
    """dict(pair=[ids, ids], long=ids) for vocab in bert | zh | biomed | clip."""
    s = SPECIAL["bert" if vocab == "zh" else vocab]
    f = (lambda t: 106 + t % 20000) if vocab == "zh" else (lambda t: t + SHIFT[vocab])
    p0, p1, lo = ([f(t) for t in b] for b in _BODY[set_])
    return {"pair": [_wrap(p0, *s), _wrap(p1, *s)], "long": _wrap(lo, *s)}


def pad(seqs, length=None, pad_id=0):
    """(ids, mask) int64 arrays; length None = longest of the batch."""
    n = length or max(map(len, seqs))
    ids = np.array([s + [pad_id] * (n - len(s)) for s in seqs], np.int64)
    mask = np.array([[1] * len(s) + [0] * (n - len(s)) for s in seqs], np.int64)
    return ids, mask
