"""What README.md and docs/ show: tables and pictures, from the files in experiments/results/."""
