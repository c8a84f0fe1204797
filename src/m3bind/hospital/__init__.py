"""PACS integration: DICOM objects from an archive into an index, de-identified, and results back.

* `pseudonyms`: the salt, and the replacements of identifiers. * `tags`: the header entries that are retained.
  `deidentify`: an object reduced to those. `pixels`: text hidden around the pixels.
* `listener`: receives objects (C-STORE), over `pending_connections` (connections without an association yet),
  `connection_limits` (hardening of pynetdicom) and `tls`. `dicomweb`: fetches objects (`qido`: QIDO-RS, WADO-RS),
  through `http`, `responses`, `answer_timer` and `multipart`.
* `intake`: each object into the `spool`, where it waits (`spool_database`, `late_objects`, `quarantine`); `encoder`:
  from there into the index (`spool_files`).
* `mapping`: optional, item -> original object. `results`: labels with probabilities as DICOM SR or JSON.
  `send`: an object to another archive.

Needs the extra `hospital`.
"""
