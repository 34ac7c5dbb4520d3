"""The command `check`: files read by their own readers, and all that these refuse told at once. Trains nothing."""
