"""What training carries from step to step, and what a step is fed."""
