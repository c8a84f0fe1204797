"""Compare an adapter's numbers with a golden fixture.

    import check
    fx = check.Fixture("flair", "a")           # out/flair.a.npz + .json
    fx.meta["inputs"]                          # recipe: array rule, token id lists, padding
    ok = fx.compare({"img_emb": my_img, "txt_pair_emb": my_txt})   # prints a line per name, returns bool
    fx.compare_prep("preprocess_image_gradient_300x420", my_array)

Tolerance per output = meta["suggested_abs_tolerance"][name]; rtol is not used.  A result that fails
by less than 10x its tolerance deserves a look at eps, GELU form and kernel differences first.
"""

import json
import os

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))


class Fixture:
    def __init__(self, system, set_="a", folder=None):
        base = os.path.join(folder or os.path.join(HERE, "out"), f"{system}.{set_}")
        self.data = dict(np.load(base + ".npz"))
        with open(base + ".json") as fh:
            self.meta = json.load(fh)
        self.tol = self.meta["suggested_abs_tolerance"]

    def compare(self, got, factor=1.0):
        good = True
        for name, value in got.items():
            v = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
            want = self.data[name]
            if v.shape != want.shape:
                print(f"{name}: shape {v.shape}, expected {want.shape}")
                good = False
                continue
            d = float(np.abs(v.astype(np.float64) - want).max()) if v.size else 0.0
            t = factor * self.tol[name]
            ok = bool(np.isfinite(v.astype(np.float64)).all()) and d <= t
            good &= ok
            print(f"{name}: max abs diff {d:.2e}, tolerance {t:.2e} {'ok' if ok else 'DIFFERENT'}")
        return good

    def compare_prep(self, name, x, atol=2e-5):
        x = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
        p = {k: self.data[f"prep/{name}/{k}"] for k in ("shape", "stats", "idx", "val", "crop", "crop_at")}
        if tuple(x.shape) != tuple(p["shape"]):
            print(f"{name}: shape {x.shape}, expected {tuple(p['shape'])}")
            return False
        f = x.reshape(-1).astype(np.float64)
        stats = np.array([f.mean(), f.std(), f.min(), f.max()])
        plane = x.reshape((-1, *x.shape[-2:]))[0]
        r, c = p["crop_at"]
        h, w = p["crop"].shape
        d = max(
            np.abs(f[p["idx"]] - p["val"]).max(),
            np.abs(stats - p["stats"]).max(),
            np.abs(plane[r : r + h, c : c + w].astype(np.float64) - p["crop"]).max(),
        )
        print(f"{name}: max diff {d:.2e} {'ok' if d <= atol else 'DIFFERENT'}")
        return bool(d <= atol)
