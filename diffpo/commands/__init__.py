"""The command line, thin: read options, call one function, say what was written."""
