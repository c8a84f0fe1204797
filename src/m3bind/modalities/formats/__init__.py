"""Safe readers of file formats: images, DICOM, CT series, NIfTI, slides, signals, archives.

Each reader returns arrays with processing steps and warnings; a modality interprets them. `isolation` reads in child
processes (`worker`), `limits` bounds every size, `detect` determines the modality of a file.
"""
