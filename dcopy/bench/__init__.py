"""What a step of training takes, part by part: `python -m dcopy.bench`."""
