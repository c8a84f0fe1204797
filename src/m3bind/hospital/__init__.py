"""The hospital's side: DICOM objects from an archive into an index, without anybody's name, and results back.

* `pseudonyms`: the salt, and what identifiers become. * `tags`: the only header entries that are kept.
  `deidentify`: an object reduced to those. `pixels`: text hidden around the pixels.
* `listener`: objects that are sent (C-STORE). `dicomweb`: objects that are fetched (QIDO-RS, WADO-RS), through `http`
  and `multipart`.
* `intake`: the way of each into the `spool`, where it waits (`ledger`, `held`, `quarantine`); `encoder`: from there
  into the index (`spooled`). * `porch`, `wire`: connections of the listener before they are senders, and when they are.
* `mapping`: by option, which object an item was. `results`: labels with probabilities as DICOM SR or JSON.
  `send`: an object to another archive.

Needs the extra `hospital`.
"""
