"""Deterministic weights from (state-dict key, shape): no published weights needed.

    sd = state_dict("keys/flair.txt")            # {key: torch.Tensor}, file of "key (d0, d1)" lines
    t  = tensor_for("logit_scale", ())           # one tensor

Every key owns its stream: rng = Generator(PCG64(crc32(key))), drawn once as
standard_normal(shape, float32) (called z below), then shaped by the FIRST rule that fits.
Keys are the PEER's own names, prefix included (seed and rule both see the whole key).

  #  key / shape                                              value                      dtype
  1  ends "num_batches_tracked"                               1                          int64
  2  ends "position_ids"                                      arange(last dim)           int64
  3  ends "token_type_ids"                                    0                          int64
  4  ends "relative_position_index", (w*w, w*w)               (dy+w-1)*(2w-1)+(dx+w-1)   int64
     with (y,x) row-major in a w x w window, dy = y_i-y_j, dx = x_i-x_j   (Swin)
  5  ends "_codebook.initted" / "_codebook.cluster_size"      1.0                        float32
  6  ends "_codebook.embed"                                   rows z / |z|               float32
  7  scalar (shape () or (1,)) with "logit_scale" in the key  ln(1/0.07)                 float32
  8  scalar whose key ends "temperature"                      1.0                        float32
  9  other scalar                                             0.1 z                      float32
 10  ends "running_mean"                                      0.1 z                      float32
 11  ends "running_var"                                       1 + 0.1 |z|                float32
 12  embedding table/vector/token (EMB below)                 0.5 z                      float32
 13  1-D ending ".gamma", "_scale", ".weight"                 1 + 0.1 z                  float32
 14  every other 1-D (biases, ".beta", in_proj_bias ...)      0.1 z                      float32
 15  >= 2-D                                                   z / sqrt(prod(shape[1:]))  float32

EMB (12): last part, a trailing ".weight" removed, is one of word_embeddings, position_embeddings,
token_type_embeddings, token_embedding, position_embedding, positional_embedding, pos_embed,
pos_embedding, class_embedding, cls_token, cls_embedding.  (patch_embedding, value_embedding and
to_patch_embedding are ordinary weights: rule 15.)

Scaling is done in float32: value = np.float32(std) * z, std computed in float64 first; the codebook
norm is a sequential float64 sum (np.cumsum), so that no SIMD summation order can enter.
Needs only numpy; torch is imported at the end to wrap the arrays.  check() compares 12 CRCs and
tells whether this numpy draws the same stream as the one the fixtures were made with (2.4.6).
"""

import ast
import math
import sys
import zlib

import numpy as np

EMB = {
    "word_embeddings",
    "position_embeddings",
    "token_type_embeddings",
    "token_embedding",
    "position_embedding",
    "positional_embedding",
    "pos_embed",
    "pos_embedding",
    "class_embedding",
    "cls_token",
    "cls_embedding",
}


def normal(key, shape):
    """The z of the docstring."""
    g = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode("utf-8"))))
    return np.asarray(g.standard_normal(shape, dtype=np.float32), dtype=np.float32).reshape(shape)


def dtype_for(key):
    tail = key.rsplit(".", 1)[-1]
    ints = ("num_batches_tracked", "position_ids", "token_type_ids", "relative_position_index")
    return np.int64 if tail in ints else np.float32


