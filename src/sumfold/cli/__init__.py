"""The command line: one verb per file, put together in `sumfold.cli.main`."""
