"""What makes, runs, breaks and measures deployments: servers, relay, supervisor, commands, demo, benchmarks."""
