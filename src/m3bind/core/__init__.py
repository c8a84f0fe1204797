"""Shared by all packages: files, stored settings, progress, provenance, registries, child processes, devices.

* `files`: atomic writing. `stored`: small, possibly untrusted files read as plain data. `sums`: hashes of output files.
* `progress`, `provenance`, `registry`, `children`, `columns`. `device`: precision and arithmetic.
"""
