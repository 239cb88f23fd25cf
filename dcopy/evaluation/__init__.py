"""What a trained encoder is worth: probes, and the variances along its directions."""
