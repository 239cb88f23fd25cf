"""A preset's results as pages that open from disk: `bash run_all.sh site PRESET`."""
