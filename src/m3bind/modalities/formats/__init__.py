"""File formats, and how they are read safely: pictures, DICOM, CT series, NIfTI, slides, signals, archives.

Each reader gives arrays with what was done and what is doubted; a modality decides what they mean. `isolation` reads in
child processes (`worker`), `limits` bounds every size, `recognise` tells a file's kind from its bytes.
"""
