"""The commands of `dpm`, one a file; each imports what is heavy when it runs."""
