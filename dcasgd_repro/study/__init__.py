"""Many runs: what a study lists, runs, asks of its runs, and shows."""
