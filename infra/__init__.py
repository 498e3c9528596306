"""Everything outside the services: server binaries, relay, supervisor, command line, demo, drills, benchmarks."""
