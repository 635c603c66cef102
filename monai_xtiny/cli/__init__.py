"""What was typed, as calls; one file per group of commands."""
