"""retinamnist as published, small."""

from functools import partial

from evaluate.benchmarks.trees.medmnist import make_set

make = partial(make_set, "retinamnist")
