"""Which notebooks a preset runs, with which parameters, and how they are run. Plans without torch."""
