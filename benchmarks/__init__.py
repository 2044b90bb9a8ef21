"""What training costs here and elsewhere; ``python -m benchmarks`` measures it."""
