"""Naive oracles of Eq. 3-5: plain arithmetic, as printed and as normalised."""


def sampling_probabilities(sizes, beta=0.5):
    powers = [size**-beta for size in sizes]
    return [power / sum(powers) for power in powers]


def learning_rate_scales(sizes, literal=False):
    roots = [size**-0.5 for size in sizes]
    product = 1.0
    for root in roots:
        product *= root
    return roots if literal else [root / product ** (1 / len(roots)) for root in roots]


def loss_weights(sizes, literal=False):
    roots = [size**-0.5 for size in sizes]
    return roots if literal else [root / (sum(roots) / len(roots)) for root in roots]
