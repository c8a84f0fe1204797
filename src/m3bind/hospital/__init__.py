"""PACS integration: DICOM objects from an archive into an index, de-identified, and results back.

* `pseudonyms`: the salt, and the replacements of identifiers. * `tags`: the header entries that are retained.
  `deidentify`: an object reduced to those. `pixels`: text hidden around the pixels.
* `listener`: receives objects (C-STORE), over `porch` (connections without an association yet), `wire` (hardening of
  pynetdicom) and `tls`. `dicomweb`: fetches objects (`qido`: QIDO-RS, WADO-RS), through `http`, `answers`, `watch` and
  `multipart`.
* `intake`: each object into the `spool`, where it waits (`ledger`, `held`, `quarantine`); `encoder`: from there into
  the index (`spooled`).
* `mapping`: optional, item -> original object. `results`: labels with probabilities as DICOM SR or JSON.
  `send`: an object to another archive.

Needs the extra `hospital`.
"""
