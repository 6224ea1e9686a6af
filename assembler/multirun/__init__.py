"""`--multirun`: one command over several values of its keys, and one table of what came out."""
