"""Naive implementations used as oracles; nothing here imports m3bind."""
