"""What every floor stands on: files, stored settings, progress, provenance, registries, child processes, devices.

* `files`: written whole or not at all. `stored`: small files of anybody, read as data.
* `sums`: hashes of finished files.
* `progress`, `provenance`, `registry`, `children`, `columns`. * `device`: precision and arithmetic.
"""
