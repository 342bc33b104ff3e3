"""The verbs of the command line: config → objects → run. The only place where parts meet."""