def array_for(key, shape, dtype=None):
    """numpy array for one state-dict entry (rules in the module docstring)."""
    shape = tuple(int(s) for s in shape)
    tail = key.rsplit(".", 1)[-1]
    f = np.float32
    if tail == "num_batches_tracked":
        out = np.ones(shape, np.int64)
    elif tail == "position_ids":
        out = np.broadcast_to(np.arange(shape[-1], dtype=np.int64), shape).copy()
    elif tail == "token_type_ids":
        out = np.zeros(shape, np.int64)
    elif tail == "relative_position_index":
        w = math.isqrt(shape[0])
        y, x = np.divmod(np.arange(w * w, dtype=np.int64), w)
        out = (y[:, None] - y[None] + w - 1) * (2 * w - 1) + (x[:, None] - x[None] + w - 1)
    elif key.endswith(("_codebook.initted", "_codebook.cluster_size")):
        out = np.ones(shape, f)
    elif key.endswith("_codebook.embed"):
        z = normal(key, shape)
        n = np.sqrt(np.cumsum(z.astype(np.float64) ** 2, axis=-1)[..., -1:])
        out = (z.astype(np.float64) / n).astype(f)
    elif shape in ((), (1,)) and "logit_scale" in key:
        out = np.full(shape, math.log(1 / 0.07), f)
    elif shape in ((), (1,)) and tail == "temperature":
        out = np.ones(shape, f)
    elif shape == () or tail == "running_mean":
        out = f(0.1) * normal(key, shape)
    elif tail == "running_var":
        out = f(1) + f(0.1) * np.abs(normal(key, shape))
    elif key.removesuffix(".weight").rsplit(".", 1)[-1] in EMB:
        out = f(0.5) * normal(key, shape)
    elif len(shape) == 1 and (tail in ("gamma", "weight") or tail.endswith("_scale")):
        out = f(1) + f(0.1) * normal(key, shape)
    elif len(shape) == 1:
        out = f(0.1) * normal(key, shape)
    else:
        fan_in = math.prod(shape[1:])
        out = normal(key, shape) if fan_in == 0 else f(1 / math.sqrt(fan_in)) * normal(key, shape)
    out = np.asarray(out).reshape(shape)
    return out if dtype is None else out.astype(dtype)


def tensor_for(key, shape, dtype=None):
    """torch tensor for one entry; dtype (torch dtype) only casts at the end."""
    import torch

    t = torch.from_numpy(np.ascontiguousarray(array_for(key, shape)).reshape(tuple(shape)))
    return t if dtype is None else t.to(dtype)


def read_keys(keys_file):
    """[(key, shape)] from lines "key (d0, d1)"; lines of other form are skipped."""
    out = []
    with open(keys_file) as fh:
        for line in fh:
            key, _, rest = line.strip().partition(" ")
            if key and rest.startswith("("):
                out.append((key, tuple(ast.literal_eval(rest))))
    return out


def state_dict(keys_file, only=None, prefix=""):
    """Whole dict.  only: callable(key)->bool to skip big unused tensors; prefix: prepended to the
    key in the RESULT only (the seed always uses the key as written in the file)."""
    return {prefix + k: tensor_for(k, s) for k, s in read_keys(keys_file) if only is None or only(k)}


def crc(sd):
    """CRC32 over key names and raw bytes, in key order: equal iff all tensors are bit-equal."""
    c = 0
    for k in sorted(sd):
        v = sd[k]
        v = v.numpy() if hasattr(v, "numpy") else v
        c = zlib.crc32(np.ascontiguousarray(v).tobytes(), zlib.crc32(k.encode(), c))
    return c


PROBES = [
    ("logit_scale", ()),
    ("temperature", ()),
    ("a.weight", (64, 48)),
    ("a.bias", (64,)),
    ("conv.weight", (16, 3, 7, 7)),
    ("bn.running_mean", (64,)),
    ("bn.running_var", (64,)),
    ("norm.weight", (64,)),
    ("x.word_embeddings.weight", (28996, 32)),
    ("cls_token", (1, 1, 64)),
    ("vq._codebook.embed", (1, 512, 64)),
    ("w.relative_position_index", (49, 49)),
]
EXPECT = [
    1860941252,
    2896259690,
    542517308,
    2913519494,
    3862528899,
    3633688245,
    2585179120,
    1250305994,
    2434994963,
    792268888,
    23950483,
    2809037594,
]


def check():
    got = [zlib.crc32(array_for(k, s).tobytes()) for k, s in PROBES]
    bad = [p[0] for p, g, e in zip(PROBES, got, EXPECT or got) if g != e]
    return got, bad


if __name__ == "__main__":
    got, bad = check()
    print("numpy", np.__version__, "crcs", got, "differ:", bad or "none")
    for f in sys.argv[1:]:
        print(f, f"crc32 of all tensors: {crc(state_dict(f)):08x}")
