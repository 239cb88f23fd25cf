"""The training step, the loop around it, and the run that it leaves behind."""
