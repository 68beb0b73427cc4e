"""Keep pytest from collecting the fuzzer, which instruments its imports in a separate process."""

collect_ignore = ["fuzz_parsers.py"]
