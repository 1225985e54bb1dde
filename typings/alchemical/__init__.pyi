# Alchemical has no types. This holds what the benchmarks use of it, and can go when it
# has.
