"""Stage 2, SESKD: one student text encoder distilled from the bound text towers (Eq. 7-9)."""
