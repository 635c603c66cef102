"""What was typed, as calls; one file a group of commands."""
