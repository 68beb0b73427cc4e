"""The fuzzer instruments what it imports, so it runs in a process of its own."""

collect_ignore = ["fuzz_parsers.py"]
