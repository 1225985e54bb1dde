# APScheduler 3 has no annotations. This can go when it has, or when a stub
# distribution has.
