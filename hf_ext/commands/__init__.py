"""The command line, `hf-ext demo | train`. One file per method beside what they share."""
