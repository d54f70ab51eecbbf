"""RawNet2: a supervised detector that hears a clip's first 4 s of raw sound."""
