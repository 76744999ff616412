"""The command line, `hf-ext`: a file for each command, a file for each method, and the parts that they share."""
