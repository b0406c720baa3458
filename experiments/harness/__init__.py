"""What all experiments share: the command line, runs, statistics, tables, pictures, and how a file was made."""
