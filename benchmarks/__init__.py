"""What the library costs, beside the alternatives.

`python -m benchmarks` measures, and writes the tables of `docs/benchmarks.md`;
`--quick` shows them within a minute, to compare with while one changes the code.
`python -m benchmarks.instructions` counts the instructions of the hot paths, which no
other load on the machine can change. `python -m benchmarks.async_views` loads async
views, and writes into `docs/async.md`.
"""
